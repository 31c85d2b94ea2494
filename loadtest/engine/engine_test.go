package engine

import (
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/certmill/certmill/loadtest/schedule"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubbleClock is the virtual time of a synctest bubble: sleeping costs nothing and is
// exact, so that what a run measures is known to the microsecond.
type bubbleClock struct{ extra time.Duration }

func (bubbleClock) Now() time.Time { return time.Now() }

func (c bubbleClock) SleepUntil(ctx context.Context, t time.Time) {
	timer := time.NewTimer(time.Until(t) + c.extra)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func config(d time.Duration, inFlight int) Config {
	return Config{Duration: d, Timeout: 30 * time.Second, InFlight: inFlight, Clock: bubbleClock{}}
}

func answer(after time.Duration) Op {
	return func(context.Context, Call) Outcome {
		time.Sleep(after)
		return Outcome{OK: 1}
	}
}

func near(t *testing.T, what string, got, want, slack float64) {
	t.Helper()
	if math.Abs(got-want) > slack {
		t.Errorf("%s is %g, want %g ± %g", what, got, want, slack)
	}
}

func TestOpenSendsEachCallWhenItIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []time.Duration
		start := time.Now()
		op := func(_ context.Context, c Call) Outcome {
			mu.Lock()
			defer mu.Unlock()
			if time.Now().Before(c.Due) {
				t.Errorf("call %d was sent before it was due", c.Seq)
			}
			seen = append(seen, time.Since(start))
			return Outcome{OK: 1}
		}
		rec := NewRecorder()
		if err := Open(t.Context(), config(2*time.Second, 8), schedule.Constant(100, schedule.Even).Arrivals(1), op, rec); err != nil {
			t.Fatal(err)
		}
		if len(seen) != 200 {
			t.Fatalf("%d calls, want 200", len(seen))
		}
		for i, at := range seen {
			if want := time.Duration(i) * 10 * time.Millisecond; (at - want).Abs() > time.Microsecond {
				t.Fatalf("call %d was sent at %s, due at %s", i, at, want)
			}
		}
		s := rec.Snapshot(time.Now())
		if s.Asked != 200 || s.OK != 200 || s.Failed != 0 || s.Late.Max > 0.002 {
			t.Errorf("summary %+v", s)
		}
		near(t, "rate reached", s.RateReached, 100, 0.5)
	})
}

func TestAQuantumBoundsTheSleepsAndNeverSendsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(time.Second, 64)
		cfg.Quantum = time.Millisecond
		var early atomic.Int64
		op := func(_ context.Context, c Call) Outcome {
			if time.Now().Before(c.Due) {
				early.Add(1)
			}
			return Outcome{OK: 1}
		}
		rec := NewRecorder()
		if err := Open(t.Context(), cfg, schedule.Constant(20_000, schedule.Even).Arrivals(1), op, rec); err != nil {
			t.Fatal(err)
		}
		s := rec.Snapshot(time.Now())
		if s.OK != 20_000 || early.Load() != 0 {
			t.Errorf("%d answered, %d sent early", s.OK, early.Load())
		}
		if s.Late.Max > 1.01 || s.Late.P50 < 0.3 {
			t.Errorf("lateness %+v; within a quantum of 1 ms it is spread evenly", s.Late)
		}
	})
}

// A server that serves one call at a time in 1 ms and stalls once for a second. Of 300
// calls 10 ms apart about a third fall into the stall or its backlog.
func TestOnlyTheOpenLoopShowsAStall(t *testing.T) {
	stalling := func() Op {
		// A channel, for synctest does not let time pass while a mutex is waited for.
		turn := make(chan struct{}, 1)
		n := 0
		return func(context.Context, Call) Outcome {
			turn <- struct{}{}
			defer func() { <-turn }()
			if n++; n == 100 {
				time.Sleep(time.Second)
			}
			time.Sleep(time.Millisecond)
			return Outcome{OK: 1}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for _, inFlight := range []int{1, 500} {
			rec := NewRecorder()
			if err := Open(t.Context(), config(3*time.Second, inFlight), schedule.Constant(100, schedule.Even).Arrivals(1), stalling(), rec); err != nil {
				t.Fatal(err)
			}
			s := rec.Snapshot(time.Now())
			// 111 calls wait: the first 1,001 ms, the following ones 9 ms less each.
			near(t, "open: max", s.Latency.Max, 1001, 2)
			near(t, "open: p90", s.Latency.P90, 1001-30*9, 20)
			near(t, "open: mean", s.Latency.Mean, 1+111*500.0/300, 15)
			if held := s.HeldBack > 90; held != (inFlight == 1) {
				t.Errorf("with %d in flight %d calls were held back by the service", inFlight, s.HeldBack)
			}
			if s.Late.Max > 0.01 {
				t.Errorf("the generator is blamed for %g ms of the server's stall", s.Late.Max)
			}
		}
		rec := NewRecorder()
		if err := Closed(t.Context(), config(3*time.Second, 1), stalling(), rec); err != nil {
			t.Fatal(err)
		}
		if s := rec.Snapshot(time.Now()); s.Latency.P99 > 2 || s.Latency.Max < 1000 {
			t.Errorf("closed loop: %+v; it is expected to hide the stall, or the comparison shows nothing", s.Latency)
		}
	})
}

