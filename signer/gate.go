package signer

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// A gate keeps the signer from taking work while the ledger does not answer: what
// would be signed then could not be released.
type gate struct {
	shut atomic.Bool
	log  *slog.Logger
	wake chan struct{}
	// answers returns nil when the ledger can be worked with; it is set before keep.
	answers func(context.Context) error
}

func newGate(log *slog.Logger) *gate {
	return &gate{log: log, wake: make(chan struct{}, 1)}
}

func (g *gate) isOpen() bool { return !g.shut.Load() }

// note closes the gate when err says that the ledger is away.
func (g *gate) note(err error) {
	if err == nil || problem.KindOf(err) != problem.Unavailable || errors.Is(err, context.Canceled) {
		return
	}
	if g.shut.CompareAndSwap(false, true) {
		g.log.Warn("no work is taken until the ledger answers again", "error", err)
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

// keep opens the gate when the ledger answers, until ctx ends. A ledger that answers and
// fails again at once, as one with a full disk does, is left alone for longer each time.
func (g *gate) keep(ctx context.Context) error {
	const (
		every   = 250 * time.Millisecond
		relapse = 5 * time.Second
		longest = 15 * time.Second
	)
	var opened time.Time
	var rest time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		}
		if rest = min(2*rest+every, longest); opened.IsZero() || time.Since(opened) > relapse+rest {
			rest = 0
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rest):
		}
		for g.shut.Load() {
			pingCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
			err := g.answers(pingCtx)
			cancel()
			if err == nil {
				g.shut.Store(false)
				opened = time.Now()
				g.log.Info("the ledger answers again")
				break
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(every):
			}
		}
	}
}
