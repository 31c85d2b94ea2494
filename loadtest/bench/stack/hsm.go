package stack

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/hsmshim"
	"github.com/certmill/certmill/internal/sysmon"
)

// ModelHSM makes, in the new folder dir, a module that stands before SoftHSM and can
// take the time of a hardware HSM (hsmshim, the rule `cores`), so that what a stack
// reaches is a matter of its signers and not of this machine. The environment gives it
// to a stack.
func ModelHSM(dir string) (shim *hsmshim.Shim, env []string, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	d, err := local.OpenDir(filepath.Join(dir, "real"))
	if err != nil {
		return nil, nil, err
	}
	real, err := local.OpenSoftHSM(d)
	if err = errors.Join(err, d.Close(), os.Unsetenv("SOFTHSM2_CONF")); err != nil {
		return nil, nil, err
	}
	if shim, err = hsmshim.New(dir, real.Module); err != nil {
		return nil, nil, err
	}
	// Signers wait in C for it.
	return shim, append(shim.Env(), "CERTMILL_SOFTHSM_MODULE="+shim.Module, sysmon.Environment+"=0"), nil
}
