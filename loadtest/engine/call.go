// Package engine sends requests when they are due and measures what comes of them.
//
// The open loop takes its moments from a schedule and counts latency from the
// moment a request was due, whether or not it could be sent then; so a server that
// stalls is charged for every request that had to wait, not only for the one that
// it stalled (the "coordinated omission" of closed loops). The closed loop keeps a
// number of callers busy and is for finding out what a service can do at most.
package engine

import (
	"context"
	"time"
)

// Call is one request that is due.
type Call struct {
	// Seq counts the calls from 0.
	Seq int64
	// Due is when it should be sent; latency counts from here.
	Due time.Time
	// Deadline is when its caller gives up.
	Deadline time.Time
}

// Phase is a part of a request's time as the server states it (Server-Timing).
type Phase struct {
	Name     string
	Duration time.Duration
}

// Outcome is what came of one call. A call may stand for several units, as a batch
// of certificates does.
type Outcome struct {
	// OK and Failed count units.
	OK, Failed int
	// Kind classifies the failure, a word from a small set; Detail is for people.
	Kind, Detail string
	// Late says that the units failed by taking too long (a timeout), so that their
	// time belongs into the latency: a server must not look fast by not answering.
	Late bool
	// More are failed units beside Failed, where those of one call failed differently.
	More []Fault
	// Phases is where the time went, if the server said so.
	Phases []Phase
	// Then, if set, is called once the outcome is recorded: the generator's own work with
	// the answer, which belongs to no latency. It should be short, for its caller makes no
	// other call meanwhile; what is sent late for it counts as the generator's doing.
	Then func()
}

// Fault is failed units of a call with what was wrong with them, as in Outcome.
type Fault struct {
	Units        int
	Kind, Detail string
	Late         bool
}

// faults yields all failures of the call.
func (o *Outcome) faults(yield func(Fault) bool) {
	if o.Failed > 0 && !yield(Fault{Units: o.Failed, Kind: o.Kind, Detail: o.Detail, Late: o.Late}) {
		return
	}
	for _, f := range o.More {
		if !yield(f) {
			return
		}
	}
}

// Kinds of failure that the engine itself gives.
const (
	// KindUnsent: the call's deadline passed before it could be sent, since every
	// caller was still waiting for an answer.
	KindUnsent = "unsent"
	// KindTimeout: no answer came before the deadline.
	KindTimeout = "timeout"
)

// Op does one call. It returns soon after the call's deadline or the end of ctx. It
// is called from many goroutines.
type Op func(ctx context.Context, call Call) Outcome
