package hsm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Config says which token to use and how.
type Config struct {
	// Module is the path of the vendor's PKCS#11 library, for example
	// /usr/lib/softhsm/libsofthsm2.so. Several tokens of a process may name the same one.
	Module string `yaml:"module"`
	// InitParameters is a text that the module wants from C_Initialize in pReserved. NSS
	// softokn needs it: configdir='sql:/var/lib/certmill/nss' certPrefix='' keyPrefix=''
	// secmod='' flags=. Others need none.
	InitParameters string `yaml:"init_parameters"`
	// TokenLabel chooses the token by its label.
	TokenLabel string `yaml:"token_label"`
	// TokenSerial chooses the token by its serial number. With TokenLabel, both must match.
	TokenSerial string `yaml:"token_serial"`
	// URI chooses the token by an RFC 7512 URI, pkcs11:token=…;serial=…, in place of
	// TokenLabel and TokenSerial. Its module-path and pin-source=file:… stand in for
	// module and pin_file; a pin-value is refused, since a PIN has no place in a
	// configuration file.
	URI string `yaml:"uri"`
	// PINFile holds the user PIN; a trailing newline is cut off. It is read at every
	// login, so that the PIN does not rest in the memory of the process.
	PINFile string `yaml:"pin_file"`
	// PINEnv names an environment variable that holds the user PIN. With neither
	// pin_file nor pin_env the token must have a PIN pad or ask for no login.
	PINEnv string `yaml:"pin_env"`
	// Sessions is how many signatures the token makes at once. One session keeps one
	// core of an HSM busy.
	Sessions int `yaml:"sessions"`
	// SessionKeys signs with a copy of the key that lives in the session, still
	// sensitive and not extractable (C_CopyObject). It spares tokens such as SoftHSM the
	// look at the stored key on every use. Where the token refuses the copy, the stored
	// key is used.
	SessionKeys bool `yaml:"session_keys"`
	// CallTimeout bounds the wait for one signature, and where a software token makes up
	// to 16 in one call, for these. A call that takes longer is given up: it cannot be
	// ended, but nobody waits for it and its session is not used again.
	CallTimeout time.Duration `yaml:"call_timeout"`
	// OpenTimeout bounds the start of the module and of the sessions, and the making of a key.
	OpenTimeout time.Duration `yaml:"open_timeout"`
	// MaxAbandoned bounds the calls given up that are still stuck in the module. Beyond
	// it the token is stuck: the signer ends, so that a new process takes its place.
	MaxAbandoned int `yaml:"max_abandoned"`
	// BreakerFailures is how many failures in a row take the token out until a test
	// signature succeeds. A token that is gone is taken out at the first.
	BreakerFailures int `yaml:"breaker_failures"`
	// ProbeInterval is how often a token that was taken out is tried again.
	ProbeInterval time.Duration `yaml:"probe_interval"`
	// IdleCheck is how long a token may be idle before a test signature shows that it
	// still works. Zero switches the check off.
	IdleCheck time.Duration `yaml:"idle_check"`
	// ReinitInterval is the least time between two re-initialisations of a module that
	// another token of this process is using without trouble.
	ReinitInterval time.Duration `yaml:"reinit_interval"`
}

// DefaultConfig returns the defaults; a token must still be named.
func DefaultConfig() Config {
	return Config{
		Sessions:        4,
		SessionKeys:     true,
		CallTimeout:     5 * time.Second,
		OpenTimeout:     30 * time.Second,
		MaxAbandoned:    8,
		BreakerFailures: 5,
		ProbeInterval:   time.Second,
		IdleCheck:       10 * time.Second,
		ReinitInterval:  30 * time.Second,
	}
}

// Validate returns every error of the configuration, joined.
func (c Config) Validate() error {
	_, err := c.resolve()
	return err
}

// settings is a Config with its URI taken apart.
type settings struct {
	Config
	token URI // what the token must match
}

func (c Config) resolve() (settings, error) {
	s := settings{Config: c, token: URI{Token: c.TokenLabel, Serial: c.TokenSerial}}
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if c.URI != "" {
		if c.TokenLabel != "" || c.TokenSerial != "" {
			bad("uri", "names the token together with token_label or token_serial; give one of them")
		}
		u, err := ParseURI(c.URI)
		if err != nil {
			bad("uri", "%v", err)
		}
		s.token = u
		if s.Module == "" {
			s.Module = u.ModulePath
		}
		if s.PINFile == "" && u.PINSource != "" {
			file, ok := strings.CutPrefix(u.PINSource, "file:")
			if !ok {
				bad("uri", "pin-source must be file:<path>")
			}
			s.PINFile = strings.TrimPrefix(file, "//")
		}
	}
	if s.Module == "" {
		bad("module", "is empty; give the path of the PKCS#11 library")
	}
	if !s.token.namesToken() && len(errs) == 0 {
		bad("token_label", "no token is named; give token_label, token_serial or uri")
	}
	if s.PINFile != "" && c.PINEnv != "" {
		bad("pin_file", "is set together with pin_env; give one of them")
	}
	if c.Sessions < 1 || c.Sessions > 1024 {
		bad("sessions", "must be 1 to 1024, not %d", c.Sessions)
	}
	if c.MaxAbandoned < 1 {
		bad("max_abandoned", "must be at least 1, not %d", c.MaxAbandoned)
	}
	if c.BreakerFailures < 1 {
		bad("breaker_failures", "must be at least 1, not %d", c.BreakerFailures)
	}
	for _, d := range []struct {
		key string
		d   time.Duration
	}{{"call_timeout", c.CallTimeout}, {"open_timeout", c.OpenTimeout}, {"probe_interval", c.ProbeInterval}, {"reinit_interval", c.ReinitInterval}} {
		if d.d <= 0 {
			bad(d.key, "must be positive, not %s", d.d)
		}
	}
	if c.IdleCheck < 0 {
		bad("idle_check", "must not be negative")
	}
	return s, errors.Join(errs...)
}

// name is what the configuration calls the token.
func (s *settings) name() string {
	if s.token.Token != "" {
		return s.token.Token
	}
	return s.token.Serial
}

// pin reads the user PIN where the configuration says. Empty means that the token
// asks for it itself (CKF_PROTECTED_AUTHENTICATION_PATH).
func (s *settings) pin() (string, error) {
	switch {
	case s.PINFile != "":
		b, err := os.ReadFile(s.PINFile)
		if err != nil {
			return "", fmt.Errorf("reading the PIN: %w", err)
		}
		return nonEmpty(strings.TrimRight(string(b), "\r\n"), "the file "+s.PINFile)
	case s.PINEnv != "":
		return nonEmpty(os.Getenv(s.PINEnv), "the environment variable "+s.PINEnv)
	default:
		return "", nil
	}
}

func nonEmpty(pin, where string) (string, error) {
	if pin == "" {
		return "", fmt.Errorf("%s holds no PIN", where)
	}
	return pin, nil
}
