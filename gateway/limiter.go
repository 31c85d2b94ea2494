package gateway

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// limiter counts places and refuses at its bound. It never makes anybody wait: a
// refusal must cost nothing. Safe for concurrent use.
type limiter struct {
	rule       string
	max        int64        // the bound where nothing lowers it
	bound      atomic.Int64 // the bound at present
	retryAfter time.Duration
	used       atomic.Int64
}

func newLimiter(rule string, limit int, retryAfter time.Duration) *limiter {
	l := &limiter{rule: rule, max: int64(limit), retryAfter: retryAfter}
	l.bound.Store(l.max)
	return l
}

// acquire takes n places or none. The error is Overloaded.
func (l *limiter) acquire(n int) error {
	if l.used.Add(int64(n)) <= l.bound.Load() {
		return nil
	}
	l.used.Add(-int64(n))
	return l.refusal()
}

func (l *limiter) release(n int) { l.used.Add(-int64(n)) }

func (l *limiter) full() bool { return l.used.Load() >= l.bound.Load() }

func (l *limiter) refusal() error {
	return problem.Busy(l.rule, spread(l.retryAfter), "this gateway has as many requests in work as it may; try again, or another gateway")
}

// spread returns a time between half of d and one and a half of it: those who are
// refused together must not come back together.
func spread(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }
