package hsm

import (
	"errors"
	"fmt"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/certmill/certmill/internal/problem"
)

// Condition is what a token is fit for.
type Condition string

// The conditions; out of the last three a token does not come back.
const (
	Ready   Condition = "ready"   // it signs
	Down    Condition = "down"    // taken out until a test signature succeeds
	Probing Condition = "probing" // due for a test signature, or at it
	Stuck   Condition = "stuck"   // calls hang inside the module; the process must be replaced
	Failed  Condition = "failed"  // the PIN was refused or a signature was wrong; an operator must look
	Closed  Condition = "closed"
)

// Conditions lists every condition.
var Conditions = []Condition{Ready, Down, Probing, Stuck, Failed, Closed}

// State is a token's condition for people and for metrics.
type State struct {
	Condition  Condition `json:"condition"`
	Reason     string    `json:"reason,omitempty"` // of anything but ready
	Since      time.Time `json:"since"`
	Sessions   int       `json:"sessions"`
	Idle       int       `json:"idle"`
	Abandoned  int       `json:"abandoned"`  // calls given up that have not come back
	Recoveries int       `json:"recoveries"` // how often the token came back
}

// newBreaker makes the token's circuit breaker. Only the keeper takes it through
// half-open, with a test signature: work of callers is never the probe.
func (t *Token) newBreaker() *gobreaker.CircuitBreaker[[]byte] {
	return gobreaker.NewCircuitBreaker[[]byte](gobreaker.Settings{
		Name:        t.name(),
		MaxRequests: 1,
		Timeout:     t.cfg.ProbeInterval,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return t.trip.Load() || c.ConsecutiveFailures >= uint32(t.cfg.BreakerFailures)
		},
		OnStateChange: func(_ string, from, to gobreaker.State) { t.changed(from, to) },
		IsExcluded:    func(err error) bool { return err != nil && RemedyFor(err) == Refuse },
	})
}

// changed logs a transition. It runs under the breaker's lock, so it must not call it.
func (t *Token) changed(from, to gobreaker.State) {
	t.mu.Lock()
	t.since = time.Now()
	recovered := to == gobreaker.StateClosed
	if recovered {
		t.recoveries++
		t.reason = ""
		t.trip.Store(false)
	}
	reason := t.reason
	t.mu.Unlock()
	t.metrics.breaker.Set(float64(to))
	switch {
	case recovered:
		t.log.Info("HSM token is back", "from", from.String())
	case from == gobreaker.StateClosed:
		t.log.Error("HSM token taken out", "reason", reason)
	default:
		t.log.Debug("HSM token: breaker", "from", from.String(), "to", to.String(), "reason", reason)
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// admit returns why the token takes no work, or nil.
func (t *Token) admit() error {
	select {
	case <-t.closing:
		return t.down(ErrClosed)
	case <-t.stuck:
		return t.down(errModuleDead)
	default:
	}
	if err := t.failure(); err != nil {
		return t.down(err)
	}
	if t.breaker.State() != gobreaker.StateClosed {
		t.mu.Lock()
		reason := t.reason
		t.mu.Unlock()
		return t.down(fmt.Errorf("the token is out of service: %s", reason))
	}
	return nil
}

func (t *Token) down(cause error) error { return problem.Down("hsm", t.cfg.ProbeInterval, cause) }

// guarded runs fn behind the breaker. Failures of the token come back as
// problem.Unavailable with the cause, so that errors.As finds the pkcs11.Error.
func (t *Token) guarded(fn func() ([]byte, error)) ([]byte, error) {
	if err := t.admit(); err != nil {
		return nil, err
	}
	value, err := t.breaker.Execute(func() ([]byte, error) {
		value, err := fn()
		t.note(err)
		return value, err
	})
	switch {
	case err == nil:
		return value, nil
	case errors.Is(err, ErrClosed):
		return nil, t.down(err)
	case RemedyFor(err) == Refuse:
		return nil, err
	default:
		return nil, t.down(err)
	}
}

// note keeps the reason of a failure, and has the breaker open at the first one that
// says that the token is gone.
func (t *Token) note(err error) {
	if err == nil {
		return
	}
	switch remedy := RemedyFor(err); remedy {
	case Refuse:
	case TakeOut, Reinitialise, Fatal:
		t.setReason(err)
		t.trip.Store(true)
	default:
		t.setReason(err)
	}
}

func (t *Token) setReason(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reason = err.Error()
}

// Condemn takes the token out of service for good, in this process. The signer calls
// it for a signature that does not verify: a token that signs wrongly once is not
// trusted again by itself.
func (t *Token) Condemn(reason error) {
	t.fail(fmt.Errorf("%w: %w", errWrongSignature, reason))
}

// fail ends the use of the token; the first failure is kept.
func (t *Token) fail(err error) {
	t.mu.Lock()
	first := t.failed == nil
	if first {
		t.failed, t.since = err, time.Now()
	}
	t.mu.Unlock()
	if first {
		t.log.Error("HSM token will not be used again by this process", "error", err)
	}
}

func (t *Token) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

// setStuck notes that only a new process can use the token again.
func (t *Token) setStuck(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stuckReason != "" {
		return
	}
	t.stuckReason, t.since = reason, time.Now()
	close(t.stuck)
	t.log.Error("HSM token is stuck; the process must be replaced", "reason", reason)
}

// Stuck is closed when calls hang inside the module so that only a new process can
// use the token again. Its owner then finishes what it can and ends.
func (t *Token) Stuck() <-chan struct{} { return t.stuck }

// State returns what the token is fit for, and why.
func (t *Token) State() State {
	breaker := t.breaker.State() // before mu: changed takes mu under the breaker's lock
	closed := t.isClosing()
	t.mu.Lock()
	defer t.mu.Unlock()
	s := State{
		Condition: Ready, Reason: t.reason, Since: t.since, Sessions: t.cfg.Sessions,
		Idle: len(t.free), Abandoned: int(t.abandoned.Load()), Recoveries: t.recoveries,
	}
	switch {
	case closed:
		s.Condition, s.Reason = Closed, ""
	case t.stuckReason != "":
		s.Condition, s.Reason = Stuck, t.stuckReason
	case t.failed != nil:
		s.Condition, s.Reason = Failed, t.failed.Error()
	case breaker == gobreaker.StateOpen:
		s.Condition = Down
	case breaker == gobreaker.StateHalfOpen:
		s.Condition = Probing
	default:
		s.Reason = ""
	}
	return s
}

func (t *Token) isClosing() bool {
	select {
	case <-t.closing:
		return true
	default:
		return false
	}
}
