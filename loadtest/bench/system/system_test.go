package main

import (
	"math"
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/bench/cryptocost"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
)

func TestARateOfAStepIsThatOfItsTime(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s float64) observe.Sample {
		return observe.Sample{At: start.Add(seconds64(s)), Machine: 1.5 * s, CPU: map[string]float64{"signer": 0.5 * s}}
	}
	r := &report.Result{Started: start, Runs: []report.Run{{Summary: engine.Summary{OK: 2000, Failed: 3}}}}
	for i := range 20 {
		rate := int64(100)
		if i >= 10 {
			rate = 190
		}
		r.Runs[0].Series = append(r.Runs[0].Series, engine.Point{At: float64(i), Seconds: 1, OK: rate})
	}
	s := &scale{Steps: []step{newStep(1, at(2.5), at(8.5)), newStep(2, at(10.5), at(16.5))}}
	if err := s.take(r); err != nil {
		t.Fatal(err)
	}
	two := s.Steps[1]
	if s.Steps[0].Rate != 100 || two.Rate != 190 || math.Abs(two.Linear-0.95) > 1e-9 || math.Abs(two.Machine-1.5) > 1e-9 || math.Abs(two.Roles["signer"]-0.5) > 1e-9 || s.Failed != 3 {
		t.Errorf("%+v", s)
	}
	nothing := &scale{Steps: []step{newStep(1, at(30), at(35))}}
	if err := nothing.take(r); err == nil {
		t.Error("a step without an answer has a rate")
	}
}

func TestTheLastLineHoldsWhatWasMeasured(t *testing.T) {
	turn := func(floor, rate, cpu, crypto float64) round {
		return round{Floor: floor, Rate: rate, CPU: cpu, Crypto: cryptocost.Cost{Sum: crypto}}
	}
	tp := &throughput{Rounds: []round{turn(100, 80, 300, 200), turn(200, 180, 320, 200), turn(400, 280, 400, 200)}}
	tp.summarise()
	f := &figures{
		Throughput: tp, Latency: newLatency(90, &report.Run{Summary: engine.Summary{Latency: engine.Quantiles{P50: 5.04, P99: 20.26}}}),
		Scale: &scale{Steps: []step{{Signers: 1, Linear: 1}, {Signers: 16, Linear: 0.97}}},
	}
	// The ratios are medians of the rounds' own, not ratios of medians.
	if got, want := f.line(), "floor_ratio=0.80 cpu_over_crypto=1.60 p50_ms=5.0 p99_ms=20.3 scale_16=0.97"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (&figures{Throughput: tp}).line(); got != "floor_ratio=0.80 cpu_over_crypto=1.60" {
		t.Errorf("%q", got)
	}
}

func TestGrowthIsSeenBetweenTheSecondAndTheLastFifth(t *testing.T) {
	leak, flat := roleGrowth{}, roleGrowth{}
	for i := range 100 {
		leak.samples = append(leak.samples, 100+float64(i))
		flat.samples = append(flat.samples, map[bool]float64{true: 10, false: 50}[i < 20]) // it fills its buffers first
	}
	g := &growth{Roles: map[string]roleGrowth{"leak": leak, "flat": flat}}
	g.summarise()
	if l, f := g.Roles["leak"], g.Roles["flat"]; l.Early != 129.5 || l.Late != 189.5 || f.Early != 50 || f.Late != 50 {
		t.Errorf("%+v", g.Roles)
	}
}

func TestWaysToAskAreComparedWithinARound(t *testing.T) {
	at := func(rates ...float64) (all []asked) {
		for _, r := range rates {
			all = append(all, asked{Rate: r})
		}
		return all
	}
	// The machine is twice as slow in the second round, and slow for one in the third.
	all := []protocol{{Name: "REST", Rounds: at(110, 55, 20)}, {Name: unary, Rounds: at(100, 50, 100)}}
	summariseProtocols(all)
	if rest := all[0]; math.Abs(rest.OverUnary-1.1) > 1e-9 || rest.Rate != 55 || all[1].OverUnary != 1 {
		t.Errorf("%+v", all)
	}
}
