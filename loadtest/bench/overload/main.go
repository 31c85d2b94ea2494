// Command overload asks a whole service for five times what its signers can sign and
// says what became of it: `make bench-overload`. It brings up its own stack as
// `certmill dev` does, gateway, signers, NATS and PostgreSQL as processes, and gives
// SoftHSM the cores and the latency of a hardware HSM: so it is the signers that are
// too slow, and not this machine.
//
// Three callers take part. One floods, one asks politely for a tenth of the capacity,
// both from this process. The third has the identity of the first and asks now and
// then from a process of its own: what it measures is the service's answer, without
// the queues of a generator that is busy, which runs at a lower priority than all others.
// The service's own measure, Server-Timing, stands beside it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/certmill/certmill/loadtest/bench/stack"
)

// options are the flags.
type options struct {
	binary  string
	out     string
	length  time.Duration
	factor  float64
	signers int
	cores   int
	latency time.Duration

	probe probeOptions
}

func main() {
	var o options
	flag.StringVar(&o.binary, "bin", "bin/certmill", "the program to measure")
	flag.StringVar(&o.out, "out", "bench-overload.json", "file for the figures")
	flag.DurationVar(&o.length, "d", 30*time.Second, "how long the flood lasts")
	flag.Float64Var(&o.factor, "factor", 5, "how many times the capacity it asks for")
	flag.IntVar(&o.signers, "signers", 2, "signers, each with an HSM of its own")
	flag.IntVar(&o.cores, "hsm-cores", 4, "cores of each HSM")
	flag.DurationVar(&o.latency, "hsm-latency", 20*time.Millisecond, "how long a signature takes on one of them")
	o.probe.add(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := func() error { return run(ctx, &o) }
	if o.probe.on {
		do = func() error { return probe(ctx, &o.probe) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-overload:", err)
		os.Exit(1)
	}
}

func (o *options) validate() error {
	if o.length < 5*time.Second || o.factor < 1 || o.signers < 1 || o.cores < 1 || o.latency < time.Millisecond {
		return errors.New("-d is at least 5s, -factor, -signers and -hsm-cores at least 1, -hsm-latency at least 1ms")
	}
	var err error
	o.binary, err = filepath.Abs(o.binary)
	return err
}

// nominal is what the HSMs sign a second.
func (o *options) nominal() float64 {
	return float64(o.signers*o.cores) / o.latency.Seconds()
}

func run(ctx context.Context, o *options) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	work, remove, err := stack.TempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	shim, env, err := stack.ModelHSM(filepath.Join(work, "hsm"))
	if err != nil {
		return err
	}
	s, err := stack.Start(ctx, o.binary, filepath.Join(work, "service"), env, "--signers", fmt.Sprint(o.signers))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	b := &bench{options: o, stack: s}
	if err := b.enroll(ctx); err != nil {
		return err
	}
	// From here on; while the CA was made the HSM was fast.
	if err := shim.Set(fmt.Sprintf("C_Sign cores %d %d", o.cores, o.latency.Milliseconds())); err != nil {
		return err
	}
	f, err := b.measure(ctx)
	if err != nil {
		return err
	}
	f.print()
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, append(data, '\n'), 0o644); err != nil {
		return err
	}
	if missed := f.missed(); len(missed) > 0 {
		return fmt.Errorf("not held: %s", strings.Join(missed, "; "))
	}
	return nil
}
