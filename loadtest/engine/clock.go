package engine

import (
	"context"
	"time"
)

// Clock tells the time and waits for it. Implementations are safe for concurrent use.
type Clock interface {
	// Now returns the time, with a monotonic reading.
	Now() time.Time
	// SleepUntil returns at t or a little later, never earlier, or as soon as ctx ends
	// (within a tenth of a second).
	SleepUntil(ctx context.Context, t time.Time)
}

// SystemClock is the machine's clock. It sleeps in the kernel, on the thread of the
// caller: Go's own timers wake an idle program up to a millisecond late, since they
// end in epoll_wait, and a spinning wait would burn one of two cores. A timerfd in Go's
// poller is as precise and costs as much.
type SystemClock struct{}

// Now returns time.Now.
func (SystemClock) Now() time.Time { return time.Now() }

// SleepUntil sleeps until t.
func (SystemClock) SleepUntil(ctx context.Context, t time.Time) {
	const longest = 100 * time.Millisecond // so that an end of ctx is seen
	for ctx.Err() == nil {
		d := time.Until(t)
		if d <= 0 {
			return
		}
		preciseSleep(min(d, longest))
	}
}
