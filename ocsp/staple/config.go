// Package staple keeps OCSP staples in files fresh, for proxies that do not fetch any
// or fetch badly: it asks the responder, checks the answer as a client would, writes
// the file whole or not at all, hands it to HAProxy's runtime socket, and has others
// reload. While no better answer is to be had, the last valid one stays.
//
// The files are the steps: material.go reads the certificate, fetch.go asks, verify.go
// judges, write.go, haproxy.go and reload.go deliver; stapler.go decides when.
package staple

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/certmill/certmill/internal/config"
)

// Config says which staples are kept. The comments are its manual.
type Config struct {
	// Certificates lists what is stapled.
	Certificates []Certificate `yaml:"certificates"`
	// Interval is how often an answer is asked for: how late a proxy learns of a
	// revocation. An answer is asked for at half of its validity in any case.
	Interval time.Duration `yaml:"interval"`
	// Retry is the wait after the first failure; it doubles up to interval.
	Retry time.Duration `yaml:"retry"`
	// Look is how often the certificates' files are looked at for a renewal.
	Look time.Duration `yaml:"look"`
	// AlarmBefore is how long before its end a staple that could not be renewed counts
	// as stale: in the log, in the metrics and for --check. A quarter of its validity, if
	// that is less.
	AlarmBefore time.Duration `yaml:"alarm_before"`
	// Timeout bounds each request to a responder and each command to HAProxy.
	Timeout time.Duration `yaml:"timeout"`
	// Reload is a command that is run after files were written, program and arguments,
	// without a shell: ["nginx", "-s", "reload"]. Empty: none.
	Reload []string `yaml:"reload"`
	// ReloadTimeout bounds it.
	ReloadTimeout time.Duration `yaml:"reload_timeout"`
	// Telemetry is what the stapler tells of itself.
	Telemetry config.Telemetry `yaml:"telemetry"`
}

// Certificate is one certificate with its staple.
type Certificate struct {
	// Chain is the file of the certificate in PEM, the leaf first; a private key in it is
	// passed over. When it changes, a new staple is fetched at once.
	Chain string `yaml:"chain"`
	// Issuer is a file that holds the issuer's certificate; empty: it is in chain.
	Issuer string `yaml:"issuer"`
	// Staple is the file to write, DER; empty: chain with ".ocsp" added, where HAProxy
	// looks for it.
	Staple string `yaml:"staple"`
	// Responder is the responder's URL; empty: the one in the certificate.
	Responder string `yaml:"responder"`
	// HAProxy lists runtime sockets of HAProxy to hand the staple to: a path, or
	// host:port. The socket needs "level admin".
	HAProxy []string `yaml:"haproxy"`
}

// path is where the staple goes.
func (c *Certificate) path() string {
	if c.Staple != "" {
		return c.Staple
	}
	return c.Chain + ".ocsp"
}

// DefaultConfig returns the defaults; certificates has none.
func DefaultConfig() Config {
	return Config{
		Interval: 10 * time.Minute, Retry: 5 * time.Second, Look: 5 * time.Second, AlarmBefore: 2 * time.Hour,
		Timeout: 10 * time.Second, ReloadTimeout: 30 * time.Second, Telemetry: config.DefaultTelemetry(),
	}
}

// Validate reports everything that is wrong, with the keys' names. It opens no file.
func (c Config) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(len(c.Certificates) > 0, "certificates must list at least one")
	paths := map[string]bool{}
	for i := range c.Certificates {
		one := &c.Certificates[i]
		require(one.Chain != "", "certificates[%d].chain is missing", i)
		require(!paths[one.path()], "certificates[%d]: %s is the staple of another one", i, one.path())
		require(one.path() != one.Chain && one.path() != one.Issuer, "certificates[%d].staple would overwrite a certificate", i)
		paths[one.path()] = true
		if one.Responder != "" {
			u, err := url.Parse(one.Responder)
			require(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "certificates[%d].responder is not a URL", i)
		}
	}
	for _, d := range []struct {
		key      string
		v        time.Duration
		min, max time.Duration
	}{
		{"interval", c.Interval, time.Second, 7 * 24 * time.Hour},
		{"retry", c.Retry, 100 * time.Millisecond, time.Hour},
		{"look", c.Look, 10 * time.Millisecond, time.Hour},
		{"alarm_before", c.AlarmBefore, 0, 7 * 24 * time.Hour},
		{"timeout", c.Timeout, 100 * time.Millisecond, 5 * time.Minute},
		{"reload_timeout", c.ReloadTimeout, 100 * time.Millisecond, 10 * time.Minute},
	} {
		require(d.v >= d.min && d.v <= d.max, "%s must be %s to %s", d.key, d.min, d.max)
	}
	require(len(c.Reload) == 0 || c.Reload[0] != "", "reload names no program")
	return errors.Join(errs...)
}
