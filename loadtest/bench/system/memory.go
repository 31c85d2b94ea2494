package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/certmill/certmill/loadtest/report"
)

// growth is what a long run at capacity does to the memory of the roles.
type growth struct {
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"per_second"`
	Failed  int64   `json:"failed"`
	// Roles are by the name of the process, in bytes.
	Roles map[string]roleGrowth `json:"roles"`
}

type roleGrowth struct {
	// Early and Late are the medians over the second and the last fifth of the run: the
	// first fifth is for buffers and caches to fill.
	Early float64 `json:"early_bytes"`
	Late  float64 `json:"late_bytes"`
	Peak  float64 `json:"peak_bytes"`

	samples []float64
}

// memory keeps the service at capacity for long, and looks at its roles meanwhile.
func (b *bench) memory(ctx context.Context) error {
	type outcome struct {
		run *report.Run
		err error
	}
	done := make(chan outcome, 1)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		run, err := b.stack.Load(ctx, append(certificates("--callers", strconv.Itoa(b.callers)), "-d", b.memoryFor.String(), "--check", "0.01", "--csrs", "20000")...)
		done <- outcome{run, err}
	}()
	g := &growth{Roles: map[string]roleGrowth{}}
	tick := time.NewTicker(b.memoryFor / 300)
	defer tick.Stop()
	for {
		select {
		case out := <-done:
			if out.err != nil {
				return out.err
			}
			g.Seconds, g.Rate, g.Failed = out.run.Seconds, out.run.RateReached, out.run.Failed
			g.summarise()
			b.Growth = g
			g.print()
			return nil
		case <-tick.C:
			all, err := b.stack.Memory()
			if err != nil {
				stop()
				return errors.Join(err, (<-done).err)
			}
			for name, m := range all {
				r := g.Roles[name]
				r.samples, r.Peak = append(r.samples, float64(m.Now)), float64(m.Peak)
				g.Roles[name] = r
			}
		}
	}
}

func (g *growth) summarise() {
	same := func(v float64) float64 { return v }
	for name, r := range g.Roles {
		if fifth := len(r.samples) / 5; fifth > 0 {
			r.Early, r.Late = median(r.samples[fifth:2*fifth], same), median(r.samples[len(r.samples)-fifth:], same)
		}
		g.Roles[name] = r
	}
}

func (g *growth) print() {
	fmt.Printf("\nmemory over %.0f s at capacity, %.0f/s, %d failed\n", g.Seconds, g.Rate, g.Failed)
	for _, name := range slices.Sorted(maps.Keys(g.Roles)) {
		r := g.Roles[name]
		fmt.Printf("  %-12s early %4.0f MB, late %4.0f MB (%+.0f %%), peak %4.0f MB\n", name, r.Early/1e6, r.Late/1e6, 100*(r.Late/r.Early-1), r.Peak/1e6)
	}
}
