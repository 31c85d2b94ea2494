package signer

import (
	"context"
	"crypto"
	"fmt"
	"sync/atomic"

	"github.com/certmill/certmill/ledger"
)

// A seat is an issuer's key in one token, with the epoch under which it signs: what
// comes out of it is attributable to one start of one signer on one token.
type seat struct {
	key   ContextSigner // counts in made
	token Token
	epoch uint32

	load     atomic.Int64 // requests that are signing or wait to
	made     atomic.Int64 // signatures
	reported atomic.Int64 // of made, to the ledger
}

// takeSeat finds the key and writes the epoch row; only then may it sign.
func takeSeat(ctx context.Context, book Ledger, name string, issuer ledger.Issuer, public crypto.PublicKey, t Token) (*seat, error) {
	key, err := t.Key(ctx, issuer.KeyURI, public)
	if err != nil {
		return nil, fmt.Errorf("finding the key of issuer %s in token %s: %w", issuer.Name, t.Serial(), err)
	}
	epoch, err := book.StartEpoch(ctx, ledger.Epoch{Signer: name, Issuer: issuer.ID, Token: t.Serial()})
	if err != nil {
		return nil, fmt.Errorf("starting an epoch for issuer %s: %w", issuer.Name, err)
	}
	s := &seat{token: t, epoch: epoch}
	s.key = counted{key, &s.made}
	return s, nil
}

// report writes the number of signatures into the ledger when it has changed, or when
// it is final.
func (s *seat) report(ctx context.Context, book Ledger, final bool) error {
	n := s.made.Load()
	if n == s.reported.Load() && !final {
		return nil
	}
	if err := book.ReportSignatures(ctx, s.epoch, n, final); err != nil {
		return fmt.Errorf("reporting the signatures of epoch %d: %w", s.epoch, err)
	}
	s.reported.Store(n)
	return nil
}
