package gateway

import (
	"sync"
	"time"
)

const (
	// windowStep is how often the bound is looked at.
	windowStep = 100 * time.Millisecond
	// windowSteps are what the rate of the signers is taken from: the best second of them
	// in a row.
	windowSteps = 50
	// windowGrowth is by how much the bound grows with each step in which nobody waits
	// too long.
	windowGrowth = 1.1
)

// A window keeps the requests in flight at what the signers can serve within a time
// (Little's law): while answers come later than that, the bound is the rate of answers
// times the time. So the wait is bounded, whatever the rate of the signers is. It never
// goes by a rate at which nobody waited, which would say how much was asked for and not
// what can be done. Safe for concurrent use.
type window struct {
	wait     time.Duration // 0: the bounds stand
	calls    *shares
	renewals *limiter
	share    float64 // of renewals
	least    int64

	mu       sync.Mutex // guards all below
	stepEnds time.Time
	answers  int           // in this step
	waited   time.Duration // by all of them
	rates    [windowSteps]int
	step     int
}

func newWindow(l *Limits, calls *shares, renewals *limiter) *window {
	return &window{
		wait: l.MaxWait, calls: calls, renewals: renewals, share: l.RenewalShare,
		least: min(calls.places.max, int64(max(l.MaxBatch, 64))),
	}
}

// answered takes note that the signers have answered a request after a time.
func (w *window) answered(now time.Time, took time.Duration) {
	if w.wait == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if late := now.Sub(w.stepEnds); late >= 0 {
		w.look()
		// Steps in which nothing was answered are part of the record, as far as it goes.
		for range min(late/windowStep, windowSteps) {
			w.note(0)
		}
		w.stepEnds = now.Add(windowStep)
	}
	w.answers++
	w.waited += took
}

// look ends a step. The caller holds the mutex.
func (w *window) look() {
	if w.answers == 0 {
		return
	}
	w.note(w.answers)
	bound := w.calls.bound.Load()
	mean, can := w.waited/time.Duration(w.answers), int64(w.best()*w.wait.Seconds())
	grown := int64(float64(bound)*windowGrowth) + 1
	switch {
	case mean > w.wait:
		bound = min(bound, can) // no more than before: the rate is of those who were let in
	case mean > w.wait/2:
		// Near the bound the rate is that of the signers. What is let in now shows in the
		// mean only when it is answered, so the mean is not waited for.
		bound = max(bound, min(grown, can))
	default:
		bound = grown
	}
	bound = min(max(bound, w.least), w.calls.places.max)
	w.calls.bound.Store(bound)
	w.renewals.bound.Store(max(1, int64(w.share*float64(bound))))
	w.answers, w.waited = 0, 0
}

func (w *window) note(answers int) {
	w.rates[w.step%windowSteps] = answers
	w.step++
}

// best returns the answers a second in the best second on record.
func (w *window) best() float64 {
	const second = int(time.Second / windowStep)
	sum, most := 0, 0
	n := min(w.step, windowSteps)
	for i := range n {
		sum += w.rates[(w.step-n+i)%windowSteps]
		if i >= second {
			sum -= w.rates[(w.step-n+i-second)%windowSteps]
		}
		most = max(most, sum)
	}
	return float64(most) * float64(second) / float64(min(max(n, 1), second))
}
