package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/loadtest/bench/cryptocost"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
)

// figures are what a run found; its JSON is the file that it leaves.
type figures struct {
	Started time.Time       `json:"started"`
	Seconds float64         `json:"seconds"`
	Machine observe.Machine `json:"machine"`
	Parts   []string        `json:"parts"`

	Throughput *throughput `json:"throughput,omitempty"`
	Latency    *latency    `json:"latency,omitempty"`
	Protocols  []protocol  `json:"protocols,omitempty"`
	OCSP       *withOCSP   `json:"with_ocsp,omitempty"`
	// Memory is the largest resident memory of each role in bytes.
	Memory map[string]int64 `json:"peak_memory_bytes,omitempty"`
	Growth *growth          `json:"memory_over_time,omitempty"`
	Scale  *scale           `json:"scale,omitempty"`
	Grown  *grown           `json:"grown_ledger,omitempty"`
}

// round is the cryptography, the floor and the service, one after the other.
type round struct {
	Crypto cryptocost.Cost `json:"crypto"`
	// Floor and Rate are certificates per second.
	Floor float64 `json:"floor_per_second"`
	Rate  float64 `json:"per_second"`
	// CPU and FloorCPU are microseconds of a certificate, the generator left out.
	CPU      float64 `json:"cpu_us"`
	FloorCPU float64 `json:"floor_cpu_us"`
	// Roles are the parts of CPU.
	Roles     map[string]float64 `json:"roles_cpu_us"`
	Generator float64            `json:"generator_cpu_us"`
	P50       float64            `json:"p50_ms"`
	P99       float64            `json:"p99_ms"`
}

func newRound(cost cryptocost.Cost, yardstick, ours *report.Run) round {
	r := round{
		Crypto: cost, Floor: yardstick.RateReached, Rate: ours.RateReached,
		CPU: 1000 * ours.CPUPerUnit(), FloorCPU: 1000 * yardstick.CPUPerUnit(), Roles: map[string]float64{},
		Generator: 1e6 * ours.Use.Own / ours.RateReached, P50: ours.Latency.P50, P99: ours.Latency.P99,
	}
	for _, role := range ours.Use.Roles {
		r.Roles[role.Name] = 1e6 * role.Cores / ours.RateReached
	}
	return r
}

func (r round) String() string {
	return fmt.Sprintf("floor %.0f/s, service %.0f/s (%.2f), CPU %.0f µs over %.0f µs of cryptography (%.2f)", r.Floor, r.Rate, r.Rate/r.Floor, r.CPU, r.Crypto.Sum, r.CPU/r.Crypto.Sum)
}

// operation is one part of the cryptography.
type operation struct {
	Name string  `json:"name"`
	CPU  float64 `json:"cpu_us"`
	// Own is as the service does it.
	Own float64 `json:"own_cpu_us"`
}

// throughput is the outcome of all rounds; what is not said of a round is their median.
type throughput struct {
	Callers    int         `json:"callers"`
	Rounds     []round     `json:"rounds"`
	Operations []operation `json:"crypto"`
	Floor      float64     `json:"floor_per_second"`
	Rate       float64     `json:"per_second"`
	// FloorRatio is Rate over Floor within a round; CPUOverCrypto likewise.
	FloorRatio    float64 `json:"floor_ratio"`
	CPU           float64 `json:"cpu_us"`
	CPUOverCrypto float64 `json:"cpu_over_crypto"`
	// CPUOverOwn is over the cryptography as the service does it.
	CPUOverOwn float64 `json:"cpu_over_own_crypto"`
}

func (t *throughput) summarise() {
	t.Floor = median(t.Rounds, func(r round) float64 { return r.Floor })
	t.Rate = median(t.Rounds, func(r round) float64 { return r.Rate })
	t.CPU = median(t.Rounds, func(r round) float64 { return r.CPU })
	t.FloorRatio = median(t.Rounds, func(r round) float64 { return r.Rate / r.Floor })
	t.CPUOverCrypto = median(t.Rounds, func(r round) float64 { return r.CPU / r.Crypto.Sum })
	t.CPUOverOwn = median(t.Rounds, func(r round) float64 { return r.CPU / r.Crypto.OwnSum })
}

