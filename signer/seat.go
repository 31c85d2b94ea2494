package signer

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/certmill/certmill/ledger"
)

// A seat is an issuer's key in one token, with the epoch under which it signs: what
// comes out of it is attributable to one start of one signer on one token.
type seat struct {
	key   ContextSigner
	token Token
	epoch uint32
	hand  *hand // its signatures

	load atomic.Int64   // requests that are signing or wait to
	held sync.WaitGroup // requests that have signed here or will, until they are settled
}

// takeSeat finds the key and writes the epoch row; only then may it sign.
func takeSeat(ctx context.Context, s *Signer, issuer ledger.Issuer, public crypto.PublicKey, t Token) (*seat, error) {
	key, err := t.Key(ctx, issuer.KeyURI, public)
	if err != nil {
		return nil, fmt.Errorf("finding the key of issuer %s in token %s: %w", issuer.Name, t.Serial(), err)
	}
	epoch, err := s.book.StartEpoch(ctx, ledger.Epoch{Signer: s.cfg.Name, Issuer: issuer.ID, Token: t.Serial()})
	if err != nil {
		return nil, fmt.Errorf("starting an epoch for issuer %s: %w", issuer.Name, err)
	}
	// Twice what is held at one time: the other half may wait for the ledger.
	h, err := newHand(s.cfg.StateDir, epoch, 2*s.cfg.MaxInFlight+1024)
	if err != nil {
		return nil, fmt.Errorf("issuer %s, epoch %d: %w", issuer.Name, epoch, err)
	}
	return &seat{key: key, token: t, epoch: epoch, hand: h}, nil
}

// report writes the numbers into the ledger, changed or not: it also says that the
// signer lives.
func (s *seat) report(ctx context.Context, book Ledger) error {
	if err := book.ReportEpoch(ctx, s.epoch, s.hand.report()); err != nil {
		return fmt.Errorf("reporting the signatures of epoch %d: %w", s.epoch, err)
	}
	return nil
}

// end writes the final numbers and gives the hand up. Where something is not settled
// or the ledger does not answer, the hand is left for the next signer to close.
func (s *seat) end(ctx context.Context, book Ledger) error {
	r := s.hand.report()
	r.Final = r.Signatures == r.Committed+r.Discarded+r.CRLs
	err := book.ReportEpoch(ctx, s.epoch, r)
	if err != nil {
		err = fmt.Errorf("reporting the signatures of epoch %d: %w", s.epoch, err)
	} else if !r.Final {
		err = fmt.Errorf("epoch %d ends with signatures that are not settled", s.epoch)
	}
	return errors.Join(err, s.hand.close(err == nil))
}
