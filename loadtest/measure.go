package loadtest

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/schedule"
)

// load is one run to make.
type load struct {
	plan     schedule.Schedule // nil is a closed loop; each run has arrivals of its own by it
	callers  int
	duration time.Duration
	warmup   time.Duration
	title    string
}

// measure makes one run. When ctx ends it returns what has been measured so far, with
// ctx's error.
func (s *session) measure(ctx context.Context, l load) (*report.Run, error) {
	id, err := material.RunID()
	if err != nil {
		return nil, err
	}
	w := &work{target: s.target, batch: 1, runID: "lt-" + id, csrs: s.csrs, statuses: s.statuses, checker: check.New(s.checks), saver: s.saver}
	if s.kind.Batch {
		w.batch = s.o.server.Batch
	}
	cfg := engine.Config{Duration: l.duration, Warmup: l.warmup, Timeout: s.o.timeout, InFlight: s.inFlight(), Units: w.batch}
	if s.csrs != nil {
		cfg.MaxCalls = s.csrs.MaxRequests() / int64(w.batch)
	}
	rec := engine.NewRecorder()
	watching, stop := context.WithCancel(ctx)
	watcher := &watcher{session: s, rec: rec, checker: w.checker, load: l, started: time.Now(), finished: make(chan struct{})}
	go watcher.run(watching)
	if l.plan == nil {
		cfg.InFlight = l.callers
		err = engine.Closed(ctx, cfg, w.do, rec)
	} else {
		err = engine.Open(ctx, cfg, every(l.plan.Arrivals(s.o.seed+s.opened), w.batch), w.do, rec)
		s.opened++
	}
	stop()
	<-watcher.finished
	checks := w.checker.Close()
	run := &report.Run{Summary: rec.Snapshot(time.Now()), Checks: checks, Samples: watcher.samples}
	run.Use = observe.Between(watcher.from, watcher.to)
	run.Reuse = s.reuse(w.asked.Load())
	run.Generator = judge(run, l.plan == nil)
	switch {
	case ctx.Err() != nil:
		run.Ended = report.Interrupted
	case cfg.MaxCalls > 0 && w.asked.Load() >= cfg.MaxCalls*int64(w.batch):
		run.Ended = fmt.Sprintf("every CSR has been used %d times (--max-reuse, --csrs)", s.o.maxReuse)
	}
	return run, err
}

// inFlight bounds the calls under way in an open loop. Over HTTP/1.1 that is the
// connections: a call that waits for one has not been sent, and is to count as that.
func (s *session) inFlight() int {
	if s.kind.Multiplexed {
		return s.o.inFlight
	}
	return min(s.o.inFlight, s.o.server.Connections)
}

func (s *session) reuse(asked int64) float64 {
	n := len(s.statuses)
	if s.csrs != nil {
		n, _ = s.csrs.Size()
	}
	return math.Round(10*float64(asked)/float64(n)) / 10
}

// every takes each n-th arrival: a call of a batch stands for n of them.
func every(a schedule.Arrivals, n int) schedule.Arrivals {
	if n == 1 {
		return a
	}
	return &nth{a, n}
}

type nth struct {
	schedule.Arrivals
	n int
}

func (a *nth) Next() (due time.Duration, ok bool) {
	for range a.n {
		if due, ok = a.Arrivals.Next(); !ok {
			return 0, false
		}
	}
	return due, true
}

// judge says whether the generator was in the way. In the open loop that shows in how
// late it sent, in the closed loop only in its CPU.
func judge(r *report.Run, closed bool) report.Generator {
	g := report.Generator{Cores: r.Use.Own}
	const late = 1.0 // ms
	switch {
	case !closed && r.OK > 0 && r.Late.P99 > late && r.Late.P99 > r.Latency.P99/10:
		g.Limit = true
		g.Why = fmt.Sprintf("1 %% of the requests were sent %.3g ms late or more, which is %.0f %% of the p99", r.Late.P99, 100*r.Late.P99/r.Latency.P99)
	case closed && r.Use.Own > 0.9*float64(runtime.GOMAXPROCS(0)):
		g.Limit = true
		g.Why = fmt.Sprintf("it used %.2f of its %d cores", r.Use.Own, runtime.GOMAXPROCS(0))
	}
	if g.Limit && r.Use.Cores > 0 && r.Use.Machine > 0.95*float64(r.Use.Cores) {
		g.Why += fmt.Sprintf("; the machine's CPU was full (%.2f of %d cores, %.2f of them the generator's)", r.Use.Machine, r.Use.Cores, r.Use.Own)
	}
	return g
}