func TestCallsThatCouldNotBeSentAreLateFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(2*time.Second, 1)
		cfg.Timeout = 500 * time.Millisecond
		rec := NewRecorder()
		if err := Open(t.Context(), cfg, schedule.Constant(100, schedule.Even).Arrivals(1), answer(100*time.Millisecond), rec); err != nil {
			t.Fatal(err)
		}
		s := rec.Snapshot(time.Now())
		if s.OK+s.Failed != s.Asked || s.Asked != 200 {
			t.Errorf("asked %d, answered %d, failed %d: some are lost", s.Asked, s.OK, s.Failed)
		}
		if len(s.Errors) != 1 || s.Errors[0].Kind != KindUnsent || s.Errors[0].Count < 150 {
			t.Errorf("errors %+v, want about 175 unsent", s.Errors)
		}
		if s.Latency.P50 < 500 {
			t.Errorf("p50 is %g ms: calls that were never sent made the service look fast", s.Latency.P50)
		}
	})
}

func TestTheRateReachedIsThatOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 4 callers at 100 ms are 40/s, whatever is asked for, and 1 s of latency does not
		// lower a rate that is kept.
		for _, c := range []struct {
			asked, want float64
			inFlight    int
			each        time.Duration
		}{{200, 40, 4, 100 * time.Millisecond}, {200, 200, 1000, time.Second}} {
			cfg := config(12*time.Second, c.inFlight)
			cfg.Warmup, cfg.Timeout = 2*time.Second, 3*time.Second
			rec := NewRecorder()
			if err := Open(t.Context(), cfg, schedule.Constant(c.asked, schedule.Even).Arrivals(1), answer(c.each), rec); err != nil {
				t.Fatal(err)
			}
			near(t, "rate reached", rec.Snapshot(time.Now()).RateReached, c.want, 1)
		}
	})
}

func TestALateGeneratorIsMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(time.Second, 10)
		cfg.Clock = bubbleClock{extra: 3 * time.Millisecond}
		rec := NewRecorder()
		if err := Open(t.Context(), cfg, schedule.Constant(50, schedule.Even).Arrivals(1), answer(time.Millisecond), rec); err != nil {
			t.Fatal(err)
		}
		s := rec.Snapshot(time.Now())
		near(t, "late p50", s.Late.P50, 3, 0.05)
		near(t, "latency p50, from due", s.Latency.P50, 4, 0.05)
		near(t, "service p50, from sent", s.Service.P50, 1, 0.05)
	})
}

func TestTheWarmUpIsInTheSeriesAndNotInTheTotals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(5*time.Second, 10)
		cfg.Warmup = 2 * time.Second
		rec := NewRecorder()
		op := func(_ context.Context, c Call) Outcome {
			if c.Seq < 200 {
				time.Sleep(50 * time.Millisecond)
			}
			return Outcome{OK: 1, Phases: []Phase{{"hsm", 2 * time.Millisecond}}}
		}
		if err := Open(t.Context(), cfg, schedule.Constant(100, schedule.Even).Arrivals(1), op, rec); err != nil {
			t.Fatal(err)
		}
		s := rec.Snapshot(time.Now())
		if s.Asked != 300 || s.OK != 300 || s.Latency.Max > 1 || len(s.Series) != 5 || !s.Series[1].Warmup || s.Series[2].Warmup {
			t.Errorf("asked %d, ok %d, max %g, %d points", s.Asked, s.OK, s.Latency.Max, len(s.Series))
		}
		near(t, "p50 of the first second", s.Series[0].Latency.P50, 50, 1)
		near(t, "phase mean of the last second", s.Series[4].Phases["hsm"], 2, 0)
		near(t, "counted seconds", s.Seconds, 3, 0)
		if len(s.Phases) != 1 || s.Phases[0].Count != 300 {
			t.Errorf("phases %+v", s.Phases)
		}
	})
}

func TestTheSeriesHoldsEveryAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, each := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 1700 * time.Millisecond} {
			rec := NewRecorder()
			if err := Open(t.Context(), config(3*time.Second, 1000), schedule.Constant(100, schedule.Even).Arrivals(1), answer(each), rec); err != nil {
				t.Fatal(err)
			}
			var asked, ok int64
			s := rec.Snapshot(time.Now())
			for _, p := range s.Series {
				asked, ok = asked+p.Asked, ok+p.OK
				if p.Seconds < 0.5 {
					t.Errorf("%s: a point of %g s", each, p.Seconds)
				}
			}
			if asked != 300 || ok != 300 {
				t.Errorf("%s: the series has %d asked and %d answered of 300", each, asked, ok)
			}
		}
	})
}

func TestClosedKeepsItsCallersBusyAndStopsAtTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := NewRecorder()
		if err := Closed(t.Context(), config(time.Second, 4), answer(10*time.Millisecond), rec); err != nil {
			t.Fatal(err)
		}
		near(t, "answers of 4 callers in 1 s at 10 ms", float64(rec.Snapshot(time.Now()).OK), 400, 4)
		cfg := config(time.Hour, 4)
		cfg.MaxCalls = 50
		rec = NewRecorder()
		if err := Closed(t.Context(), cfg, answer(10*time.Millisecond), rec); err != nil {
			t.Fatal(err)
		}
		if n := rec.Snapshot(time.Now()).OK; n != 50 {
			t.Errorf("%d answers with a bound of 50", n)
		}
	})
}

func TestACancelledRunEndsAndReportsWhatItHas(t *testing.T) {
	for _, closed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			rec := NewRecorder()
			op := func(ctx context.Context, _ Call) Outcome {
				select {
				case <-time.After(20 * time.Millisecond):
					return Outcome{OK: 1}
				case <-ctx.Done():
					return Outcome{Failed: 1, Kind: "canceled"}
				}
			}
			var err error
			if closed {
				err = Closed(ctx, config(time.Hour, 2), op, rec)
			} else {
				err = Open(ctx, config(time.Hour, 100), schedule.Constant(100, schedule.Even).Arrivals(1), op, rec)
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("closed=%v: error %v", closed, err)
			}
			s := rec.Snapshot(time.Now())
			if s.OK < 140 || s.Failed != 0 {
				t.Errorf("closed=%v: %d answered, %d failed: being cut short is no failure of the service", closed, s.OK, s.Failed)
			}
		})
	}
}

func TestMemoryDoesNotGrowWithTheRun(t *testing.T) {
	rec := NewRecorder()
	start := time.Now()
	rec.begin(start, start, start.Add(10*time.Hour))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	hour := func(h int) {
		for i := range 360_000 {
			at := start.Add(time.Duration(h)*time.Hour + time.Duration(i)*10*time.Millisecond)
			rec.asked(at, 1)
			rec.record(at, at, at.Add(time.Duration(i%5000)*time.Microsecond), Outcome{OK: 1, Failed: i % 2, Kind: string(rune('a' + i%26)), Phases: []Phase{{"hsm", time.Millisecond}}})
		}
	}
	hour(0)
	before := heap()
	for h := 1; h < 5; h++ {
		hour(h)
	}
	if grown := int64(heap()) - int64(before); grown > 2<<20 {
		t.Errorf("four more hours took %d KiB more", grown>>10)
	}
	if n := len(rec.Snapshot(start.Add(5 * time.Hour)).Series); n > maxPoints {
		t.Errorf("%d points", n)
	}
	runtime.KeepAlive(rec)
}

func TestTheSystemClockSleepsPrecisely(t *testing.T) {
	var late []time.Duration
	for range 50 {
		due := time.Now().Add(700 * time.Microsecond)
		SystemClock{}.SleepUntil(t.Context(), due)
		d := time.Since(due)
		if d < 0 {
			t.Fatalf("woke %s early", -d)
		}
		late = append(late, d)
	}
	// Other programs run on this machine, so only the best of many is held to a bound:
	// a timer of 1 ms resolution could not reach it.
	best := late[0]
	for _, d := range late {
		best = min(best, d)
	}
	if best > 500*time.Microsecond {
		t.Errorf("the best of 50 sleeps was %s late", best)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	SystemClock{}.SleepUntil(ctx, time.Now().Add(time.Hour))
	if time.Since(began) > 10*time.Second {
		t.Error("the end of the context did not end the sleep")
	}
}

// What the generator does with an answer is no part of the answer's latency; calls that
// wait for it are the generator's lateness, not held back by the service.
func TestTheGeneratorsOwnWorkIsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := func(context.Context, Call) Outcome {
			time.Sleep(time.Millisecond)
			return Outcome{OK: 1, Then: func() { time.Sleep(14 * time.Millisecond) }}
		}
		rec := NewRecorder()
		if err := Open(t.Context(), config(time.Second, 1), schedule.Constant(100, schedule.Even).Arrivals(1), busy, rec); err != nil {
			t.Fatal(err)
		}
		s := rec.Snapshot(time.Now())
		near(t, "open: service p50", s.Service.P50, 1, 0.01)
		if s.HeldBack != 0 || s.Late.Max < 400 {
			t.Errorf("%d calls held back by the service, lateness %+v", s.HeldBack, s.Late)
		}
		rec = NewRecorder()
		if err := Closed(t.Context(), config(time.Second, 1), busy, rec); err != nil {
			t.Fatal(err)
		}
		s = rec.Snapshot(time.Now())
		near(t, "closed: latency max", s.Latency.Max, 1, 0.01)
		near(t, "closed: calls", float64(s.OK), 67, 1)
	})
}

