package signer

import (
	"context"
	"errors"
	"fmt"
)

// errRestored says that this process has outlived the ledger that it began with.
var errRestored = errors.New("the ledger was restored from a backup under this signer: its epochs and the audit head that it remembers may be gone; a new process must begin new ones")

// sameLedger returns errRestored where the ledger has been restored from a backup since
// this signer first looked. It begins no epoch before the first look.
func (s *Signer) sameLedger(ctx context.Context) error {
	at, err := s.book.RestoredAt(ctx)
	if err != nil {
		return fmt.Errorf("asking whether the ledger was restored: %w", err)
	}
	if s.restored.CompareAndSwap(nil, &at) || s.restored.Load().Equal(at) {
		return nil
	}
	return errRestored
}

// ledgerAnswers returns nil when the ledger can be written to and is the one that this
// signer began with: one that was lost has been away.
func (s *Signer) ledgerAnswers(ctx context.Context) error {
	if err := s.book.Ping(ctx); err != nil {
		return err
	}
	return s.sameLedger(ctx)
}
