// Package schedule says when requests are due.
//
// A schedule is fixed before the run and knows nothing of the service: a slow
// answer never moves the next request. That is what makes the loop open.
package schedule

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Schedule is a plan of arrivals. It is immutable and safe for concurrent use.
type Schedule interface {
	// Arrivals starts the plan anew; equal seeds give equal arrivals.
	Arrivals(seed uint64) Arrivals
	// RateAt returns the arrivals per second that are planned around t after the start.
	RateAt(t time.Duration) float64
	// Expected returns how many arrivals are planned before d.
	Expected(d time.Duration) float64
	// String returns the specification that Parse reads.
	String() string
}

// Arrivals yields due moments as offsets from the start, never falling; ok is false
// when the plan has no more. It is for one goroutine.
type Arrivals interface {
	Next() (due time.Duration, ok bool)
}

// Spacing is how arrivals lie within a rate.
type Spacing string

// The spacings.
const (
	// Even puts arrivals at equal distances.
	Even Spacing = "even"
	// Poisson puts them as independent clients would: at random, so that bursts occur.
	Poisson Spacing = "poisson"
)

// segment is a stretch of time in which the rate goes from r0 to r1 in a line. The
// last segment of a shape may last for ever, with r0 = r1.
type segment struct {
	start, length float64 // seconds
	r0, r1        float64 // arrivals per second
}

// integral returns the arrivals within the first t seconds of the segment.
func (s segment) integral(t float64) float64 {
	if s.r0 == s.r1 {
		return s.r0 * t
	}
	return s.r0*t + (s.r1-s.r0)*t*t/(2*s.length)
}

// invert returns the time within the segment at which its integral is n.
func (s segment) invert(n float64) float64 {
	if s.r0 == s.r1 {
		return n / s.r0
	}
	// Solve a·t² + r0·t − n = 0; this form of the root stays exact for small a.
	a := (s.r1 - s.r0) / (2 * s.length)
	return 2 * n / (s.r0 + math.Sqrt(math.Max(s.r0*s.r0+4*a*n, 0)))
}

// Shape is a schedule by rate: constant, ramp, step and spike are lists of
// segments. Arrivals lie where the integral of the rate reaches 1, 2, 3 … (Even) or
// sums of exponential variates (Poisson), which is exact for any rate that changes.
type Shape struct {
	spec     string
	segments []segment
	spacing  Spacing
}

// Constant is rate arrivals per second.
func Constant(rate float64, spacing Spacing) *Shape {
	spec := fmt.Sprintf("constant:rate=%g", rate)
	if spacing == Poisson {
		spec = fmt.Sprintf("poisson:rate=%g", rate)
	}
	return &Shape{spec: spec, spacing: spacing, segments: []segment{{0, math.Inf(1), rate, rate}}}
}

// Ramp goes from one rate to another in the given time, and stays there.
func Ramp(from, to float64, over time.Duration, spacing Spacing) *Shape {
	return &Shape{
		spec:    fmt.Sprintf("ramp:from=%g,to=%g,over=%s,spacing=%s", from, to, over, spacing),
		spacing: spacing,
		segments: []segment{
			{0, over.Seconds(), from, to},
			{over.Seconds(), math.Inf(1), to, to},
		},
	}
}

// maxSteps bounds a step schedule; after them the rate stays.
const maxSteps = 10_000

// Step begins at one rate and adds by every so often.
func Step(from, by float64, every time.Duration, spacing Spacing) *Shape {
	s := &Shape{spec: fmt.Sprintf("step:from=%g,by=%g,every=%s,spacing=%s", from, by, every, spacing), spacing: spacing}
	w := every.Seconds()
	for i := range maxSteps {
		rate := math.Max(from+float64(i)*by, 0)
		length := w
		if i == maxSteps-1 || rate == 0 {
			length = math.Inf(1)
		}
		s.segments = append(s.segments, segment{float64(i) * w, length, rate, rate})
		if rate == 0 {
			break
		}
	}
	return s
}

// Spike holds a base rate, jumps to peak at a moment, and falls back.
func Spike(base, peak float64, at, length time.Duration, spacing Spacing) *Shape {
	return &Shape{
		spec:    fmt.Sprintf("spike:base=%g,peak=%g,at=%s,for=%s,spacing=%s", base, peak, at, length, spacing),
		spacing: spacing,
		segments: []segment{
			{0, at.Seconds(), base, base},
			{at.Seconds(), length.Seconds(), peak, peak},
			{(at + length).Seconds(), math.Inf(1), base, base},
		},
	}
}

// String returns the specification.
func (s *Shape) String() string { return s.spec }

// RateAt returns the planned rate at t.
func (s *Shape) RateAt(t time.Duration) float64 {
	at := t.Seconds()
	for i := len(s.segments) - 1; i >= 0; i-- {
		g := s.segments[i]
		if at < g.start {
			continue
		}
		if g.r0 == g.r1 {
			return g.r0
		}
		return g.r0 + (g.r1-g.r0)*math.Min((at-g.start)/g.length, 1)
	}
	return 0
}