// Many callers come free one shortly after the other: what they wait for is the service.
func TestTheServicesTimeIsTheServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context, Call) Outcome {
			time.Sleep(100 * time.Millisecond)
			return Outcome{OK: 1, Then: func() { time.Sleep(2 * time.Millisecond) }}
		}
		rec := NewRecorder()
		if err := Open(t.Context(), config(time.Second, 64), schedule.Constant(2000, schedule.Even).Arrivals(1), slow, rec); err != nil {
			t.Fatal(err)
		}
		if s := rec.Snapshot(time.Now()); s.HeldBack < 500 || s.Late.P99 > 10 {
			t.Errorf("%d calls held back by the service, lateness %+v", s.HeldBack, s.Late)
		}
	})
}

func TestEachFailureOfACallCountsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mixed := func(context.Context, Call) Outcome {
			time.Sleep(5 * time.Millisecond)
			return Outcome{OK: 2, More: []Fault{
				{Units: 1, Kind: "denied", Detail: "not this name"},
				{Units: 1, Kind: KindTimeout, Detail: "too slow", Late: true},
				{Units: 1, Kind: "denied", Detail: "nor this"},
			}}
		}
		cfg := config(time.Second, 1)
		cfg.Units, cfg.MaxCalls = 5, 1
		rec := NewRecorder()
		if err := Closed(t.Context(), cfg, mixed, rec); err != nil {
			t.Fatal(err)
		}
		s := rec.Snapshot(time.Now())
		want := []Failure{{Kind: "denied", Count: 2, Example: "not this name"}, {Kind: KindTimeout, Count: 1, Example: "too slow"}}
		if s.OK != 2 || s.Failed != 3 || !slices.Equal(s.Errors, want) {
			t.Errorf("%d answered, %d failed: %+v", s.OK, s.Failed, s.Errors)
		}
		if s.Latency.Count != 3 {
			t.Errorf("%d units in the latency, want the two answers and the timeout", s.Latency.Count)
		}
		if p := s.Series[len(s.Series)-1]; p.Failed != 3 || p.Errors["denied"] != 2 || p.Errors[KindTimeout] != 1 {
			t.Errorf("the last point: %+v", p)
		}
	})
}

func TestWhatAServerSaidIsPrintable(t *testing.T) {
	rec := NewRecorder()
	now := time.Now()
	rec.begin(now, now, now.Add(time.Second))
	rec.record(now, now, now, Outcome{Failed: 1, Kind: "http\x1b[2J", Detail: "\x1b]0;title\a" + strings.Repeat("\x00", 1000)})
	rec.record(now, now, now, Outcome{OK: 1, Phases: []Phase{{Name: "sign\x1b[31m", Duration: time.Millisecond}}})
	rec.finish(now.Add(time.Second))
	s := rec.Snapshot(now.Add(time.Second))
	e := s.Errors[0]
	if e.Kind != `http\x1b[2J` || !strings.HasPrefix(e.Example, `\x1b]0;title\a\x00`) || utf8.RuneCountInString(e.Example) > 300 {
		t.Errorf("%q: %q", e.Kind, e.Example)
	}
	if s.Phases[0].Name != `sign\x1b[31m` || s.Series[0].Errors[e.Kind] != 1 || s.Series[0].Phases[s.Phases[0].Name] != 1 {
		t.Errorf("phases %+v, series %+v", s.Phases, s.Series)
	}
	for in, want := range map[string]string{
		"":                  "",
		"plain":             "plain",
		"für\tzwei\n\u2028": "für zwei ",
		"\xff\u202ex":       `\xff…`,
		"exactly ten":       "exactly t…",
		"a  b\n\t c":        "a b c",
		"0123456789":        "0123456789",
		"ééééééééééé":       "ééééééééé…",
	} {
		if got := Printable(in, 10); got != want {
			t.Errorf("%q is made %q, want %q", in, got, want)
		}
	}
}