func (t *throughput) print() {
	fmt.Printf("\nthroughput, %d callers: service %.0f/s, floor %.0f/s: %.2f of it\n", t.Callers, t.Rate, t.Floor, t.FloorRatio)
	fmt.Printf("CPU of a certificate, all roles and servers: %.0f µs, of the floor: %.0f µs\n", t.CPU, median(t.Rounds, func(r round) float64 { return r.FloorCPU }))
	names := map[string]bool{}
	for _, r := range t.Rounds {
		for name := range r.Roles {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if us := median(t.Rounds, func(r round) float64 { return r.Roles[name] }); us >= 0.5 {
			fmt.Printf("  %-24s %4.0f µs\n", name, us)
		}
	}
	fmt.Printf("  %-24s %4.0f µs (not in the sum)\n", "generator", median(t.Rounds, func(r round) float64 { return r.Generator }))
	fmt.Printf("its cryptography, all cores busy: %.0f µs by the standard library, %.0f µs as the service does it\n",
		median(t.Rounds, func(r round) float64 { return r.Crypto.Sum }), median(t.Rounds, func(r round) float64 { return r.Crypto.OwnSum }))
	for _, op := range t.Operations {
		fmt.Printf("  %-24s %4.0f µs  %4.0f µs\n", op.Name, op.CPU, op.Own)
	}
	fmt.Printf("CPU over cryptography: %.2f (%.2f over it as the service does it)\n", t.CPUOverCrypto, t.CPUOverOwn)
}

// latency is that of an open loop, in milliseconds from the moment a request was due.
type latency struct {
	Rate      float64          `json:"rate"`
	Reached   float64          `json:"reached"`
	Latency   engine.Quantiles `json:"latency_ms"`
	Late      engine.Quantiles `json:"generator_late_ms"`
	Failed    int64            `json:"failed"`
	Generator report.Generator `json:"generator"`
	Phases    []phase          `json:"phases"`
}

type phase struct {
	Name string  `json:"name"`
	Mean float64 `json:"mean_ms"`
	P99  float64 `json:"p99_ms"`
}

func newLatency(rate float64, run *report.Run) *latency {
	l := &latency{Rate: rate, Reached: run.RateReached, Latency: run.Latency, Late: run.Late, Failed: run.Failed, Generator: run.Generator}
	for _, p := range run.Phases {
		l.Phases = append(l.Phases, phase{p.Name, p.Mean, p.P99})
	}
	return l
}

func (l *latency) print() {
	fmt.Printf("\nat half of that rate, %.0f/s as independent clients send: p50 %.1f ms, p99 %.1f ms, %d failed\n", l.Rate, l.Latency.P50, l.Latency.P99, l.Failed)
	for _, p := range l.Phases {
		fmt.Printf("  %-20s mean %6.2f ms, p99 %6.2f ms\n", p.Name, p.Mean, p.P99)
	}
	if l.Generator.Limit {
		fmt.Printf("  WARNING: the generator was the limit: %s\n", l.Generator.Why)
	}
}

// unary is the way to ask that the others are compared with.
const unary = "gRPC unary"

// protocol is one way to ask; what is not said of a round is their median.
type protocol struct {
	Name   string  `json:"name"`
	Rounds []asked `json:"rounds"`
	asked
	// OverUnary is the rate over that of gRPC unary within a round.
	OverUnary float64 `json:"over_unary"`
}

// asked is one round.
type asked struct {
	Rate float64 `json:"per_second"`
	P50  float64 `json:"p50_ms"`
	P99  float64 `json:"p99_ms"`
	CPU  float64 `json:"cpu_us"`
	// Generator is its CPU in cores.
	Generator float64 `json:"generator_cores"`
}

func summariseProtocols(all []protocol) {
	yardstick := slices.IndexFunc(all, func(p protocol) bool { return p.Name == unary })
	for i := range all {
		p := &all[i]
		p.asked = asked{
			Rate:      median(p.Rounds, func(a asked) float64 { return a.Rate }),
			P50:       median(p.Rounds, func(a asked) float64 { return a.P50 }),
			P99:       median(p.Rounds, func(a asked) float64 { return a.P99 }),
			CPU:       median(p.Rounds, func(a asked) float64 { return a.CPU }),
			Generator: median(p.Rounds, func(a asked) float64 { return a.Generator }),
		}
		var ratios []float64
		for n, a := range p.Rounds {
			ratios = append(ratios, a.Rate/all[yardstick].Rounds[n].Rate)
		}
		p.OverUnary = median(ratios, func(v float64) float64 { return v })
	}
}

func (f *figures) printProtocols() {
	fmt.Printf("\nways to ask, as many certificates under way in each, in turns\n")
	for _, p := range f.Protocols {
		fmt.Printf("  %-12s %6.0f/s  %.2f of unary  p50 %5.1f ms  p99 %5.1f ms  CPU %4.0f µs  generator %.2f cores\n", p.Name, p.Rate, p.OverUnary, p.P50, p.P99, p.CPU, p.Generator)
	}
}

// withOCSP is a certificate with revocation.
type withOCSP struct {
	Rate float64 `json:"per_second"`
	CPU  float64 `json:"cpu_us"`
}

func (o *withOCSP) print() {
	fmt.Printf("\nwith an OCSP answer signed ahead for each (profile server): %.0f/s, CPU %.0f µs\n", o.Rate, o.CPU)
}

// write leaves the figures in a file.
func (f *figures) write(path string) error {
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// line is the end of the run: what was not measured is not in it.
func (f *figures) line() string {
	var out []string
	if t := f.Throughput; t != nil {
		out = append(out, fmt.Sprintf("floor_ratio=%.2f cpu_over_crypto=%.2f", t.FloorRatio, t.CPUOverCrypto))
	}
	if l := f.Latency; l != nil {
		out = append(out, fmt.Sprintf("p50_ms=%.1f p99_ms=%.1f", l.Latency.P50, l.Latency.P99))
	}
	if s := f.Scale; s != nil && len(s.Steps) > 0 {
		last := s.Steps[len(s.Steps)-1]
		out = append(out, fmt.Sprintf("scale_%d=%.2f", last.Signers, last.Linear))
	}
	if g := f.Grown; g != nil {
		out = append(out, fmt.Sprintf("ledger_ratio=%.2f row_octets=%.0f", g.Ratio, g.octets()))
	}
	return strings.Join(out, " ")
}

func median[T any](all []T, of func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, v := range all {
		values[i] = of(v)
	}
	slices.Sort(values)
	n := len(values)
	if n%2 == 1 {
		return values[n/2]
	}
	return (values[n/2-1] + values[n/2]) / 2
}