// Expected returns the integral of the rate.
func (s *Shape) Expected(d time.Duration) float64 {
	n, end := 0.0, d.Seconds()
	for _, g := range s.segments {
		if g.start >= end {
			break
		}
		n += g.integral(math.Min(end-g.start, g.length))
	}
	return n
}

// Arrivals starts the plan.
func (s *Shape) Arrivals(seed uint64) Arrivals {
	return &shapeArrivals{shape: s, random: rand.New(rand.NewPCG(seed, 0x5eed))}
}

type shapeArrivals struct {
	shape  *Shape
	random *rand.Rand
	at     int     // segment
	before float64 // integral of the segments before
	n      float64 // integral at the arrival before
}

func (a *shapeArrivals) Next() (time.Duration, bool) {
	if a.shape.spacing == Poisson {
		a.n += a.random.ExpFloat64()
	} else if a.n == 0 {
		a.n = math.SmallestNonzeroFloat64 // the first is due at once
	} else {
		a.n++
	}
	for a.at < len(a.shape.segments) {
		g := a.shape.segments[a.at]
		if whole := g.integral(g.length); a.n-a.before <= whole && whole > 0 {
			return time.Duration((g.start + g.invert(a.n-a.before)) * float64(time.Second)), true
		} else if math.IsInf(g.length, 1) {
			return 0, false // the rate is 0 from here on
		} else {
			a.before += whole
			a.at++
		}
	}
	return 0, false
}

// MaxAgents bounds a herd: 16 bytes each are kept while it runs.
const MaxAgents = 5_000_000

// Herd is N agents that each renew at half of their certificate's lifetime, as
// Istio's and ztunnel's do: once they have started together they come back together.
type Herd struct {
	// Agents is how many there are.
	Agents int
	// Lifetime is the certificates' lifetime; agents return after half of it.
	Lifetime time.Duration
	// Spread is the time within which all of them start.
	Spread time.Duration
	// Jitter is the agents' own share of randomness in the half (Istio: 0.01).
	Jitter float64
	// CAJitter is the share by which the CA varies the lifetime itself.
	CAJitter float64
}

// String returns the specification.
func (h *Herd) String() string {
	return fmt.Sprintf("herd:agents=%d,lifetime=%s,spread=%s,jitter=%g,ca_jitter=%g", h.Agents, h.Lifetime, h.Spread, h.Jitter, h.CAJitter)
}

// RateAt returns the planned rate: that of the first wave, and what the waves after
// it have flattened to.
func (h *Herd) RateAt(t time.Duration) float64 {
	half := h.Lifetime / 2
	wave := int(t / half)
	width := h.width(wave)
	if t-time.Duration(wave)*half > width {
		return 0
	}
	return float64(h.Agents) / width.Seconds()
}

// width is how long a wave lasts: jitters add up from wave to wave, independently.
func (h *Herd) width(wave int) time.Duration {
	w := h.Spread.Seconds() + math.Sqrt(float64(wave))*(h.Jitter+h.CAJitter)*h.Lifetime.Seconds()
	return time.Duration(math.Max(math.Min(w, h.Lifetime.Seconds()/2), 0.001) * float64(time.Second))
}

// Expected returns the number of agents times the waves begun before d.
func (h *Herd) Expected(d time.Duration) float64 {
	return float64(h.Agents) * (math.Floor(d.Seconds()/(h.Lifetime.Seconds()/2)) + math.Min(1, d.Seconds()/math.Max(h.Spread.Seconds(), 0.001)))
}

// Arrivals starts the herd.
func (h *Herd) Arrivals(seed uint64) Arrivals {
	random := rand.New(rand.NewPCG(seed, 0x4e4d))
	a := &herdArrivals{herd: h, random: random, due: make(dueHeap, h.Agents)}
	for i := range a.due {
		a.due[i] = time.Duration(random.Float64() * float64(h.Spread))
	}
	heap.Init(&a.due)
	return a
}

type herdArrivals struct {
	herd   *Herd
	random *rand.Rand
	due    dueHeap
}

func (a *herdArrivals) Next() (time.Duration, bool) {
	if len(a.due) == 0 {
		return 0, false
	}
	due := a.due[0]
	either := func(share float64) float64 { return 1 + share*(2*a.random.Float64()-1) }
	lifetime := float64(a.herd.Lifetime) * either(a.herd.CAJitter)
	a.due[0] = due + max(time.Duration(lifetime/2*either(a.herd.Jitter)), time.Millisecond)
	heap.Fix(&a.due, 0)
	return due, true
}

type dueHeap []time.Duration

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(time.Duration)) }
func (h *dueHeap) Pop() any          { o := *h; x := o[len(o)-1]; *h = o[:len(o)-1]; return x }
