// Package testenv gives tests the real servers that a user has: PostgreSQL, Redis,
// NATS with JetStream, and SoftHSM tokens.
//
// Everything is started when it is first asked for and lies in one temporary folder
// per test binary. Nothing outlives the binary, even when it is killed; what a killed
// one left on disk is swept by the next. A binary that uses this package calls Main
// from its TestMain:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// A missing program skips the test with its install line, and fails it when CI=true.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"go.uber.org/goleak"
)

// environment is what the test binary has started so far.
type environment struct {
	mu       sync.Mutex
	dir      *local.Dir
	postgres *local.PostgreSQL
	softhsm  *local.SoftHSM
	failed   map[string]error // a part that failed once is not tried again
	count    atomic.Int64     // names databases, folders and tokens
}

var env = environment{failed: map[string]error{}}

// Main runs the tests, stops what they started, looks for leaked goroutines
// (with the options given) and exits.
func Main(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if err := env.close(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "testenv: goroutines are left after all tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// folder returns the binary's data directory. The caller holds e.mu.
func (e *environment) folder() (*local.Dir, error) {
	if e.dir != nil {
		return e.dir, nil
	}
	sweep()
	path, err := os.MkdirTemp("", "certmill-test-")
	if err != nil {
		return nil, err
	}
	if e.dir, err = local.OpenDir(path); err != nil {
		return nil, err
	}
	return e.dir, nil
}

// sweep removes the folders of binaries that were killed: those whose lock is free.
func sweep() {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), "certmill-test-*"))
	for _, path := range found {
		info, err := os.Stat(filepath.Join(path, "lock"))
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue // just made, and perhaps not locked yet
		}
		if d, err := local.OpenDir(path); err == nil {
			_ = os.RemoveAll(path)
			_ = d.Close()
		}
	}
}

func (e *environment) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	if e.postgres != nil {
		errs = append(errs, e.postgres.Stop())
	}
	if e.dir != nil {
		errs = append(errs, os.RemoveAll(e.dir.Path()), e.dir.Close())
	}
	return errors.Join(errs...)
}

func (e *environment) next() int64 { return e.count.Add(1) }

// require skips or fails the test for err.
func require(t testing.TB, err error) {
	t.Helper()
	var missing *local.MissingError
	switch {
	case err == nil:
	case errors.As(err, &missing) && os.Getenv("CI") != "true":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// startContext bounds the start of a server; a test's own context would end a shared
// server's start with the test.
func startContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}
