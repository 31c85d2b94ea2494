package engine

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Summary is what one run measured. Latencies are in milliseconds.
type Summary struct {
	// Seconds is how long was counted: from the end of the warm-up to the end of the plan.
	Seconds float64 `json:"seconds"`
	// Asked is what was due in that time, in units; OK and Failed are what came of it.
	Asked  int64 `json:"asked"`
	OK     int64 `json:"ok"`
	Failed int64 `json:"failed"`
	// RateAsked and RateReached are per second. RateReached is what was answered in the
	// counted time, whenever it was due: what ends after it is made up for by what began
	// before it.
	RateAsked   float64 `json:"rate_asked"`
	RateReached float64 `json:"rate_reached"`
	// Latency counts from the moment a request was due. Failures by timeout are in it
	// with the time they waited; quick refusals are not.
	Latency Quantiles `json:"latency_ms"`
	// Service counts from the moment a request was sent: what a closed loop would show.
	Service Quantiles `json:"service_ms"`
	// Late is how much later than due the generator itself sent.
	Late Quantiles `json:"late_ms"`
	// HeldBack is how many calls were sent late since all callers waited for the service.
	HeldBack int64 `json:"held_back"`
	// Curve is the latency's distribution for plotting, ServiceCurve that of the service.
	Curve        []CurvePoint `json:"curve"`
	ServiceCurve []CurvePoint `json:"service_curve"`
	// Errors are by count, the most frequent first.
	Errors []Failure `json:"errors,omitempty"`
	// Phases is where the time went as the server stated it.
	Phases []PhaseSummary `json:"phases,omitempty"`
	// Series is what happened when, the warm-up included.
	Series []Point `json:"series"`
}

// ErrorShare returns the failed share of what was answered or given up, 0 to 1.
func (s *Summary) ErrorShare() float64 {
	if n := s.OK + s.Failed; n > 0 {
		return float64(s.Failed) / float64(n)
	}
	return 0
}

// Quantiles are of a distribution of times in milliseconds.
type Quantiles struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

// CurvePoint is one point of the HDR curve.
type CurvePoint struct {
	// Q is the quantile, 0 to 1, and Ms the latency that this share stays within.
	Q  float64 `json:"q"`
	Ms float64 `json:"ms"`
}

// Failure is one kind of failure.
type Failure struct {
	Kind  string `json:"kind"`
	Count int64  `json:"count"`
	// Example is what the first of them said, made printable, at most 300 characters.
	Example string `json:"example,omitempty"`
}

// PhaseSummary is one stop of a request's way.
type PhaseSummary struct {
	Name string `json:"name"`
	Quantiles
}

// Point is one interval of a run.
type Point struct {
	// At is its start and Seconds its length.
	At      float64 `json:"at"`
	Seconds float64 `json:"seconds"`
	Warmup  bool    `json:"warmup,omitempty"`
	// Asked counts units that fell due in it; OK and Failed those that ended in it.
	Asked   int64            `json:"asked"`
	OK      int64            `json:"ok"`
	Failed  int64            `json:"failed,omitempty"`
	Latency Quantiles        `json:"latency_ms"`
	Errors  map[string]int64 `json:"errors,omitempty"`
	// Phases are means in milliseconds.
	Phases map[string]float64 `json:"phases,omitempty"`
}

// Progress is how far a run has come: what of a Summary is shown meanwhile.
type Progress struct {
	OK, Failed int64
	Latency    Quantiles
	Errors     []Failure
	// Last is the last point of the series.
	Last Point
}

// Progress returns how far the run has come; now closes the windows that ended. It costs
// half of a Snapshot, the most of it while others may record (BenchmarkProgress).
func (r *Recorder) Progress(now time.Time) Progress {
	p, latency := r.progress(now)
	p.Latency = quantilesOf(hdrhistogram.Import(latency))
	return p
}

func (r *Recorder) progress(now time.Time) (p Progress, latency *hdrhistogram.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeWindows(now)
	p = Progress{OK: r.total.ok, Failed: r.total.failed, Errors: r.failures(), Last: Point{Seconds: 1}}
	if n := len(r.points); n > 0 {
		p.Last = r.points[n-1]
	}
	return p, r.latency.Export()
}

func (r *Recorder) closeWindows(now time.Time) {
	if r.finished.IsZero() && !r.start.IsZero() {
		r.advance(now)
	}
}

// failures returns the failures by count, the most frequent first.
func (r *Recorder) failures() (out []Failure) {
	for _, f := range r.errors {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Failure) int { return cmp.Compare(b.Count, a.Count) })
	return out
}

// Snapshot returns what has been measured so far; now closes the windows that ended.
func (r *Recorder) Snapshot(now time.Time) Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeWindows(now)
	s := Summary{
		Asked: r.total.asked, OK: r.total.ok, Failed: r.total.failed, HeldBack: r.heldBack,
		Latency: quantilesOf(r.latency), Service: quantilesOf(r.service), Late: quantilesOf(r.late),
		Curve: curve(r.latency), ServiceCurve: curve(r.service), Series: slices.Clone(r.points),
	}
	until := r.end
	if !r.finished.IsZero() && r.finished.Before(until) {
		until = r.finished
	} else if r.finished.IsZero() && now.Before(until) {
		until = now
	}
	if d := until.Sub(r.counts); d > 0 {
		s.Seconds = d.Seconds()
		s.RateAsked = float64(s.Asked) / d.Seconds()
		s.RateReached = float64(r.within) / d.Seconds()
	}
	s.Errors = r.failures()
	for _, name := range slices.Sorted(maps.Keys(r.phases)) {
		s.Phases = append(s.Phases, PhaseSummary{Name: name, Quantiles: quantilesOf(r.phases[name])})
	}
	return s
}

func quantilesOf(h *hdrhistogram.Histogram) Quantiles {
	n := h.TotalCount()
	if n == 0 {
		return Quantiles{}
	}
	v := h.ValueAtPercentilesSlice([]float64{50, 90, 99, 99.9})
	ms := func(us int64) float64 { return float64(us) / 1e3 }
	return Quantiles{Count: n, Mean: float64(int64(h.Mean())) / 1e3, P50: ms(v[0]), P90: ms(v[1]), P99: ms(v[2]), P999: ms(v[3]), Max: ms(h.Max())}
}

func curve(h *hdrhistogram.Histogram) []CurvePoint {
	if h.TotalCount() == 0 {
		return nil
	}
	var out []CurvePoint
	for _, b := range h.CumulativeDistributionWithTicks(5) {
		out = append(out, CurvePoint{Q: b.Quantile / 100, Ms: float64(b.ValueAt) / 1e3})
	}
	return out
}
