package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/certmill/certmill/loadtest/engine"
)

// column takes a value of each point, at the middle of its interval.
func column(points []engine.Point, value func(engine.Point) float64) (x, y []float64) {
	for _, p := range points {
		x = append(x, p.At+p.Seconds/2)
		y = append(y, value(p))
	}
	return x, y
}

func line(name, class string, points []engine.Point, value func(engine.Point) float64) series {
	x, y := column(points, value)
	return series{name: name, class: class, x: x, y: y}
}

// charts returns the plots of a run.
func (r *Run) charts(p Plan) []*chart {
	out := []*chart{r.rateChart(p), r.latencyChart(p), r.curveChart(p)}
	if len(r.Phases) > 0 {
		out = append(out, r.phaseChart(p))
	}
	if r.Failed > 0 {
		out = append(out, r.errorChart(p))
	}
	if len(r.Samples) > 0 {
		out = append(out, r.cpuChart(p))
	}
	for _, c := range []*chart{r.queueChart(p), r.sessionChart(p)} {
		if c.hasPoints() {
			out = append(out, c)
		}
	}
	for _, c := range out {
		if !c.quantiles {
			c.until = r.end()
		}
	}
	return out
}

// end is where the plots over time end, all of them, in seconds.
func (r *Run) end() float64 {
	end := 0.0
	for _, p := range r.Series {
		end = max(end, p.At+p.Seconds)
	}
	for _, s := range r.Samples {
		end = max(end, s.At)
	}
	return end
}

func (r *Run) rateChart(p Plan) *chart {
	points := r.Series
	c := &chart{title: "Rate", xLabel: "s", yLabel: p.Unit + "/s", warmup: p.Warmup, series: []series{
		line("reached", "c1", points, func(p engine.Point) float64 { return float64(p.OK) / p.Seconds }),
	}}
	if p.Loop == "open" {
		asked := line("asked", "c0", points, func(p engine.Point) float64 { return float64(p.Asked) / p.Seconds })
		asked.dashed = true
		c.series = append(c.series, asked)
	}
	return c
}

func (r *Run) latencyChart(p Plan) *chart {
	of := func(name, class string, value func(engine.Quantiles) float64) series {
		return line(name, class, r.Series, func(p engine.Point) float64 {
			if p.Latency.Count == 0 {
				return math.NaN()
			}
			return value(p.Latency)
		})
	}
	return &chart{title: "Latency over time", note: latencyNote(p), xLabel: "s", yLabel: "ms", yLog: true, warmup: p.Warmup, series: []series{
		of("max", "c5", func(q engine.Quantiles) float64 { return q.Max }),
		of("p99", "c3", func(q engine.Quantiles) float64 { return q.P99 }),
		of("p90", "c2", func(q engine.Quantiles) float64 { return q.P90 }),
		of("p50", "c1", func(q engine.Quantiles) float64 { return q.P50 }),
	}}
}

func latencyNote(p Plan) string {
	if p.Loop == "closed" {
		return "From sent to answered. A closed loop asks less while the server stalls, so these figures understate stalls."
	}
	return "From the moment a request was due to its answer; a gap where nothing was answered."
}

func (r *Run) curveChart(p Plan) *chart {
	c := &chart{title: "Latency distribution", xLabel: "share of requests answered within", yLabel: "ms", yLog: true, quantiles: true}
	add := func(name, class string, points []engine.CurvePoint, dashed bool) {
		s := series{name: name, class: class, dashed: dashed}
		for _, q := range points {
			if q.Q < 1 {
				s.x = append(s.x, -math.Log10(1-q.Q))
				s.y = append(s.y, q.Ms)
			}
		}
		c.series = append(c.series, s)
	}
	if p.Loop == "closed" {
		add("latency", "c1", r.Curve, false)
		return c
	}
	c.note = "Where the two part, requests waited to be sent: a closed loop would have shown the lower line."
	add("from due", "c1", r.Curve, false)
	add("from sent", "c0", r.ServiceCurve, true)
	return c
}

// phaseClasses gives certmill's phases the same colour in every chart.
var phaseClasses = map[string]string{"queue": "c2", "prepare": "c4", "hsm": "c3", "commit": "c1", "gateway": "c6", "network and client": "c0", waiting: "c5"}

func classOf(name string, i int) string {
	if c := phaseClasses[name]; c != "" {
		return c
	}
	return fmt.Sprintf("c%d", i%8)
}

func (r *Run) phaseChart(p Plan) *chart {
	c := &chart{title: "Where the time goes, over time", note: "Mean of each part, as the server states it (Server-Timing).", xLabel: "s", yLabel: "ms", warmup: p.Warmup}
	points := r.Series // without an answer there is no part of it: 0
	var names []string
	total := false
	for _, ph := range r.Phases {
		if ph.Name == "total" {
			total = true
		} else {
			names = append(names, ph.Name)
		}
	}
	slices.SortFunc(names, byWay)
	for i, name := range names {
		s := line(name, classOf(name, i), points, func(p engine.Point) float64 { return p.Phases[name] })
		s.stacked = true
		c.series = append(c.series, s)
	}
	if total {
		s := line("gateway", classOf("gateway", 0), points, func(p engine.Point) float64 {
			rest := p.Phases["total"]
			for _, name := range names {
				rest -= p.Phases[name]
			}
			return max(rest, 0)
		})
		s.stacked = true
		c.series = append(c.series, s)
	}
	return c
}

