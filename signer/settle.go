package signer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// settleEvery is how often signatures that did not become a row are written down.
const settleEvery = time.Second

// loose is a signature that has no row, or of which that is not known.
type loose struct {
	seat   *seat
	slot   int32
	reason ledger.StrayReason
}

// An account keeps the signatures that are still to be settled. Each holds a slot of
// its seat's hand, which bounds them. It is safe for concurrent use.
type account struct {
	settling sync.Mutex // one settleLoose at a time
	mu       sync.Mutex // guards loose
	loose    []loose
}

// settle says what became of a signature: err is the ledger's answer for it.
func (a *account) settle(s *seat, slot int32, duplicate bool, err error) {
	var reason ledger.StrayReason
	switch {
	case err == nil && !duplicate:
		s.hand.settle(slot, committed1)
		return
	case err == nil:
		reason = ledger.StrayDuplicate
	case problem.KindOf(err) == problem.Unavailable || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		reason = ledger.StrayUnknown
	default:
		reason = ledger.StrayRefused
	}
	a.put(loose{s, slot, reason})
}

func (a *account) put(l ...loose) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loose = append(a.loose, l...)
}

// drop forgets what is loose of a seat that ends unsettled: its hand knows it.
func (a *account) drop(s *seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loose = slices.DeleteFunc(a.loose, func(l loose) bool { return l.seat == s })
}

func (a *account) take() []loose {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.loose
	a.loose = nil
	return all
}

// keepAccount writes down what is loose and closes the accounts of the dead, until ctx ends.
func (s *Signer) keepAccount(ctx context.Context) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	adopted := false
	for {
		if s.gate.isOpen() {
			if err := s.settleLoose(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("signatures without a row cannot be written down yet", "error", err)
			}
			if !adopted {
				err := s.adopt(ctx)
				if adopted = err == nil; !adopted && ctx.Err() == nil {
					s.log.Warn("the account of a signer that died cannot be closed yet", "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// settleLoose asks the ledger for the signatures of which it is not known whether they
// have a row, and records those that have none.
func (s *Signer) settleLoose(ctx context.Context) error {
	s.account.settling.Lock()
	defer s.account.settling.Unlock()
	all := s.account.take()
	if len(all) == 0 {
		return nil
	}
	var unknown []serial.Number
	for _, l := range all {
		if l.reason == ledger.StrayUnknown {
			unknown = append(unknown, l.seat.hand.serial(l.slot))
		}
	}
	stored, err := s.stored(ctx, unknown)
	if err == nil {
		var strays []ledger.Stray
		for _, l := range all {
			if n := l.seat.hand.serial(l.slot); !stored[n] {
				strays = append(strays, ledger.Stray{Serial: n, Reason: l.reason})
			}
		}
		err = s.book.RecordStrays(ctx, strays)
	}
	if err != nil {
		s.account.put(all...)
		return fmt.Errorf("settling %d signatures: %w", len(all), err)
	}
	for _, l := range all {
		count := uint64(discarded1)
		if stored[l.seat.hand.serial(l.slot)] {
			count = committed1
		}
		l.seat.hand.settle(l.slot, count)
	}
	return nil
}
