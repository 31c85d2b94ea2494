// Package dev runs the whole service on one machine with the real parts: PostgreSQL
// and Redis as child processes, NATS inside this process, SoftHSM, and every role as
// a child process of the same binary that may be killed and comes back. All data
// lies under one folder; a second start goes on with it.
//
// The files are the steps: servers, settings (what each role is told), bootstrap
// (schema, CA, first certificates), supervise, announce, status, demo.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/sysmon"
)

// Options are the choices for Run.
type Options struct {
	// Dir is the data directory.
	Dir string
	// Signers is how many signer processes to run.
	Signers int
	// LedgerURL is a database to use in place of a PostgreSQL of our own;
	// LedgerPasswordFile holds its password.
	LedgerURL, LedgerPasswordFile string
	// Demo shows the main job once everything is up; Once ends after it.
	Demo, Once bool
	// Quiet leaves out the live line.
	Quiet bool
	// Out is where a person reads along; Terminal says that it is one.
	Out      io.Writer
	Terminal bool
}

// StepError names the step that failed.
type StepError struct {
	Step string
	Err  error
}

// Error names the step first.
func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

// dev is one run.
type dev struct {
	Options
	dir    *local.Dir
	binary string
	shown  string // how a person calls the binary here
	first  bool   // no CA was there at the start
	quiet  bool   // sysmon of each process of certmill may be late
	servers
	ports ports
	roles []*child
	began time.Time

	printing sync.Mutex
}

// Run brings everything up, says what is where, and stays until ctx ends; then it
// stops everything in order and returns nil. What fails is a *StepError.
func Run(ctx context.Context, o Options) (err error) {
	d := &dev{Options: o, began: time.Now()}
	if d.binary, err = os.Executable(); err != nil {
		return err
	}
	d.shown = shownAs(d.binary)
	if d.dir, err = local.OpenDir(o.Dir); err != nil {
		if errors.Is(err, local.ErrLocked) {
			return fmt.Errorf("%w: is another `certmill dev` running? Its addresses are in %s", err, filepath.Join(o.Dir, "cli.yaml"))
		}
		return err
	}
	defer func() { err = errors.Join(err, d.dir.Close()) }()
	defer func() { err = errors.Join(err, d.stopServers()) }()
	defer d.stopRoles()
	if err := local.Batch(); err != nil {
		d.say("NOTE: it may be slower than it could be: %v", err)
	}
	if d.quiet = sysmon.ByDefault() == nil; !d.quiet {
		local.LateTimers()
	}
	if os.Getenv("GOMAXPROCS") == "" {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(share())) // NATS runs in this process
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"starting PostgreSQL, Redis, NATS and SoftHSM", d.startServers},
		{"writing the roles' configuration", d.writeSettings},
		{"migrating the ledger", d.migrate},
		{"setting up the CA", d.setUpCA},
		{"starting the roles", d.startRoles},
		{"waiting for the roles", d.waitReady},
	} {
		d.say("%s …", step.name)
		if err := step.do(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // Ctrl-C: what follows from it is no failure
			}
			return &StepError{step.name, err}
		}
	}
	return d.work(ctx)
}

// work is what happens once everything is up.
func (d *dev) work(ctx context.Context) error {
	d.say("everything is up after %s", time.Since(d.began).Round(100*time.Millisecond))
	switch {
	case d.Demo:
		if err := d.demo(ctx); err != nil && (ctx.Err() == nil || d.Once) {
			return err
		}
		if d.Once {
			return nil
		}
	case d.first:
		if err := d.firstCertificate(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	d.announce()
	renewals := make(chan struct{})
	go func() {
		defer close(renewals)
		d.renewOwn(ctx)
	}()
	d.follow(ctx)
	<-renewals
	d.say("stopping …")
	return nil
}

// say writes a line, over the live line where there is one.
func (d *dev) say(format string, args ...any) { d.print(fmt.Sprintf(format, args...) + "\n") }

// print writes text as it is. It is safe for concurrent use.
func (d *dev) print(text string) {
	if d.Terminal {
		text = "\r\x1b[K" + text
	}
	d.printing.Lock()
	defer d.printing.Unlock()
	_, _ = io.WriteString(d.Out, text) // nobody reads along: the service goes on
}

// shownAs returns how a person in this folder would call the binary.
func shownAs(binary string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, binary); err == nil && len(rel) < len(binary) {
			if filepath.Base(rel) == rel {
				return "./" + rel // a shell looks a bare name up in PATH
			}
			return rel
		}
	}
	return binary
}

// path joins names to the data directory as a person would write it.
func (d *dev) path(names ...string) string {
	return filepath.Join(append([]string{d.Dir}, names...)...)
}
