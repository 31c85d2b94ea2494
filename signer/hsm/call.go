package hsm

import (
	"context"
	"sync/atomic"
	"time"
)

// result is what a call returned.
type result[T any] struct {
	value T
	err   error
}

// runOn calls fn with the session s, in a goroutine that can be given up, and gives
// s back to the pool when fn has returned. It waits for fn no longer than limit and
// ctx; when ctx ends first, fn goes on to its end or limit with nobody waiting.
//
// fn is given up when limit has passed: s is lost, and another session takes its place.
func runOn[T any](ctx context.Context, t *Token, s *session, limit time.Duration, fn func(*session) (T, error)) (T, error) {
	var none T
	if err := t.module.enter(ctx); err != nil {
		t.release(s)
		return none, err
	}
	// settled is set by whichever comes first, fn's return or the limit.
	var settled atomic.Bool
	done := make(chan result[T], 1)
	timer := time.AfterFunc(limit, func() {
		if settled.CompareAndSwap(false, true) {
			t.abandon(limit)
			done <- result[T]{err: errHung}
		}
	})
	go func() {
		value, err := fn(s)
		if settled.CompareAndSwap(false, true) {
			timer.Stop()
			t.module.leave()
			t.release(s)
			done <- result[T]{value, err}
			return
		}
		t.cameBack(s)
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// abandon writes off the session of a call that hangs. While there are few of them a
// fresh session takes its place; beyond that the token is stuck.
func (t *Token) abandon(limit time.Duration) {
	t.module.giveUp()
	n := t.abandoned.Add(1)
	t.metrics.abandoned.Inc()
	t.log.Error("a call into the PKCS#11 module hangs and was given up", "limit", limit, "abandoned", n)
	if int(n) > t.cfg.MaxAbandoned {
		t.lostSlots.Add(1)
		t.setStuck("more calls hang in the PKCS#11 module than max_abandoned allows")
		return
	}
	t.release(newSession())
}

// cameBack notes the late return of an abandoned call.
func (t *Token) cameBack(s *session) {
	n := t.abandoned.Add(-1)
	t.log.Warn("a call into the PKCS#11 module that was given up came back", "abandoned", n)
	t.module.cameBack(s)
}
