package ceremony_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/ceremony"
)

func TestAnIssuerIsRolledOver(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	spec := ceremony.DefaultSpec()
	prepare := func(b ceremony.RolloverBook) (*ceremony.Next, error) {
		return ceremony.Prepare(t.Context(), spec, "local:ada", token, b, ceremony.Deps{})
	}
	activate := func(published time.Duration, b ceremony.RolloverBook) (*ceremony.Next, error) {
		return ceremony.Activate(t.Context(), spec, published, "local:ada", token, b, ceremony.Deps{})
	}
	refused := func(what string, err error, kind problem.Kind) {
		t.Helper()
		if problem.KindOf(err) != kind {
			t.Errorf("%s: %v, want %v", what, err, kind)
		}
	}
	_, err := prepare(book)
	refused("preparing without a CA", err, problem.NotFound)
	old := initCA(t, spec, token, book, ceremony.Deps{})
	_, err = activate(0, book)
	refused("activating what is not prepared", err, problem.NotFound)

	// The process dies after each of the writes, whether or not the ledger has got it.
	var next *ceremony.Next
	for n := 1; next == nil; n++ {
		for _, persist := range []bool{false, true} {
			got, err := prepare(rollingBook{&dying{Registrar: book, left: n, persist: persist}, book})
			if err == nil {
				next = got
			} else if !errors.Is(err, errDied) || n > writes {
				t.Fatalf("write %d, persisted %v: %v", n, persist, err)
			}
		}
	}
	ca := next.CA
	if bytes.Equal(ca.Certificate.SubjectKeyId, old.Issuing.Certificate.SubjectKeyId) || bytes.Equal(ca.Certificate.RawSubject, old.Issuing.Certificate.RawSubject) {
		t.Error("the next generation has the old one's key or subject")
	}
	opensslVerifies(t, &ceremony.Result{Root: old.Root, Issuing: ca, OCSP: next.OCSP})
	states(t, book, ledger.IssuerRetired, ledger.IssuerActive, ledger.IssuerPrepared)
	again, err := prepare(book)
	if err != nil || again.CA.Made || again.OCSP.Made || !again.CA.Certificate.Equal(ca.Certificate) || next.Before.ID != old.Issuing.Issuer.ID {
		t.Errorf("preparing again: %+v, %v", again, err)
	}
	if now := initCA(t, spec, token, book, ceremony.Deps{}); !now.Issuing.Certificate.Equal(old.Issuing.Certificate) {
		t.Error("the prepared generation is the CA already")
	}

	_, err = activate(time.Hour, book)
	refused("activating at once", err, problem.Conflict)
	states(t, book, ledger.IssuerRetired, ledger.IssuerActive, ledger.IssuerPrepared)
	if _, err := activate(0, book); err != nil {
		t.Fatal(err)
	}
	states(t, book, ledger.IssuerRetired, ledger.IssuerRetired, ledger.IssuerActive)
	if now := initCA(t, spec, token, book, ceremony.Deps{}); !now.Issuing.Certificate.Equal(ca.Certificate) || now.OCSP.Signer.ID != next.OCSP.Signer.ID {
		t.Error("the new generation is not the CA")
	}
	var actions []string
	trail, err := book.Audit(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range trail {
		if e.Actor != "local:ada" || e.Subject != spec.Issuing.Name {
			t.Errorf("audit entry %+v", e)
		}
		actions = append(actions, e.Action)
	}
	if n := len(actions); n < 2 || actions[0] != "issuer.prepare" || actions[n-1] != "issuer.activate" {
		t.Errorf("the audit trail has %v", actions)
	}
}

// rollingBook is a dying ledger with an audit trail.
type rollingBook struct {
	*dying
	trail *ledger.Ledger
}

func (b rollingBook) AppendAudit(ctx context.Context, e ledger.AuditEntry) (ledger.AuditEntry, error) {
	return b.trail.AppendAudit(ctx, e)
}

func states(t *testing.T, book *ledger.Ledger, want ...string) {
	t.Helper()
	issuers, err := book.Issuers(t.Context())
	if err != nil || len(issuers) != len(want) {
		t.Fatalf("%d issuers, %v; want %d", len(issuers), err, len(want))
	}
	for i := range issuers {
		if issuers[i].State != want[i] {
			t.Errorf("generation %d is %s, want %s", issuers[i].ID, issuers[i].State, want[i])
		}
	}
}
