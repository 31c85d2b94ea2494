package signer

import (
	"sync/atomic"

	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// A crew is the goroutines that bring requests through the signer. A new goroutine for
// each request would grow its stack anew each time, by copying it three times over;
// these keep theirs from one request to the next. It is safe for concurrent use.
type crew struct {
	tasks chan task
	idle  atomic.Int32
	end   <-chan struct{} // closed when those that are idle shall go
}

// A task is one request of a message.
type task struct {
	line     *line
	delivery *delivery
	request  *queuev1.SignRequest
}

// crewIdle is how many goroutines wait for work at most.
const crewIdle = 64

func newCrew(end <-chan struct{}) *crew { return &crew{tasks: make(chan task), end: end} }

// begin sets t to work at once: nothing waits for a free goroutine.
func (c *crew) begin(t task) {
	select {
	case c.tasks <- t:
	default:
		go c.member(t)
	}
}

func (c *crew) member(t task) {
	for {
		t.line.serve(t.delivery, t.request)
		t = task{}
		if c.idle.Add(1) > crewIdle {
			c.idle.Add(-1)
			return
		}
		select {
		case t = <-c.tasks:
			c.idle.Add(-1)
		case <-c.end:
			return
		}
	}
}
