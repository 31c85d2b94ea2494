package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const softHSMModule = "libsofthsm2.so"

// SoftHSM is a folder of SoftHSM tokens.
type SoftHSM struct {
	dir  *Dir
	util string
	// Module is the path of the PKCS#11 module.
	Module string
	// ConfigFile belongs into the environment of every process that uses the tokens,
	// as SOFTHSM2_CONF.
	ConfigFile string
}

// SoftHSMToken is one initialised token.
type SoftHSMToken struct {
	Label string
	// PINFile holds the user PIN (mode 0600).
	PINFile string
	PIN     string
}

// OpenSoftHSM finds SoftHSM and writes its configuration under the data directory.
// It sets SOFTHSM2_CONF for this process; the module reads it at C_Initialize.
func OpenSoftHSM(d *Dir) (*SoftHSM, error) {
	util, err := Find("softhsm2-util")
	if err != nil {
		return nil, err
	}
	module, err := findModule()
	if err != nil {
		return nil, err
	}
	s := &SoftHSM{dir: d, util: util, Module: module, ConfigFile: d.Path("softhsm2.conf")}
	tokens := d.Path("softhsm")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", tokens)
	if err := os.WriteFile(s.ConfigFile, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return s, os.Setenv("SOFTHSM2_CONF", s.ConfigFile)
}

func findModule() (string, error) {
	if path := os.Getenv("CERTMILL_SOFTHSM_MODULE"); path != "" {
		return path, nil
	}
	for _, pattern := range []string{
		"/usr/lib/softhsm/", "/usr/lib/*/softhsm/", "/usr/lib/*/", "/usr/lib64/pkcs11/", "/usr/lib64/softhsm/",
		"/usr/local/lib/softhsm/", "/opt/homebrew/lib/softhsm/",
	} {
		if found, _ := filepath.Glob(pattern + softHSMModule); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", &MissingError{Program: softHSMModule, Package: packages[softHSMModule]}
}

// Token returns the token with this label and initialises it first where it does not
// exist. A process that has initialised the module already sees a new token only
// after C_Finalize and C_Initialize.
func (s *SoftHSM) Token(ctx context.Context, label string) (SoftHSMToken, error) {
	pinFile, pin, err := s.dir.Secret(label + ".pin")
	if err != nil {
		return SoftHSMToken{}, err
	}
	_, soPIN, err := s.dir.Secret(label + ".so-pin")
	if err != nil {
		return SoftHSMToken{}, err
	}
	t := SoftHSMToken{Label: label, PINFile: pinFile, PIN: pin}
	done := s.dir.Path(label + ".initialised")
	if _, err := os.Stat(done); err == nil {
		return t, nil
	}
	// softhsm2-util takes PINs from its arguments or a terminal only: for this moment
	// they show in the process list, which is one reason why this is for one machine.
	out, err := s.run(ctx, "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", soPIN)
	if err != nil {
		return SoftHSMToken{}, fmt.Errorf("initialising the token %s: %w\n%s", label, err, out)
	}
	return t, os.WriteFile(done, nil, 0o600)
}

func (s *SoftHSM) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.util, append([]string{"--module", s.Module}, args...)...)
	// The whole environment: a module that CERTMILL_SOFTHSM_MODULE names may need its own.
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+s.ConfigFile)
	cmd.SysProcAttr = attributes(syscall.SIGTERM, nil)
	out, err := cmd.CombinedOutput()
	// The util repeats its arguments in no message, but better safe than sorry.
	text := strings.TrimSpace(string(out))
	for i, a := range args {
		if strings.HasSuffix(a, "pin") && i+1 < len(args) {
			text = strings.ReplaceAll(text, args[i+1], "(PIN)")
		}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return text, fmt.Errorf("softhsm2-util: %w", err)
	}
	return text, err
}
