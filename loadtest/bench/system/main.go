// Command system measures the whole service on this machine beside the yardstick of
// `certmill loadtest floor`, in one run, and ends with one line of ratios. It brings up
// its own stack as `certmill dev` does: SoftHSM with a P-256 key, two signers,
// PostgreSQL with fsync and synchronous_commit on, HTTPS keep-alive, client
// certificates, every check on. `make bench-system` runs it.
//
// A certificate is what the shipped profile `short` makes: P-256, 24 hours, no
// revocation, so nothing is signed for it but itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/loadtest/observe"
)

// parts are what can be measured, in the order in which they are.
// memory and ledger take long, and are done only when asked for.
var parts = []string{"throughput", "latency", "protocols", "ocsp", "scale", "memory", "ledger"}

// options are the flags.
type options struct {
	binary  string
	out     string
	parts   []string
	rounds  int
	callers int
	hsm     modelHSM
	grown   grownLedger

	memoryFor time.Duration
}

func main() {
	o := options{}
	flag.StringVar(&o.binary, "bin", "bin/certmill", "the program to measure")
	flag.StringVar(&o.out, "out", "bench-system.json", "file for the figures")
	chosen := flag.String("parts", "throughput,latency,protocols,ocsp,scale", "what to measure: of "+strings.Join(parts, ", "))
	flag.DurationVar(&o.memoryFor, "memory-for", 10*time.Minute, "memory: how long the service is kept at capacity")
	flag.IntVar(&o.rounds, "rounds", 3, "how often floor and service take turns")
	flag.IntVar(&o.callers, "callers", 64, "callers of the closed loop, each on a connection of its own")
	flag.IntVar(&o.hsm.cores, "hsm-cores", 4, "scale: cores of each signer's HSM")
	flag.DurationVar(&o.hsm.latency, "hsm-latency", 100*time.Millisecond, "scale: how long a signature takes on one of them")
	flag.Int64Var(&o.grown.rows, "ledger-rows", 10_000_000, "ledger: certificates in the full one")
	flag.StringVar(&o.grown.dir, "ledger-dir", "", "ledger: folder of the stack with the full ledger, which is kept and used again; 10 million certificates take 10 GB and PostgreSQL's log up to 8")
	flag.Parse()
	o.parts = strings.Split(*chosen, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-system:", err)
		os.Exit(1)
	}
}

func (o *options) validate() error {
	for _, p := range o.parts {
		if !slices.Contains(parts, p) {
			return fmt.Errorf("-parts: there are %s, not %q", strings.Join(parts, ", "), p)
		}
	}
	if o.rounds < 1 || o.callers < 1 || o.hsm.cores < 1 || o.grown.rows < 1 || o.hsm.latency < time.Millisecond || o.memoryFor < 10*time.Second {
		return errors.New("-rounds, -callers, -hsm-cores and -ledger-rows are at least 1, -hsm-latency at least 1ms, -memory-for 10s")
	}
	var err error
	o.binary, err = filepath.Abs(o.binary)
	return err
}

func run(ctx context.Context, o *options) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	began := time.Now()
	work, remove, err := stack.TempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	r := &figures{Started: began, Machine: observe.Here(), Parts: o.parts}
	fmt.Printf("%s\n", r.Machine)
	dir := filepath.Join(work, "service")
	if !slices.Equal(o.parts, []string{"ledger"}) { // that has stacks of its own
		if err := measureService(ctx, o, dir, r); err != nil {
			return err
		}
	}
	if slices.Contains(o.parts, "scale") {
		if r.Scale, err = measureScale(ctx, o, dir); err != nil {
			return err
		}
		r.Scale.print()
	}
	if slices.Contains(o.parts, "ledger") {
		if r.Grown, err = measureGrown(ctx, o, work); err != nil {
			return err
		}
		r.Grown.print()
	}
	r.Seconds = time.Since(began).Seconds()
	if err := r.write(o.out); err != nil {
		return err
	}
	fmt.Printf("\nall of it took %.0f s; the figures are in %s\n%s\n", r.Seconds, o.out, r.line())
	if r.Scale != nil && r.Scale.Failed > 0 {
		return fmt.Errorf("%d requests failed while signers came and went, and none should", r.Scale.Failed)
	}
	return nil
}

// measureService measures all that the ordinary stack shows.
func measureService(ctx context.Context, o *options, dir string, r *figures) (err error) {
	s, err := stack.Start(ctx, o.binary, dir, nil, "--signers", "2")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	b := &bench{options: o, stack: s, figures: r}
	for _, step := range []struct {
		part string
		do   func(context.Context) error
	}{{"throughput", b.throughput}, {"latency", b.latency}, {"protocols", b.protocols}, {"ocsp", b.ocsp}, {"memory", b.memory}} {
		if !slices.Contains(o.parts, step.part) {
			continue
		}
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.part, err)
		}
	}
	return b.peaks()
}
