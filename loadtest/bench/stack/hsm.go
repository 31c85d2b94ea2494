package stack

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/hsmshim"
)

// ModelHSM makes, in the new folder dir, a module that stands before SoftHSM and can
// take the time of a hardware HSM (hsmshim, the rule `cores`), so that what a stack
// reaches is a matter of its signers and not of this machine. A stack is given it by
// the module's Env and CERTMILL_SOFTHSM_MODULE.
func ModelHSM(dir string) (*hsmshim.Shim, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := local.OpenDir(filepath.Join(dir, "real"))
	if err != nil {
		return nil, err
	}
	real, err := local.OpenSoftHSM(d)
	if err = errors.Join(err, d.Close(), os.Unsetenv("SOFTHSM2_CONF")); err != nil {
		return nil, err
	}
	return hsmshim.New(dir, real.Module)
}
