package auditchain

import (
	"context"
	"errors"
	"fmt"

	"github.com/certmill/certmill/ledger"
)

// Book is what a check reads of the ledger; *ledger.Ledger is the one for production.
type Book interface {
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
	SignedHeads(ctx context.Context, after ledger.SignedHead, limit int) ([]ledger.SignedHead, error)
	WalkAudit(ctx context.Context, w *ledger.AuditWalk, visit func(ledger.AuditEntry) error) error
}

// headPage is how many signed heads are read at a time.
const headPage = 1000

// sink takes a chain in the order in which a Verifier wants it.
type sink interface {
	Issuer(ledger.Issuer) error
	Head(ledger.SignedHead) error
	Entry(ledger.AuditEntry) error
}

// Verify checks the chain of a ledger.
func Verify(ctx context.Context, book Book, o Options) (Report, error) {
	v := NewVerifier(o)
	if err := read(ctx, book, v, o.Witness); err != nil {
		return v.report, err
	}
	return v.End()
}

// read gives a whole chain to a sink, and the witness, where there is one, with the
// heads. Heads are read before rows, so that none stands on a row that came later.
func read(ctx context.Context, book Book, to sink, witness *ledger.SignedHead) error {
	issuers, err := book.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading the issuers: %w", err)
	}
	for _, i := range issuers {
		if err := to.Issuer(i); err != nil {
			return err
		}
	}
	if witness != nil {
		if err := to.Head(*witness); err != nil {
			return err
		}
	}
	var last ledger.SignedHead
	for {
		page, err := book.SignedHeads(ctx, last, headPage)
		if err != nil {
			return fmt.Errorf("reading the signed heads: %w", err)
		}
		for _, h := range page {
			if err := to.Head(h); err != nil {
				return err
			}
		}
		if len(page) < headPage {
			break
		}
		last = page[len(page)-1]
	}
	var walk ledger.AuditWalk
	if err := book.WalkAudit(ctx, &walk, to.Entry); err != nil {
		if _, broken := errors.AsType[*ledger.BrokenChainError](err); broken {
			return err
		}
		return fmt.Errorf("reading the audit trail: %w", err)
	}
	return nil
}
