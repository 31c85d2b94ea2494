package chaos

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// FaultReport says what a fault did to those who asked for certificates.
type FaultReport struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took"`
	// Calls and OK count the calls that began while it lasted: single attempts, without
	// their repetitions. Slowest is the longest that one of them took.
	Calls   int           `json:"calls"`
	OK      int           `json:"ok"`
	Slowest time.Duration `json:"slowest"`
	// Recovered says that the normal rate came back, and Recovery how long after its end.
	Recovered bool          `json:"recovered"`
	Recovery  time.Duration `json:"recovery"`
}

// Availability is the share of calls that succeeded while the fault lasted, 0 to 1; 1
// where there were none.
func (f FaultReport) Availability() float64 {
	if f.Calls == 0 {
		return 1
	}
	return float64(f.OK) / float64(f.Calls)
}

// isCall reports whether an event is a client's call to a gateway.
func isCall(e *judge.Event) bool {
	switch e.Kind {
	case judge.Issue, judge.Submit, judge.Revoke:
		return true
	}
	return false
}

const (
	// window is what is looked at for a rate.
	window = time.Second
	// prompt is how long a call may take to count for the normal rate.
	prompt = 500 * time.Millisecond
)

// calmRate returns the successful calls a second before the first fault, without the
// first two seconds, in which everything is new.
func calmRate(events []judge.Event) float64 {
	var first, from, to time.Time
	for i := range events {
		e := &events[i]
		if isCall(e) && (first.IsZero() || e.At.Before(first)) {
			first = e.At
		}
		if e.Kind == judge.Fault && (to.IsZero() || e.At.Before(to)) {
			to = e.At
		}
	}
	from = first.Add(2 * time.Second)
	if to.IsZero() || !to.After(from) {
		return 0
	}
	n := 0
	for i := range events {
		if e := &events[i]; isCall(e) && e.Outcome == judge.OK && e.End().After(from) && e.End().Before(to) {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// recovery returns how long after end the normal rate was back, if that was before now:
// the beginning of the first second in which nine tenths of the calm rate began and
// succeeded promptly. What a fault held up and let go in one burst does not count.
func recovery(events []judge.Event, end, now time.Time, calm float64) (time.Duration, bool) {
	var ok []time.Time
	for i := range events {
		if e := &events[i]; isCall(e) && e.Outcome == judge.OK && e.Took <= prompt && !e.At.Before(end) && e.End().Before(now) {
			ok = append(ok, e.At)
		}
	}
	slices.SortFunc(ok, time.Time.Compare)
	want := int(calm * normal * window.Seconds())
	for at := end; !at.Add(window).After(now); at = at.Add(50 * time.Millisecond) {
		i, _ := slices.BinarySearchFunc(ok, at, time.Time.Compare)
		j, _ := slices.BinarySearchFunc(ok, at.Add(window), time.Time.Compare)
		if j-i >= want {
			return at.Sub(end), true
		}
	}
	return 0, false
}

// reports makes the report of every fault.
func reports(events []judge.Event) []FaultReport {
	calm := calmRate(events)
	var faults []*judge.Event
	var last time.Time
	for i := range events {
		if e := &events[i]; e.Kind == judge.Fault {
			faults = append(faults, e)
		} else if e.End().After(last) {
			last = e.End()
		}
	}
	var out []FaultReport
	for i, f := range faults {
		until := last
		if i+1 < len(faults) {
			until = faults[i+1].At
		}
		r := FaultReport{Name: f.Name, Took: f.Took}
		for k := range events {
			if e := &events[k]; isCall(e) && e.At.After(f.At) && e.At.Before(f.End()) {
				r.Calls++
				r.Slowest = max(r.Slowest, e.Took)
				if e.Outcome == judge.OK {
					r.OK++
				}
			}
		}
		r.Recovery, r.Recovered = recovery(events, f.End(), until, calm)
		out = append(out, r)
	}
	return out
}

// Table writes the faults as a table in Markdown, and the judgement below it.
func (o *Outcome) Table(w io.Writer) {
	fmt.Fprintf(w, "\nseed %d: %d operations in %d calls, %d of them without success within %s; calm rate %.1f/s\n\n",
		o.Seed, o.Operations, o.Calls, o.Failed, opTimeout, o.CalmRate)
	fmt.Fprintf(w, "| fault | lasted | calls begun | succeeded | slowest | normal rate after |\n|---|---|---|---|---|---|\n")
	for _, f := range o.Faults {
		after := "not before the next fault"
		if f.Recovered {
			after = fmt.Sprintf("%.1f s", f.Recovery.Seconds())
		}
		fmt.Fprintf(w, "| %s | %.1f s | %d | %.1f %% | %.2f s | %s |\n", f.Name, f.Took.Seconds(), f.Calls, 100*f.Availability(), f.Slowest.Seconds(), after)
	}
	fmt.Fprintln(w)
	for _, f := range o.Findings {
		fmt.Fprintln(w, f)
		for _, e := range f.Evidence {
			fmt.Fprintln(w, "     ", e)
		}
	}
}
