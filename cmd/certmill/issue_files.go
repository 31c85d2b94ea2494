package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
)

// lifetimeFlag is a duration that may be given in days: 30d, 1d12h, 90m.
type lifetimeFlag struct{ profile.Duration }

// Set implements pflag.Value.
func (l *lifetimeFlag) Set(s string) (err error) {
	l.Duration, err = profile.ParseDuration(s)
	return err
}

// String implements pflag.Value.
func (l *lifetimeFlag) String() string {
	if l.Duration == 0 {
		return ""
	}
	return l.Duration.String()
}

// Type implements pflag.Value.
func (*lifetimeFlag) Type() string { return "duration" }

// checkOut finds out whether the certificate can be written before anybody is asked
// for one.
func (r *requestFlags) checkOut() error {
	if r.out == "" || r.out == "-" {
		return nil
	}
	switch info, err := os.Stat(r.out); {
	case err == nil && !r.force && info.Mode().IsRegular():
		return usage("%s exists: give another --out, or --force to overwrite it", r.out)
	case err == nil:
		f, err := os.OpenFile(r.out, os.O_WRONLY, 0)
		if err != nil {
			return usage("--out cannot be written: %w", err)
		}
		return f.Close()
	}
	f, err := os.CreateTemp(filepath.Dir(r.out), ".certmill-*")
	if err != nil {
		return usage("--out %s cannot be written: %w", r.out, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// writeFile creates a file; it overwrites one only with --force.
func (r *requestFlags) writeFile(path string, data []byte, mode os.FileMode) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if r.force || path == os.DevNull || isDevice(path) {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, mode)
	if errors.Is(err, fs.ErrExist) {
		return usage("%s exists: choose another file, or --force to overwrite it", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// isDevice reports whether a path is there and no ordinary file, as /dev/stdout is.
func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular()
}

// failed decides what becomes of the key that was made for a request that failed. One
// that was refused is of no use. But where the answer may have been lost, there may be
// a certificate for it: the key is kept with its CSR, and the error says how to ask for
// the same certificate again.
func (r *requestFlags) failed(cause error, csr []byte) error {
	if r.keyMade == "" {
		return cause
	}
	switch problem.KindOf(cause) {
	case problem.Unavailable, problem.Overloaded, problem.Internal:
	default:
		r.discardKey()
		return cause
	}
	csrFile := strings.TrimSuffix(r.keyMade, ".key") + ".csr"
	if err := os.WriteFile(csrFile, csr, 0o600); err != nil {
		return errors.Join(cause, fmt.Errorf("the key %s is kept, its CSR cannot be: %w", r.keyMade, err))
	}
	again := []string{"certmill " + r.command + " --csr", csrFile, "--request-id", r.requestID}
	for _, f := range []struct{ flag, value string }{
		{"--profile", r.profile}, {"--lifetime", r.lifetime.String()}, {"--owner", r.owner}, {"--service", r.service}, {"--environment", r.environment}, {"--out", r.out},
	} {
		if f.value != "" {
			again = append(again, f.flag, f.value)
		}
	}
	return &lostAnswer{cause: cause, key: r.keyMade, again: strings.Join(again, " "), local: r.local}
}

// discardKey removes a key that was made for nothing.
func (r *requestFlags) discardKey() {
	if r.keyMade != "" {
		_ = os.Remove(r.keyMade)
	}
}

// lostAnswer is a failure after which the certificate may exist all the same.
type lostAnswer struct {
	cause      error
	key, again string
	local      bool // no gateway was asked
}

// Error is the cause's.
func (e *lostAnswer) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *lostAnswer) Unwrap() error { return e.cause }

// advice says how to get the certificate that may exist.
func (e *lostAnswer) advice() string {
	first := "→ is the gateway up (`certmill dev`, or its /readyz)? "
	if e.local {
		first = "→ "
	}
	return first + "The certificate may have been issued: the key is kept in " + e.key +
		"; ask again for the same one with\n  " + e.again
}
