package presence

import (
	"sync"
	"time"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// windowFor is how long the window of an Activity is, and slot its grain.
const (
	windowFor = 10 * time.Second
	slot      = time.Second
	slots     = int(windowFor / slot)
)

// latencies are the upper bounds of the buckets of an Activity, in seconds.
var latencies = [...]float64{.001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10, 30}

// Outcome is how a request for a certificate ended.
type Outcome uint8

// The outcomes.
const (
	Issued  Outcome = iota
	Failed          // the service could not
	Refused         // the caller may not
)

// Window counts what was issued in the last ten seconds, in slots of one second. The
// zero Window is ready; it is safe for concurrent use.
type Window struct {
	mu    sync.Mutex
	slots [slots]tally
}

// tally is what ended in one second.
type tally struct {
	second  int64 // Unix
	counts  [3]int64
	latency [len(latencies) + 1]int64
}

// Count notes the end of one request.
func (w *Window) Count(o Outcome, took time.Duration, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	second := now.Unix()
	t := &w.slots[second%int64(slots)]
	if t.second != second {
		*t = tally{second: second}
	}
	t.counts[o]++
	if o == Issued {
		t.latency[bucketOf(took.Seconds())]++
	}
}

func bucketOf(seconds float64) int {
	for i, le := range latencies {
		if seconds <= le {
			return i
		}
	}
	return len(latencies)
}

// Activity returns the whole seconds of the window before now.
func (w *Window) Activity(now time.Time) *certmillv1.Activity {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := now.Unix() - 1 // the second under way is not whole
	first := last - int64(slots) + 2
	m := &certmillv1.Activity{Seconds: float64(last - first + 1)}
	var latency [len(latencies) + 1]int64
	for i := range w.slots {
		t := &w.slots[i]
		if t.second < first || t.second > last {
			continue
		}
		m.Issued += t.counts[Issued]
		m.Failed += t.counts[Failed]
		m.Refused += t.counts[Refused]
		for k, n := range t.latency {
			latency[k] += n
		}
	}
	for k, n := range latency {
		if n == 0 {
			continue
		}
		b := &certmillv1.LatencyBucket{Count: n}
		if k < len(latencies) {
			b.Seconds = latencies[k]
		}
		m.Latency = append(m.Latency, b)
	}
	return m
}
