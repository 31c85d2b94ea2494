// Package client is how the command line talks to a gateway: where it is, whom to
// trust and who we are.
package client

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/certmill/certmill/internal/config"
)

// Context says which gateway to use and as whom.
type Context struct {
	// Gateway is the host:port of the gateway's gRPC API.
	Gateway string `yaml:"gateway"`
	// ServerName is the name in the gateway's certificate; empty means the host of gateway.
	ServerName string `yaml:"server_name"`
	// CAFile holds the roots for the gateway's certificate, in PEM; empty means the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile holds our client certificate with its chain, in PEM.
	CertFile string `yaml:"cert_file"`
	// KeyFile holds its private key, in PEM.
	KeyFile string `yaml:"key_file"`
	// TokenFile holds a JWT or an enrollment token, in place of a client certificate.
	TokenFile string `yaml:"token_file"`
	// Timeout bounds a call with its retries.
	Timeout time.Duration `yaml:"timeout"`
}

// Default returns the defaults.
func Default() Context { return Context{Timeout: 15 * time.Second} }

// Validate reports everything that is wrong.
func (c Context) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Gateway); err != nil {
		errs = append(errs, errors.New("gateway must be host:port of a gateway's gRPC API"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("cert_file and key_file go together"))
	}
	if c.Timeout <= 0 {
		errs = append(errs, errors.New("timeout must be positive"))
	}
	return errors.Join(errs...)
}

// ErrNoContext says that no gateway was named anywhere.
var ErrNoContext = errors.New("no gateway is known: start `certmill dev` in this folder, or give --gateway with --ca, --cert and --key, or name a context file by --context or CERTMILL_CONTEXT")

// Find returns the context file to use: the one given, else CERTMILL_CONTEXT, else
// .certmill/cli.yaml in the working directory, else certmill/cli.yaml in the user's
// configuration folder, else "".
func Find(given string) string {
	if given != "" {
		return given
	}
	if env := os.Getenv("CERTMILL_CONTEXT"); env != "" {
		return env
	}
	candidates := []string{filepath.Join(".certmill", "cli.yaml")}
	if dir, err := os.UserConfigDir(); err == nil {
		candidates = append(candidates, filepath.Join(dir, "certmill", "cli.yaml"))
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// Load reads the context of file (as Find returned it), the environment
// (CERTMILL_CLI_GATEWAY and so on) and set ("key=value" from flags). Files that the
// context file names relatively lie beside it.
func Load(file string, set []string) (Context, error) {
	defaults := Default()
	if file != "" {
		// Read for itself first: its relative paths have another base than those of flags.
		fromFile, err := config.Load(unchecked{defaults}, config.Source{Role: "cli", File: file})
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return Context{}, fmt.Errorf("%w; %w", err, ErrNoContext)
			}
			return Context{}, err
		}
		defaults = fromFile.Context
		for _, p := range []*string{&defaults.CAFile, &defaults.CertFile, &defaults.KeyFile, &defaults.TokenFile} {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(filepath.Dir(file), *p)
			}
		}
	}
	loaded, err := config.Load(unchecked{defaults}, config.Source{Role: "cli", Environ: os.Environ(), Set: set})
	if err != nil {
		return Context{}, err
	}
	if loaded.Gateway == "" {
		return Context{}, ErrNoContext
	}
	return loaded.Context, loaded.Context.Validate()
}

// unchecked is a Context that is not complete yet.
type unchecked struct {
	Context `yaml:",inline"`
}

func (unchecked) Validate() error { return nil }
