package hsm

import (
	"testing"

	"github.com/miekg/pkcs11"
)

// AWS CloudHSM's SDK 5 answers CKR_FUNCTION_FAILED to every read-only session.
func TestAModuleWithoutReadOnlySessionsIsUsed(t *testing.T) {
	load := func(path, parameters string) (cryptoki, error) {
		lib, err := loadSeam(path, parameters)
		if err == nil {
			lib.(*seam).set(func(call string) error {
				if call == "OpenSession read-only" {
					return pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)
				}
				return nil
			})
		}
		return lib, err
	}
	f := openWith(t, seamConfig(t, nil), Deps{load: load})
	var err error
	if f.key, err = f.GenerateKey(t.Context(), KeySpec{Label: "key", Algorithm: ECDSAP256}); err != nil {
		t.Fatal(err)
	}
	if err := f.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if f.seam.count("OpenSession read-only") == 0 {
		t.Error("no read-only session was asked for: the test shows nothing")
	}
}