// watcher looks at the service once an interval while a run is on, and shows it.
type watcher struct {
	session  *session
	rec      *engine.Recorder
	checker  *check.Checker
	load     load
	started  time.Time
	from, to observe.Sample
	samples  []report.Sample
	finished chan struct{}
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.finished)
	const shown = time.Second
	keep := engine.Interval(w.load.duration)
	var asking sync.WaitGroup
	asking.Go(func() { w.session.observer.Watch(ctx, shown) })
	defer asking.Wait()
	tick := time.NewTicker(shown)
	defer tick.Stop()
	before := w.session.observer.Sample(ctx)
	w.from = before
	warm := w.load.warmup > 0
	for last := before; ; {
		select {
		case <-ctx.Done():
			// One look more, or the last interval's CPU would be lost.
			w.to = w.session.observer.Sample(context.WithoutCancel(ctx))
			w.session.view.clear()
			return
		case <-tick.C:
		}
		look := w.session.observer.Glance
		warmed := warm && time.Since(w.started) >= w.load.warmup
		if warmed {
			look = w.session.observer.Sample
		}
		now := look(ctx)
		if ctx.Err() != nil {
			continue
		}
		if warmed {
			w.from, warm = now, false
		}
		s := sampleOf(now.At.Sub(w.started), before, now)
		if now.At.Sub(last.At) >= keep-shown/2 && len(w.samples) < maxSamples {
			w.samples = append(w.samples, sampleOf(now.At.Sub(w.started), last, now))
			last = now
		}
		before = now
		w.session.view.show(w.load, now.At.Sub(w.started), func() engine.Progress { return w.rec.Progress(now.At) }, s, w.checker.Summary().Wrong)
	}
}

// maxSamples bounds the samples of a run; an interval is at least a six-hundredth.
const maxSamples = 1200

func sampleOf(at time.Duration, a, b observe.Sample) report.Sample {
	use := observe.Between(a, b)
	s := report.Sample{At: at.Seconds(), Own: round(use.Own), Machine: round(use.Machine), Cores: map[string]float64{}, RSS: b.RSS}
	for _, r := range use.Roles {
		s.Cores[r.Name] = round(r.Cores)
	}
	s.Waiting, s.Queued, s.Busy, s.Sessions = known(b.Gauges.Waiting), known(b.Gauges.Queued), known(b.Gauges.Busy), known(b.Gauges.Sessions)
	return s
}

func round(v float64) float64 { return math.Round(v*1000) / 1000 }

func known(v float64) *float64 {
	if math.IsNaN(v) {
		return nil
	}
	return &v
}

// runs makes the runs of a plan, one after the other.
func (s *session) runs(ctx context.Context, l load, n int, pause time.Duration) ([]report.Run, error) {
	var out []report.Run
	for i := range n {
		if i > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return out, ctx.Err()
			}
		}
		if n > 1 {
			l.title = fmt.Sprintf("run %d of %d", i+1, n)
		}
		run, err := s.measure(ctx, l)
		if run != nil && !run.Empty() {
			out = append(out, *run)
		}
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// missed returns the conditions that any run missed.
func missed(o *report.Objective, runs []report.Run) []string {
	var out []string
	for i := range runs {
		for _, m := range o.Missed(&runs[i].Summary) {
			if len(runs) > 1 {
				m = fmt.Sprintf("run %d: %s", i+1, m)
			}
			out = append(out, m)
		}
	}
	return out
}
