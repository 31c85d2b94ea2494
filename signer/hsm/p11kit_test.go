package hsm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/certmill/certmill/internal/testenv"
)

// p11-kit's proxy makes its functions anew for each that asks for them, with sessions of
// their own.
func TestAModuleThatSharesNoFunctionsSigns(t *testing.T) {
	found, _ := filepath.Glob("/usr/lib/*/libp11-kit.so.0")
	if len(found) == 0 {
		testenv.Lacking(t, "p11-kit is missing: apt-get install libp11-kit0")
	}
	where := testenv.SoftHSM(t)
	home := t.TempDir()
	modules := filepath.Join(home, "pkcs11", "modules")
	if err := os.MkdirAll(modules, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(modules, "softhsm.module"), []byte("module: "+where.Module+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", home)
	cfg := DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile, cfg.IdleCheck = found[0], where.TokenLabel, where.PINFile, 0
	token, err := Open(t.Context(), cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := token.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	key, err := token.GenerateKey(t.Context(), KeySpec{Label: "key", Algorithm: ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	s := new(signers)
	s.start(t, 20, t.Context(), key)
	s.all.Wait()
	if s.made != 20 {
		t.Errorf("%d of 20 signed; failures %v", s.made, s.failed)
	}
}
