package report

import (
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
)

// Comparison says how two results differ.
type Comparison struct {
	A     string `json:"a"`
	B     string `json:"b"`
	RunsA int    `json:"runs_a"`
	RunsB int    `json:"runs_b"`
	// Warnings say why the two may not compare.
	Warnings []string     `json:"warnings,omitempty"`
	Metrics  []Difference `json:"metrics"`
}

// Difference is that of one measure.
type Difference struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"`
	A    float64 `json:"a"`
	B    float64 `json:"b"`
	// Change is (B - A) / A, and Low to High its 95 % confidence interval.
	Change float64 `json:"change"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	// Verdict is "better", "worse" or "no difference beyond noise".
	Verdict Verdict `json:"verdict"`
}

// Verdict is what a difference means.
type Verdict string

// The verdicts.
const (
	Better Verdict = "better"
	Worse  Verdict = "worse"
	Noise  Verdict = "no difference beyond noise"
)

// level is the confidence of the whole comparison. Each of the measures is held to a
// stricter one (Bonferroni), or one of ten would "differ" by chance every other time.
const level = 0.95

type measure struct {
	name, unit string
	moreBetter bool
	value      func(*Run) float64
}

var measures = []measure{
	{"rate reached", "/s", true, func(r *Run) float64 { return r.RateReached }},
	{"p50", "ms", false, func(r *Run) float64 { return r.Latency.P50 }},
	{"p90", "ms", false, func(r *Run) float64 { return r.Latency.P90 }},
	{"p99", "ms", false, func(r *Run) float64 { return r.Latency.P99 }},
	{"p99.9", "ms", false, func(r *Run) float64 { return r.Latency.P999 }},
	{"mean", "ms", false, func(r *Run) float64 { return r.Latency.Mean }},
	{"errors", "%", false, func(r *Run) float64 { return 100 * r.ErrorShare() }},
	{"CPU per unit", "ms", false, (*Run).CPUPerUnit},
}

// Compare compares B with A, run against run. Two runs of each are needed, five are
// better: without repetition nothing can be told from noise.
func Compare(a, b *Result) (*Comparison, error) {
	if len(a.Runs) < 2 || len(b.Runs) < 2 {
		return nil, fmt.Errorf("%d and %d runs: a comparison needs two or more of each (--repeat 5), or it cannot tell a difference from noise", len(a.Runs), len(b.Runs))
	}
	c := &Comparison{RunsA: len(a.Runs), RunsB: len(b.Runs), Warnings: incomparable(a, b)}
	var used []measure
	for _, m := range measures {
		if slices.Max(values(a, m)) > 0 || slices.Max(values(b, m)) > 0 {
			used = append(used, m)
		}
	}
	each := 1 - (1-level)/float64(max(len(used), 1))
	for _, m := range used {
		c.Metrics = append(c.Metrics, differ(m, values(a, m), values(b, m), each))
	}
	return c, nil
}

func values(r *Result, m measure) []float64 {
	out := make([]float64, len(r.Runs))
	for i := range r.Runs {
		out[i] = m.value(&r.Runs[i])
	}
	return out
}

func differ(m measure, a, b []float64, level float64) Difference {
	ma, _ := meanAndVariance(a)
	mb, _ := meanAndVariance(b)
	diff, low, high := welch(a, b, level)
	d := Difference{Name: m.name, Unit: m.unit, A: ma, B: mb, Verdict: Noise}
	scale := ma
	if scale == 0 {
		scale = mb // from nothing to something is +100 %
	}
	d.Change, d.Low, d.High = diff/scale, low/scale, high/scale
	if low > 0 || high < 0 {
		d.Verdict = Worse
		if (diff > 0) == m.moreBetter {
			d.Verdict = Better
		}
	}
	return d
}

func incomparable(a, b *Result) []string {
	var w []string
	if a.Machine.CPU != b.Machine.CPU || a.Machine.Cores != b.Machine.Cores {
		w = append(w, fmt.Sprintf("the machines differ: %d × %s and %d × %s", a.Machine.Cores, a.Machine.CPU, b.Machine.Cores, b.Machine.CPU))
	}
	if fields := planDiffers(a.Plan, b.Plan); len(fields) > 0 {
		w = append(w, "the plans differ: "+strings.Join(fields, ", "))
	}
	for name, r := range map[string]*Result{"first": a, "second": b} {
		if r.Wrong() > 0 {
			w = append(w, "the "+name+" has wrong answers")
		}
		if slices.ContainsFunc(r.Runs, func(x Run) bool { return x.Generator.Limit }) {
			w = append(w, "in the "+name+" the generator was the limit")
		}
	}
	slices.Sort(w)
	return w
}

// planDiffers returns what differs between two plans that makes their figures those of
// different work, by the names in JSON, with both values. Targets may differ, and with them
// how many connections they need; what an older result does not state is not compared.
func planDiffers(a, b Plan) (fields []string) {
	free := []string{"target", "summary", "url", "keys", "seed"}
	if a.Target != b.Target && a.Loop == "open" {
		free = append(free, "connections", "in_flight")
	}
	if a.KeyTypes == "" || b.KeyTypes == "" {
		free = append(free, "profile", "lifetime_seconds", "name", "key_types", "check", "check_row", "check_ocsp")
	}
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		name, _, _ := strings.Cut(va.Type().Field(i).Tag.Get("json"), ",")
		x, y := va.Field(i).Interface(), vb.Field(i).Interface()
		if x != y && !slices.Contains(free, name) {
			fields = append(fields, fmt.Sprintf("%s %v and %v", name, x, y))
		}
	}
	return fields
}

// Any reports whether a measure has the verdict.
func (c *Comparison) Any(v Verdict) bool {
	return slices.ContainsFunc(c.Metrics, func(d Difference) bool { return d.Verdict == v })
}

// Write writes the comparison for people.
func (c *Comparison) Write(w io.Writer) error {
	w = terminal{w}
	fmt.Fprintf(w, "A: %s (%d runs)\nB: %s (%d runs)\n\n", c.A, c.RunsA, c.B, c.RunsB)
	for _, warning := range c.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "measure\tA\tB\tchange\t95 %% interval\t\t\n")
	for _, d := range c.Metrics {
		fmt.Fprintf(t, "%s\t%.4g %s\t%.4g %s\t%+.1f %%\t%+.1f to %+.1f %%\t%s\t\n", d.Name, d.A, d.Unit, d.B, d.Unit, 100*d.Change, 100*d.Low, 100*d.High, d.Verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if !c.Any(Better) && !c.Any(Worse) {
		var widest float64
		for _, d := range c.Metrics {
			if d.Name == "rate reached" || d.Name == "p99" {
				widest = math.Max(widest, (d.High-d.Low)/2)
			}
		}
		fmt.Fprintf(w, "\nNothing differs beyond noise. A change of rate or p99 below about %.0f %% could not have been seen; more runs (--repeat) see more.\n", math.Ceil(100*widest))
	}
	return nil
}
