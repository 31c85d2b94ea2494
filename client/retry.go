package client

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// How Retry waits where the gateway advises nothing.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// Retry calls until it succeeds, fails for good, or the client's timeout or ctx has
// passed; then it returns the last failure as an *Error. Only Overloaded and Unavailable
// are tried again: never sooner than the gateway advises, and later by a pause that
// grows from 100 ms to 5 s and of which at least half is random. call must be safe to repeat:
// keep what identifies a request, its request_id, over the tries.
func (c *Client) Retry(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		try, end := context.WithTimeout(ctx, c.cfg.TryTimeout)
		err := call(try)
		end()
		if err == nil {
			return nil
		}
		p := problem.FromStatus(err)
		if !worthRepeating(p) || !sleep(ctx, p.RetryAfter+jitter(pause)) {
			return p
		}
		c.cfg.Log.Debug("a call is tried again", "kind", p.Kind, "error", p.Detail)
	}
}

func worthRepeating(p *Error) bool { return p.Kind == Overloaded || p.Kind == Unavailable }

// jitter returns between half of d and all of it.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// sleep waits for d and reports whether ctx lasted. A pause beyond ctx's deadline is not
// begun.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
