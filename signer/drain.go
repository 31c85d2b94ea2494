package signer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/certmill/certmill/ledger"
)

// followDrain does what the ledger says about this signer: a drained one stops pulling,
// hands back what comes too late, finishes what it holds and reports its epochs as
// final. It stays up, and goes on with CRLs and the certificates of OCSP signers. It
// returns when nothing is left at work.
func (s *Signer) followDrain(ctx context.Context) (drained bool, err error) {
	drains, err := s.book.Drains(ctx)
	if err != nil {
		return false, fmt.Errorf("reading the drains: %w", err)
	}
	i := slices.IndexFunc(drains, func(d ledger.Drain) bool { return d.Signer == s.cfg.Name })
	if i < 0 {
		if s.drain.Swap(nil) != nil {
			s.log.Info("drained no more: work is taken again")
		}
		return false, nil
	}
	if s.drain.Swap(&drains[i]) == nil {
		s.log.Info("drained: no work is taken", "by", drains[i].Actor)
	}
	s.mu.Lock()
	s.trouble = map[string]error{}
	s.mu.Unlock()
	lines := s.allLines()
	for _, l := range lines {
		l.stop() // all at once, then each is waited for
	}
	for _, l := range lines {
		s.endLine(l)
	}
	return true, nil
}

func drainText(d *ledger.Drain) string {
	return fmt.Sprintf("drained by %s since %s", d.Actor, d.Since.Format(time.RFC3339))
}
