package chaos

import (
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// A fault holds calls up for three seconds and lets them go in one burst when it ends; it
// takes another second until calls are prompt again.
func TestABurstOfWhatWasHeldUpIsNoRecovery(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	var events []judge.Event
	for ms := 0; ms < 15_000; ms += 100 {
		e := judge.Event{Kind: judge.Issue, At: at(ms), Took: 10 * time.Millisecond, Outcome: judge.OK}
		switch {
		case ms >= 6000 && ms < 7000:
			e.Outcome = judge.Timeout
		case ms >= 6000 && ms < 9000:
			e.Took = at(9000).Sub(e.At)
		case ms >= 9000 && ms < 10_000:
			e.Took = time.Second
		}
		events = append(events, e)
	}
	events = append(events, judge.Event{Kind: judge.Fault, Name: "freeze", At: at(6000), Took: 3 * time.Second})
	got := reports(events)
	if len(got) != 1 {
		t.Fatalf("%d faults", len(got))
	}
	r := got[0]
	if r.Calls != 29 || r.OK != 20 || r.Slowest != 2*time.Second { // the first began with the fault
		t.Errorf("%d of %d calls succeeded, the slowest took %s", r.OK, r.Calls, r.Slowest)
	}
	// Nine calls of ten make a second normal.
	if !r.Recovered || r.Recovery < 850*time.Millisecond || r.Recovery > time.Second {
		t.Errorf("normal again %s after the end (%v)", r.Recovery, r.Recovered)
	}
	if _, ok := recovery(events, at(9000), at(10_500), calmRate(events)); ok {
		t.Error("it was normal half a second after the first prompt call")
	}
}
