// Package roles wires each role of the service: configuration, telemetry, what it
// opens and in which order it stops. It decides nothing else.
package roles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/hardening"
	"github.com/certmill/certmill/internal/telemetry"
)

// Role is one role for the command line and the configuration reference.
type Role struct {
	Name    string // in environment variables and logs
	Command string // as it is started
	Summary string
	// Defaults is the role's configuration struct with its defaults; Elements are those
	// of structs in its lists.
	Defaults any
	Elements []any
	// Check loads and validates a configuration.
	Check func(Source) error
}

// Source says where a role's configuration comes from, beside the environment.
type Source struct {
	File string
	Set  []string // "key=value"
}

// load reads a role's configuration.
func load[T config.Validator](role string, defaults T, elements []any, s Source) (T, error) {
	return config.Load(defaults, config.Source{Role: role, File: s.File, Environ: os.Environ(), Set: s.Set, Elements: elements})
}

// part is a role at work.
type part interface {
	Run(ctx context.Context) error
	Ready() error
}

// errStarting is what /readyz says while a role waits for what it needs.
var errStarting = errors.New("starting: waiting for what this role needs; the log says for what")

// traceFlush bounds the delivery of the last traces.
const traceFlush = 3 * time.Second

// ballast is memory that a role holds and never touches, so that it takes none of the
// machine's, in octets. The garbage collector counts it as live and begins at twice what
// is live (GOGC): without it a role with 10 MB of its own would collect each time another
// 10 MB have gone through it, which at 5,000 certificates a second is ten times a second
// in a gateway. A higher GOGC would do the same, and let a role whose own memory is large,
// as with thousands of connections, take several times that. It counts towards GOMEMLIMIT
// and in Go's own metrics of the heap.
const ballast = 40 << 20

// serve runs a role with its telemetry until ctx ends. The operator's listener opens
// first, so that a role that waits for its ledger can be seen waiting, and closes
// last, so that a shutdown can be watched.
func serve(ctx context.Context, role string, cfg config.Telemetry, work func(context.Context, *telemetry.Telemetry, func(part)) error) error {
	held := make([]byte, ballast)
	defer runtime.KeepAlive(held)
	tel, err := telemetry.New(role, cfg)
	if err != nil {
		return err
	}
	if err := hardening.Seal(); err != nil {
		tel.Log.Warn("what this process holds in memory is less well kept", "error", err)
	}
	var running atomic.Pointer[part]
	ready := func() error {
		if p := running.Load(); p != nil {
			return (*p).Ready()
		}
		return errStarting
	}
	version, revision := telemetry.Build()
	tel.Log.Info("starting", "version", version, "revision", revision, "operator_listener", cfg.Listen)
	err = inOrder(ctx,
		func(ctx context.Context) error { return tel.Serve(ctx, ready) },
		func(ctx context.Context) error { return work(ctx, tel, func(p part) { running.Store(&p) }) },
	)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceFlush)
	defer cancel()
	if ferr := tel.Shutdown(flush); ferr != nil {
		// The work is done and in the ledger: lost traces do not make it a failure.
		tel.Log.Warn("the last traces are lost", "error", ferr)
	}
	if err != nil {
		tel.Log.Error("stopped by an error", "error", err)
		return err
	}
	tel.Log.Info("stopped")
	return nil
}

// inOrder runs the steps side by side. When ctx ends, or one of them returns, they
// are stopped from the last to the first, each waited for before the next: a step
// may use those before it until it has returned.
func inOrder(ctx context.Context, steps ...func(context.Context) error) error {
	if len(steps) == 0 {
		<-ctx.Done()
		return nil
	}
	under, stop := context.WithCancel(context.WithoutCancel(ctx))
	above, failed := context.WithCancel(ctx)
	defer failed()
	var group errgroup.Group
	group.Go(func() error {
		defer failed() // the ones above cannot go on without this one
		return steps[0](under)
	})
	err := inOrder(above, steps[1:]...)
	stop()
	return errors.Join(err, group.Wait())
}

// retryPause lies between two tries to reach what a role needs.
const retryPause = time.Second

// keepTrying calls open until it succeeds, ctx ends, or it fails with what waiting
// cannot mend. It logs the first failure and then one in thirty.
func keepTrying[T any](ctx context.Context, tel *telemetry.Telemetry, what string, open func(context.Context) (T, error), passing func(error) bool) (T, error) {
	for try := 0; ; try++ {
		got, err := open(ctx)
		if err == nil || !passing(err) || ctx.Err() != nil {
			return got, err
		}
		if try%30 == 0 {
			tel.Log.Warn("waiting for "+what, "error", err)
		}
		timer := time.NewTimer(retryPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return got, fmt.Errorf("waiting for %s: %w", what, err)
		case <-timer.C:
		}
	}
}
