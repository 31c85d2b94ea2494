package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sony/gobreaker/v2"
)

// maxProbeWait bounds how far probes of a module that hangs are spaced out: each of
// them may cost one more hanging call.
const maxProbeWait = 30 * time.Second

// keeper brings the token back when it is out, and looks after it while it is idle.
// Its fields belong to its one goroutine.
type keeper struct {
	*Token
	failures int       // probes that failed since the token was last well
	hangs    int       // of them, the last ones that hung
	notUntil time.Time // no probe before
	seen     uint64    // signatures at the last look
}

// startKeeper starts the keeper; Close ends it and waits for it.
func (t *Token) startKeeper() {
	ctx, cancel := context.WithCancel(context.Background())
	t.stop = cancel
	k := &keeper{Token: t}
	t.keeping.Go(func() { k.run(ctx) })
}

func (k *keeper) run(ctx context.Context) {
	timer := time.NewTimer(k.idleWait())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.stuck:
			return
		case <-k.wake:
		case <-timer.C:
		}
		if k.failure() != nil {
			return
		}
		timer.Reset(k.tend(ctx))
	}
}

// idleWait is how long a token that is well is left alone.
func (k *keeper) idleWait() time.Duration {
	if k.cfg.IdleCheck > 0 {
		return k.cfg.IdleCheck
	}
	return time.Hour // nothing is due; a change of the breaker wakes the keeper
}

// tend does what is due and returns when to look again.
func (k *keeper) tend(ctx context.Context) time.Duration {
	soon := k.cfg.ProbeInterval + time.Millisecond // past the breaker's own timeout
	switch k.breaker.State() {
	case gobreaker.StateClosed:
		k.checkIdle(ctx)
		return k.idleWait()
	case gobreaker.StateOpen:
		return soon
	}
	if wait := time.Until(k.notUntil); wait > 0 {
		return wait
	}
	_, err := k.breaker.Execute(func() ([]byte, error) {
		err := k.recover(ctx)
		if err != nil && ctx.Err() == nil {
			k.setReason(err)
		}
		return nil, err
	})
	if err != nil {
		k.count(err)
		return soon
	}
	k.failures, k.hangs = 0, 0
	return k.idleWait()
}

// count notes a failed probe and spaces out those that hang.
func (k *keeper) count(err error) {
	k.failures++
	if !errors.Is(err, errHung) {
		k.hangs = 0
		return
	}
	k.notUntil = time.Now().Add(min(k.cfg.ProbeInterval<<min(k.hangs, 16), maxProbeWait))
	k.hangs++
}

// checkIdle makes a test signature where none was made since the last look, so that
// a token that is gone is known before the next caller needs it.
func (k *keeper) checkIdle(ctx context.Context) {
	made := k.signatures.Load()
	if k.cfg.IdleCheck == 0 || made != k.seen {
		k.seen = made
		return
	}
	// A failure is in the log and the metrics by the breaker.
	_, _ = k.guarded(func() ([]byte, error) { return nil, k.probe(ctx, false) })
}

// recover tries to make the token sign again: first with a new session; where that
// does not help twice, or cannot, with the module initialised again.
func (k *keeper) recover(ctx context.Context) error {
	err := k.probe(ctx, true)
	if err == nil || ctx.Err() != nil {
		return err
	}
	switch RemedyFor(err) {
	case Fatal:
		k.fail(err)
		return err
	case Reinitialise:
	case TakeOut, Reopen, Find, LogIn, Retry:
		if errors.Is(err, errHung) || k.failures == 0 {
			return err
		}
	default:
		return err
	}
	if again := k.reinitialise(ctx); again != nil {
		return fmt.Errorf("%w; initialising the module again: %w", err, again)
	}
	return k.probe(ctx, true)
}

// probe makes a test signature and checks it; with no key yet it logs in, no more.
// fresh opens a new session for it.
func (t *Token) probe(ctx context.Context, fresh bool) error {
	waiting, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
	defer cancel()
	s, err := t.acquire(waiting)
	if err != nil {
		if ctx.Err() == nil && waiting.Err() != nil {
			return fmt.Errorf("no session for a test signature: %w", errHung)
		}
		return err
	}
	t.mu.Lock()
	key := t.testKey
	t.mu.Unlock()
	_, err = runOn(ctx, t, s, t.cfg.CallTimeout, func(s *session) (struct{}, error) {
		if fresh {
			t.closeSession(s)
		}
		return try(t, s, key, func(s *session) (struct{}, error) {
			if key == nil {
				return struct{}{}, nil
			}
			return struct{}{}, key.test(s)
		})
	})
	return err
}

// reinitialise runs C_Finalize and C_Initialize, which ends the sessions of every
// token of the module. Where another one is well, that is done rarely.
func (k *keeper) reinitialise(ctx context.Context) error {
	others, last := k.module.others(k.Token)
	for _, o := range others {
		if o.admit() == nil && time.Since(last) < k.cfg.ReinitInterval {
			return fmt.Errorf("not before %s, since another token of the module is well", last.Add(k.cfg.ReinitInterval).Format(time.TimeOnly))
		}
	}
	err := k.module.reinitialise(ctx, k.cfg.OpenTimeout, time.Now())
	if errors.Is(err, errModuleDead) {
		k.setStuck("the module must be initialised again, and calls hang inside it")
		return err
	}
	k.metrics.reinitialised(err)
	k.log.Warn("PKCS#11 module initialised again", "error", err)
	return err
}
