package hsm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/signer/hsm"
	"github.com/certmill/certmill/signer/hsm/hsmtest"
)

// TestNSS runs the suite on NSS softokn, a token that is not SoftHSM: it wants a text
// from C_Initialize, has two slots with the same serial number, and no Ed25519.
func TestNSS(t *testing.T) {
	found, _ := filepath.Glob("/usr/lib/*/libsoftokn3.so")
	if len(found) == 0 {
		testenv.Lacking(t, "NSS softokn is missing: apt-get install libnss3")
	}
	token := sync.OnceValue(func() hsm.Config { return newNSS(t, found[0]) })
	hsmtest.Run(t, hsmtest.Backend{
		Name:   "NSS softokn",
		Config: func(*testing.T) hsm.Config { return token() },
		Lacks:  []hsm.Algorithm{hsm.Ed25519},
	})
}

// newNSS makes an NSS database and gives its token a PIN.
func newNSS(t *testing.T, module string) hsm.Config {
	dir := t.TempDir()
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = module, "NSS Certificate DB", filepath.Join(dir, "pin")
	cfg.InitParameters = fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='' flags=", dir)
	cfg.ProbeInterval = 20 * time.Millisecond
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(cfg.PINFile, []byte("correct horse"), 0o600))
	ctx := pkcs11.New(module)
	parameters := append([]byte(cfg.InitParameters), 0)
	check(ctx.Initialize(pkcs11.InitializeWithReserved(unsafe.Pointer(&parameters[0]))))
	const slot = 2 // the database; 1 has no keys
	s, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	check(err)
	check(ctx.Login(s, pkcs11.CKU_SO, ""))
	check(ctx.InitPIN(s, "correct horse"))
	check(ctx.Finalize())
	return cfg
}

// TestToken runs the suite on a token of the environment's choice, hardware for
// example. It makes keys there and leaves them, and gives one wrong PIN.
func TestToken(t *testing.T) {
	cfg := hsm.DefaultConfig()
	cfg.URI = os.Getenv("CERTMILL_HSM_TEST_URI")
	if cfg.URI == "" {
		t.Skip("set CERTMILL_HSM_TEST_URI to pkcs11:token=…?module-path=…&pin-source=file:… to test a token")
	}
	cfg.ProbeInterval = 100 * time.Millisecond
	lacks := filepath.SplitList(os.Getenv("CERTMILL_HSM_TEST_LACKS"))
	b := hsmtest.Backend{Name: cfg.URI, Config: func(*testing.T) hsm.Config { return cfg }}
	for _, a := range lacks {
		b.Lacks = append(b.Lacks, hsm.Algorithm(a))
	}
	hsmtest.Run(t, b)
}