// byWay sorts phases in the order in which a CSR passes them.
func byWay(a, b string) int {
	way := []string{"queue", "prepare", "hsm", "commit", "gateway", "network and client", waiting}
	ia, ib := slices.Index(way, a), slices.Index(way, b)
	if ia < 0 && ib < 0 {
		return strings.Compare(a, b)
	}
	return ia - ib
}

func (r *Run) errorChart(p Plan) *chart {
	c := &chart{title: "Errors", xLabel: "s", yLabel: "per second", warmup: p.Warmup}
	for i, e := range r.Errors {
		if i == 7 {
			break
		}
		s := line(e.Kind, fmt.Sprintf("c%d", (i+3)%8), r.Series, func(p engine.Point) float64 { return float64(p.Errors[e.Kind]) / p.Seconds })
		s.stacked = true
		c.series = append(c.series, s)
	}
	return c
}

func (r *Run) cpuChart(p Plan) *chart {
	c := &chart{title: "CPU", note: "Cores in use by role. The line is all that runs on this machine.", xLabel: "s", yLabel: "cores", warmup: p.Warmup}
	total := map[string]float64{}
	for _, s := range r.Samples {
		for name, v := range s.Cores {
			total[name] += v
		}
	}
	names := slices.SortedFunc(maps.Keys(total), func(a, b string) int {
		if d := total[b] - total[a]; d != 0 {
			return int(math.Copysign(1, d))
		}
		return strings.Compare(a, b)
	})
	add := func(name, class string, stacked bool, value func(Sample) float64) {
		s := series{name: name, class: class, stacked: stacked}
		for _, x := range r.Samples {
			s.x, s.y = append(s.x, x.At), append(s.y, value(x))
		}
		c.series = append(c.series, s)
	}
	for i, name := range names[:min(len(names), 6)] {
		add(name, fmt.Sprintf("c%d", i+1), true, func(s Sample) float64 { return s.Cores[name] })
	}
	if len(names) > 6 {
		add("others", "c7", true, func(s Sample) float64 {
			sum := 0.0
			for _, name := range names[6:] {
				sum += s.Cores[name]
			}
			return sum
		})
	}
	add("generator", "c0", true, func(s Sample) float64 { return s.Own })
	add("machine", "ink", false, func(s Sample) float64 { return s.Machine })
	return c
}

func (r *Run) queueChart(p Plan) *chart {
	return &chart{title: "Queue", xLabel: "s", yLabel: "waiting", whole: true, warmup: p.Warmup, series: []series{
		r.gauge("calls in the gateways", "c2", func(s Sample) *float64 { return s.Waiting }),
		r.gauge("messages in the queue", "c1", func(s Sample) *float64 { return s.Queued }),
	}}
}

func (r *Run) sessionChart(p Plan) *chart {
	all := r.gauge("all", "c0", func(s Sample) *float64 { return s.Sessions })
	all.dashed = true
	return &chart{title: "HSM sessions", xLabel: "s", yLabel: "sessions", whole: true, warmup: p.Warmup, series: []series{
		r.gauge("in use", "c3", func(s Sample) *float64 { return s.Busy }), all,
	}}
}

func (r *Run) gauge(name, class string, value func(Sample) *float64) series {
	s := series{name: name, class: class}
	for _, x := range r.Samples {
		if v := value(x); v != nil {
			s.x, s.y = append(s.x, x.At), append(s.y, *v)
		}
	}
	return s
}

func (c *Capacity) chart() *chart {
	held := series{name: "p99 where it held", class: "c1", dots: true}
	missed := series{name: "p99 where it did not", class: "c3", dots: true}
	for _, t := range c.Trials {
		s := &held
		if !t.Held {
			s = &missed
		}
		if t.Latency.P99 > 0 {
			s.x, s.y = append(s.x, t.Rate), append(s.y, t.Latency.P99)
		}
	}
	return &chart{title: "Trials", note: "Each dot is one trial.", xLabel: "asked per second", yLabel: "ms", yLog: true, series: []series{held, missed}}
}

func scaleChart(steps []Step) *chart {
	c := &chart{title: "Capacity by signers", xLabel: "signers", yLabel: "per second"}
	got, ideal := series{name: "capacity", class: "c1"}, series{name: "linear", class: "c0", dashed: true}
	for _, s := range steps {
		n := float64(s.Signers)
		c.steps = append(c.steps, n)
		got.x, got.y = append(got.x, n), append(got.y, s.Capacity.Rate)
		ideal.x = append(ideal.x, n)
		ideal.y = append(ideal.y, steps[0].Capacity.Rate*n/float64(steps[0].Signers))
	}
	c.series = []series{got, ideal}
	return c
}
