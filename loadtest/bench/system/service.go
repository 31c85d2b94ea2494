package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/loadtest/bench/cryptocost"
	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/signer/hsm"
)

// bench measures one running stack.
type bench struct {
	*options
	*figures
	stack *stack.Stack
}

// The time of one measurement, its warm-up included, and the warm-up. A stack that has
// just started is slower: connections, plans and caches are new.
const (
	measured = "7s"
	warmup   = "2s"
	// each is how long one operation of the cryptography is measured, three of them a
	// round.
	each = 700 * time.Millisecond
)

// certificates are the flags that say what to ask for. One answer in twenty is checked
// in full, each for its serial.
func certificates(args ...string) []string {
	return slices.Concat(args, stack.Certificates, []string{"-d", measured, "--warmup", warmup})
}

// throughput lets the floor and the service take turns, so that what else the machine
// does meets both, and says the cost of a certificate beside its cryptography.
func (b *bench) throughput(ctx context.Context) (err error) {
	mathematics, done, err := openCrypto(ctx, filepath.Join(b.stack.Dir, "..", "crypto"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	callers := strconv.Itoa(b.callers)
	t := &throughput{Callers: b.callers}
	// Once without counting.
	if _, err := b.stack.Load(ctx, certificates("--callers", callers)...); err != nil {
		return err
	}
	for range b.rounds {
		cost, err := mathematics.Measure(ctx, each)
		if err != nil {
			return err
		}
		yardstick, err := stack.Load(ctx, b.binary, "--target", "floor", "--callers", callers, "-d", "6s", "--warmup", "1s")
		if err != nil {
			return err
		}
		ours, err := b.stack.Load(ctx, certificates("--callers", callers)...)
		if err != nil {
			return err
		}
		if err := stack.AllAnswered(ours); err != nil {
			return err
		}
		t.Rounds = append(t.Rounds, newRound(cost, yardstick, ours))
		fmt.Printf("  round %d: %s\n", len(t.Rounds), t.Rounds[len(t.Rounds)-1])
	}
	for i, op := range mathematics.Operations {
		t.Operations = append(t.Operations, operation{
			Name: op.Name,
			CPU:  median(t.Rounds, func(r round) float64 { return r.Crypto.Operations[i] }),
			Own:  median(t.Rounds, func(r round) float64 { return r.Crypto.Own[i] }),
		})
	}
	t.summarise()
	b.Throughput = t
	t.print()
	return nil
}

// openCrypto opens a token of its own for the measurement of the cryptography.
func openCrypto(ctx context.Context, path string) (*cryptocost.Bench, func() error, error) {
	dir, err := local.OpenDir(path)
	if err != nil {
		return nil, nil, err
	}
	softhsm, err := local.OpenSoftHSM(dir)
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	token, err := softhsm.Token(ctx, "bench")
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = softhsm.Module, token.Label, token.PINFile
	c, err := cryptocost.Open(ctx, cfg)
	if err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	// The stack's processes have an environment of their own: this one is ours again.
	return c, func() error { return errors.Join(c.Close(), dir.Close(), os.Unsetenv("SOFTHSM2_CONF")) }, nil
}

// clients is how many connections the open loop has: so many requests may be under way at
// one time before one waits for a connection, which an independent client would not.
const clients = 128

// latency asks for half of what the closed loop reached, as independent clients do.
func (b *bench) latency(ctx context.Context) error {
	if b.Throughput == nil {
		return errors.New("needs throughput before it")
	}
	rate := b.Throughput.Rate / 2
	run, err := b.stack.Load(ctx, append(certificates("--rate", strconv.FormatFloat(rate, 'f', 0, 64), "--connections", strconv.Itoa(clients)), "-d", "15s", "--warmup", "3s")...)
	if err != nil {
		return err
	}
	b.Latency = newLatency(rate, run)
	b.Latency.print()
	return nil
}

// protocols compares the ways to ask, each with as many certificates under way. They take
// turns as floor and service do.
func (b *bench) protocols(ctx context.Context) error {
	const batch = 32
	ways := []struct {
		name string
		args []string
	}{
		{unary, []string{"--target", "grpc", "--callers", strconv.Itoa(b.callers)}},
		{"gRPC stream", []string{"--target", "stream", "--callers", strconv.Itoa(b.callers)}},
		{"gRPC batch", []string{"--target", "batch", "--batch", strconv.Itoa(batch), "--callers", strconv.Itoa(max(1, b.callers/batch))}},
		{"REST", []string{"--target", "rest", "--callers", strconv.Itoa(b.callers)}},
	}
	b.Protocols = make([]protocol, len(ways))
	for range b.rounds {
		for i, w := range ways {
			run, err := b.stack.Load(ctx, append(certificates(w.args...), "-d", "4s", "--warmup", "1s")...)
			if err != nil {
				return err
			}
			if err := stack.AllAnswered(run); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			p := &b.Protocols[i]
			p.Name = w.name
			p.Rounds = append(p.Rounds, asked{Rate: run.RateReached, P50: run.Latency.P50, P99: run.Latency.P99, CPU: 1000 * run.CPUPerUnit(), Generator: run.Use.Own})
		}
	}
	summariseProtocols(b.Protocols)
	b.printProtocols()
	return nil
}

// ocsp says what a certificate costs whose OCSP answer is signed ahead beside it.
func (b *bench) ocsp(ctx context.Context) error {
	run, err := b.stack.Load(ctx, "--profile", "server", "--callers", strconv.Itoa(b.callers), "-d", measured, "--warmup", warmup)
	if err != nil {
		return err
	}
	if err := stack.AllAnswered(run); err != nil {
		return err
	}
	b.OCSP = &withOCSP{Rate: run.RateReached, CPU: 1000 * run.CPUPerUnit()}
	b.OCSP.print()
	return nil
}

// peaks looks at the largest that each role has been.
func (b *bench) peaks() error {
	all, err := b.stack.Memory()
	if err != nil {
		return err
	}
	b.Memory = map[string]int64{}
	var parts []string
	for name, m := range all {
		b.Memory[name] = m.Peak
		parts = append(parts, fmt.Sprintf("%s %.0f MB", name, float64(m.Peak)/1e6))
	}
	slices.Sort(parts)
	fmt.Printf("\nmemory, the most since the start: %s\n", strings.Join(parts, ", "))
	return nil
}
