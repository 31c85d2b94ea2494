package engine

import (
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// longest is the greatest latency that a histogram tells apart; longer ones count
	// as this.
	longest = 10 * time.Minute
	// maxKinds bounds the kinds of failure and of phase; what is beyond counts as "other".
	maxKinds = 32
	// maxPoints bounds the time series.
	maxPoints = 600
)

func newHistogram(digits int) *hdrhistogram.Histogram {
	return hdrhistogram.New(1, longest.Microseconds(), digits)
}

func add(h *hdrhistogram.Histogram, d time.Duration, n int) {
	// Within the clamp the only error there is, out of range, cannot occur.
	_ = h.RecordValues(min(max(d.Microseconds(), 1), longest.Microseconds()), int64(n))
}

// Recorder gathers what a loop measures, in memory that does not grow with the run:
// HdrHistograms (1 µs to 10 min, 3 digits; about 150 KB each) and a time series of at
// most 600 points. It is for one run. Snapshot may be called from any goroutine.
type Recorder struct {
	mu       sync.Mutex
	start    time.Time
	counts   time.Time // calls due before it are warm-up
	end      time.Time
	finished time.Time
	interval time.Duration
	blocked  time.Time // calls due before it were held back by a full service

	total    tally
	within   int64                   // units answered between counts and end, whenever they were due
	latency  *hdrhistogram.Histogram // from due
	service  *hdrhistogram.Histogram // from sent
	late     *hdrhistogram.Histogram // sent - due, where nothing but the generator was in the way
	phases   map[string]*hdrhistogram.Histogram
	errors   map[string]*Failure
	heldBack int64

	current  tally
	window   *hdrhistogram.Histogram
	sums     map[string]*phaseSum // of the window
	kinds    map[string]int64     // of the window
	points   []Point
	windowAt time.Time
}

type tally struct{ asked, ok, failed int64 }

type phaseSum struct {
	total time.Duration
	n     int64
}

// NewRecorder makes a recorder.
func NewRecorder() *Recorder {
	return &Recorder{
		latency: newHistogram(3), service: newHistogram(3), late: newHistogram(3), window: newHistogram(2),
		phases: map[string]*hdrhistogram.Histogram{}, errors: map[string]*Failure{},
		sums: map[string]*phaseSum{}, kinds: map[string]int64{},
	}
}

// Interval returns the width of the points of a run of length d: a second, or as many
// as keep the series within its bound.
func Interval(d time.Duration) time.Duration {
	return max(1, (d+maxPoints*time.Second-1)/(maxPoints*time.Second)) * time.Second
}

func (r *Recorder) begin(start, counts, end time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start, r.counts, r.end, r.windowAt = start, counts, end, start
	r.interval = Interval(end.Sub(start))
}

func (r *Recorder) finish(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished = now
	r.advance(now)
	switch {
	case r.current == (tally{}):
	case now.Sub(r.windowAt) < r.interval/2 && len(r.points) > 0:
		r.mergeWindow()
	default:
		r.closeWindow(now)
	}
}

// mergeWindow counts the last answers, which came just after the end, to the last
// point: a rate over a few milliseconds would mean nothing.
func (r *Recorder) mergeWindow() {
	p := &r.points[len(r.points)-1]
	p.Asked, p.OK, p.Failed = p.Asked+r.current.asked, p.OK+r.current.ok, p.Failed+r.current.failed
	for kind, n := range r.kinds {
		if p.Errors == nil {
			p.Errors = map[string]int64{}
		}
		p.Errors[kind] += n
	}
}

// asked counts a call that has become due.
func (r *Recorder) asked(due time.Time, units int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(due)
	r.current.asked += int64(units)
	if !due.Before(r.counts) {
		r.total.asked += int64(units)
	}
}

// blockedUntil notes that up to now every caller was waiting for the service.
func (r *Recorder) blockedUntil(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = now
}

func (r *Recorder) record(due, sent, done time.Time, out Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(done)
	timed, failed := out.OK, 0
	for f := range out.faults {
		failed += f.Units
		if f.Late {
			timed += f.Units
		}
		r.kinds[bounded(r.kinds, f.Kind)] += int64(f.Units)
	}
	r.current.ok += int64(out.OK)
	r.current.failed += int64(failed)
	add(r.window, done.Sub(due), timed)
	for _, p := range out.Phases {
		r.windowPhase(p)
	}
	if !done.Before(r.counts) && done.Before(r.end) {
		r.within += int64(out.OK)
	}
	if due.Before(r.counts) {
		return
	}
	r.total.ok += int64(out.OK)
	r.total.failed += int64(failed)
	add(r.latency, done.Sub(due), timed)
	add(r.service, done.Sub(sent), timed)
	if due.Before(r.blocked) {
		r.heldBack++
	} else {
		add(r.late, sent.Sub(due), 1)
	}
	for f := range out.faults {
		r.failure(f)
	}
	for _, p := range out.Phases {
		name := bounded(r.phases, p.Name)
		if r.phases[name] == nil {
			r.phases[name] = newHistogram(2)
		}
		add(r.phases[name], p.Duration, 1)
	}
}

func (r *Recorder) failure(fault Fault) {
	kind := bounded(r.errors, fault.Kind)
	f := r.errors[kind]
	if f == nil {
		f = &Failure{Kind: kind, Example: Printable(fault.Detail, maxDetail)}
		r.errors[kind] = f
	}
	f.Count += int64(fault.Units)
}

func (r *Recorder) windowPhase(p Phase) {
	name := bounded(r.sums, p.Name)
	s := r.sums[name]
	if s == nil {
		s = &phaseSum{}
		r.sums[name] = s
	}
	s.total += p.Duration
	s.n++
}

// bounded returns name, printable, or "other" when the map is full and name is not in it.
func bounded[V any](m map[string]V, name string) string {
	name = Printable(name, maxWord)
	if _, ok := m[name]; ok || len(m) < maxKinds {
		return name
	}
	return "other"
}

// advance closes the windows that have ended by now. Answers that come after the last
// due moment still make windows of their own, up to the bound on points.
func (r *Recorder) advance(now time.Time) {
	for now.Sub(r.windowAt) >= r.interval && len(r.points) < 2*maxPoints {
		r.closeWindow(r.windowAt.Add(r.interval))
	}
}

func (r *Recorder) closeWindow(end time.Time) {
	length := end.Sub(r.windowAt)
	p := Point{
		At: r.windowAt.Sub(r.start).Seconds(), Seconds: length.Seconds(),
		Warmup: r.windowAt.Before(r.counts),
		Asked:  r.current.asked, OK: r.current.ok, Failed: r.current.failed,
		Latency: quantilesOf(r.window),
	}
	if len(r.kinds) > 0 {
		p.Errors, r.kinds = r.kinds, map[string]int64{}
	}
	if len(r.sums) > 0 {
		p.Phases = make(map[string]float64, len(r.sums))
		for name, s := range r.sums {
			p.Phases[name] = milliseconds(s.total) / float64(s.n)
		}
		clear(r.sums)
	}
	r.points = append(r.points, p)
	r.window.Reset()
	r.current = tally{}
	r.windowAt = end
}

func milliseconds(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }
