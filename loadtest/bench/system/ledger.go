package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/loadtest/fill"
	"github.com/certmill/certmill/loadtest/report"
)

// grownLedger says how the ledger is filled before the service is measured on it.
type grownLedger struct {
	rows int64
	// dir is the stack that has it; it stays for the next run. Empty: one that goes.
	dir string
}

// filledOver is the time in which the rows were issued, by their own account: less than
// their lifetime of a day, so that nearly all share the partition, and its indexes, with
// what is issued next. That is the worst case.
const filledOver = "20h"

// grown is what a ledger that has grown costs beside one that is nearly empty.
type grown struct {
	Rows    int64                 `json:"rows"`
	Storage []ledger.TableStorage `json:"storage"`
	Rounds  []turn                `json:"rounds"`
	// Ratio is the rate on the full one over that on the empty one, the median of the
	// rounds.
	Ratio float64 `json:"ratio"`
}

// turn is the service on the two ledgers, one after the other.
type turn struct {
	Empty loaded `json:"empty"`
	Full  loaded `json:"full"`
}

func (t turn) ratio() float64 { return t.Full.Rate / t.Empty.Rate }

// loaded is one run.
type loaded struct {
	Rate float64 `json:"per_second"`
	// CPU is microseconds of a certificate, all roles and servers together; PostgreSQL is
	// that server's part.
	CPU        float64 `json:"cpu_us"`
	PostgreSQL float64 `json:"postgresql_cpu_us"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
}

func newLoaded(run *report.Run) loaded {
	l := loaded{Rate: run.RateReached, CPU: 1000 * run.CPUPerUnit(), P50: run.Latency.P50, P99: run.Latency.P99}
	for _, role := range run.Use.Roles {
		if role.Name == "postgres" {
			l.PostgreSQL = 1e6 * role.Cores / run.RateReached
		}
	}
	return l
}

// measureGrown keeps two stacks up, fills the ledger of one, and lets them take turns.
func measureGrown(ctx context.Context, o *options, work string) (g *grown, err error) {
	dir := o.grown.dir
	if dir == "" {
		dir = filepath.Join(work, "full")
	}
	full, err := stack.Start(ctx, o.binary, dir, nil, "--signers", "2")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, full.Stop()) }()
	g = &grown{}
	if err := g.fill(full, o.grown.rows); err != nil {
		return nil, err
	}
	empty, err := stack.Start(ctx, o.binary, filepath.Join(work, "empty"), nil, "--signers", "2")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, empty.Stop()) }()
	load := func(s *stack.Stack) (loaded, error) {
		run, err := s.Load(ctx, certificates("--callers", strconv.Itoa(o.callers))...)
		if err == nil {
			err = stack.AllAnswered(run)
		}
		if err != nil {
			return loaded{}, err
		}
		return newLoaded(run), nil
	}
	for n := range o.rounds + 1 { // the first does not count
		var t turn
		var err error
		if t.Empty, err = load(empty); err == nil {
			t.Full, err = load(full)
		}
		if err != nil {
			return nil, err
		}
		if n > 0 {
			g.Rounds = append(g.Rounds, t)
			fmt.Printf("  round %d: nearly empty %.0f/s, %d rows %.0f/s (%.2f)\n", n, t.Empty.Rate, g.Rows, t.Full.Rate, t.ratio())
		}
	}
	g.Ratio = median(g.Rounds, turn.ratio)
	return g, nil
}

// fill brings the ledger to so many certificates, and reads what they take. A folder of
// an earlier run may have them all.
func (g *grown) fill(s *stack.Stack, rows int64) error {
	result, err := fillWith(s, 1)
	if err != nil {
		return err
	}
	g.Rows = max(1, stored(result))
	if missing := rows - g.Rows; missing > 0 {
		fmt.Printf("filling the ledger with %d certificates\n", missing)
		if result, err = fillWith(s, missing); err != nil {
			return err
		}
		g.Rows = rows // the database's estimate lags behind
	}
	g.Storage = result.Storage
	return nil
}

func fillWith(s *stack.Stack, rows int64) (fill.Result, error) {
	var r fill.Result
	cmd := s.Command("-o", "json", "loadtest", "fill", "--dev", s.Dir, "--rows", strconv.FormatInt(rows, 10), "--over", filledOver)
	cmd.Stderr = os.Stderr
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return r, fmt.Errorf("loadtest fill: %w", err)
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return r, fmt.Errorf("reading what loadtest fill says: %w", err)
	}
	return r, nil
}

// stored is the database's estimate of its certificates.
func stored(r fill.Result) int64 {
	for _, t := range r.Storage {
		if t.Table == "certificates" {
			return t.Rows
		}
	}
	return 0
}

func (g *grown) print() {
	fmt.Printf("\na ledger of %d certificates beside one that is nearly empty: %.2f of its rate\n", g.Rows, g.Ratio)
	for _, side := range []struct {
		name string
		of   func(turn) loaded
	}{{"nearly empty", func(t turn) loaded { return t.Empty }}, {"full", func(t turn) loaded { return t.Full }}} {
		of := func(f func(loaded) float64) float64 {
			return median(g.Rounds, func(t turn) float64 { return f(side.of(t)) })
		}
		fmt.Printf("  %-12s %6.0f/s  CPU %4.0f µs, of it PostgreSQL %3.0f µs  p50 %5.1f ms  p99 %5.1f ms\n", side.name,
			of(func(l loaded) float64 { return l.Rate }), of(func(l loaded) float64 { return l.CPU }), of(func(l loaded) float64 { return l.PostgreSQL }),
			of(func(l loaded) float64 { return l.P50 }), of(func(l loaded) float64 { return l.P99 }))
	}
	for _, t := range g.Storage {
		if t.Rows < g.Rows/10 {
			continue
		}
		each := func(bytes int64) float64 { return float64(bytes) / float64(g.Rows) }
		fmt.Printf("  %s: %.0f octets each", t.Table, each(t.Total()))
		fmt.Printf(", of them rows %.0f", each(t.Bytes))
		for _, i := range t.Indexes {
			fmt.Printf(", %s %.0f", i.Index, each(i.Bytes))
		}
		fmt.Println()
	}
}

// octets is what a certificate takes with its indexes.
func (g *grown) octets() float64 {
	for _, t := range g.Storage {
		if t.Table == "certificates" {
			return float64(t.Total()) / float64(g.Rows)
		}
	}
	return 0
}
