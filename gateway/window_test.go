package gateway

import (
	"testing"
	"time"
)

// windowWorld is a window with a clock, signers that answer at a rate, and so many
// callers that every place is taken.
type windowWorld struct {
	*window
	now    time.Time
	queue  []time.Time // when each entered
	waited time.Duration
}

func newWindowWorld(maxWait time.Duration) *windowWorld {
	l := DefaultConfig().Limits
	l.MaxInFlight, l.MaxBatch, l.MaxWait, l.RenewalShare = 2000, 100, maxWait, 0.5
	return &windowWorld{
		window: newWindow(&l, newShares("share", newLimiter("all", l.MaxInFlight, time.Second), l.CallerShare), newLimiter("renewals", l.maxRenewals(), time.Second)),
		now:    time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

// answers lets the signers answer at a rate for a time. It keeps the longest wait in
// the last tenth of it.
func (w *windowWorld) answers(rate float64, d time.Duration) {
	pause := time.Duration(float64(time.Second) / rate)
	w.waited = 0
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(pause) {
		for int64(len(w.queue)) < w.calls.bound.Load() {
			w.queue = append(w.queue, w.now)
		}
		took := w.now.Sub(w.queue[0]) + pause
		w.queue = w.queue[1:]
		w.answered(w.now, took)
		if end.Sub(w.now) < d/10 {
			w.waited = max(w.waited, took)
		}
	}
}

func TestTheWindowIsWhatTheSignersServeInTime(t *testing.T) {
	for name, c := range map[string]struct {
		wait     time.Duration
		rate     float64
		low, top int64
	}{
		"fast signers are left alone":          {time.Second, 5000, 2000, 2000},
		"slow ones get what they can serve":    {time.Second, 400, 300, 450},
		"twice the time is twice as much":      {2 * time.Second, 400, 650, 900},
		"a batch fits in, however slow":        {time.Second, 10, 100, 110},
		"without a bound nothing is ever less": {0, 10, 2000, 2000},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWindowWorld(c.wait)
			w.answers(c.rate, 30*time.Second)
			if bound := w.calls.bound.Load(); bound < c.low || bound > c.top {
				t.Errorf("the bound is %d, not %d to %d", bound, c.low, c.top)
			}
			if w.waited > 3*c.wait/2 && c.wait > 0 && c.low > w.least {
				t.Errorf("somebody waits for %s", w.waited)
			}
			if all, renewals := w.calls.bound.Load(), w.renewals.bound.Load(); renewals != all/2 {
				t.Errorf("%d for renewals, of %d", renewals, all)
			}
		})
	}
}

func TestTheWindowOpensAgainWithTheSigners(t *testing.T) {
	w := newWindowWorld(time.Second)
	w.answers(200, 10*time.Second)
	narrow := w.calls.bound.Load()
	w.now, w.queue = w.now.Add(time.Minute), nil // nobody asks
	w.answers(5000, 5*time.Second)
	if bound := w.calls.bound.Load(); narrow > 300 || bound != w.calls.places.max {
		t.Errorf("the bound was %d and is %d", narrow, bound)
	}
}

// TestAnOutageDoesNotNarrowTheWindowForGood: what waited through an outage is late, and
// says nothing of what the signers can do.
func TestAnOutageDoesNotNarrowTheWindowForGood(t *testing.T) {
	w := newWindowWorld(time.Second)
	w.answers(5000, 5*time.Second)
	w.now = w.now.Add(8 * time.Second) // and then all who waited are answered
	w.answers(5000, 4*time.Second)
	if bound := w.calls.bound.Load(); bound != w.calls.places.max {
		t.Errorf("the bound is %d", bound)
	}
}
