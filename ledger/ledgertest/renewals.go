package ledgertest

import (
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var renewalTests = map[string]func(*testing.T, *env){
	"early renewals stand until they are ended or long over": earlyRenewals,
	"early renewals are bounded":                             earlyRenewalsBounded,
}

func earlyRenewals(t *testing.T, e *env) {
	by := e.clock.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	create := func(issuer, holder string) ledger.EarlyRenewal {
		made, err := e.CreateEarlyRenewal(t.Context(), ledger.EarlyRenewal{Issuer: issuer, Holder: holder, RenewBy: by, Reason: "rotation", CreatedBy: "alice"})
		noError(t, err)
		e.clock.advance(time.Second)
		return made
	}
	first, second := create("issuing", ""), create("", "uri:spiffe://a.test/*")
	if first.ID == second.ID || first.Created.IsZero() {
		t.Errorf("made %+v and %+v", first, second)
	}
	all, err := e.EarlyRenewals(t.Context())
	noError(t, err)
	if len(all) != 2 || all[0] != second || all[1] != first {
		t.Errorf("standing: %+v, want %+v and %+v", all, second, first)
	}
	noError(t, e.EndEarlyRenewal(t.Context(), first.ID, "bob"))
	wantKind(t, e.EndEarlyRenewal(t.Context(), first.ID, "bob"), problem.NotFound)
	wantKind(t, e.EndEarlyRenewal(t.Context(), "x", "bob"), problem.Invalid)
	if all, err = e.EarlyRenewals(t.Context()); err != nil || len(all) != 1 || all[0] != second {
		t.Errorf("after the end of one: %+v, %v", all, err)
	}
	audit, err := e.Audit(t.Context(), 0, 10)
	if err != nil || len(audit) != 3 || audit[0].Actor != "alice" || audit[0].Subject != first.ID || audit[2].Actor != "bob" || audit[2].Subject != first.ID {
		t.Errorf("audit %+v, %v", audit, err)
	}
	e.clock.advance(100 * 24 * time.Hour)
	if all, err = e.EarlyRenewals(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("long after: %+v, %v", all, err)
	}
	_, err = e.Maintain(t.Context())
	noError(t, err)
	if n := e.count(t, `SELECT count(*) FROM early_renewals`); n != 0 {
		t.Errorf("%d rows are left of what is long over", n)
	}
}

func earlyRenewalsBounded(t *testing.T, e *env) {
	one := ledger.EarlyRenewal{Issuer: "issuing", RenewBy: e.clock.Now().Add(time.Hour), CreatedBy: "alice"}
	for range ledger.MaxEarlyRenewals {
		_, err := e.CreateEarlyRenewal(t.Context(), one)
		noError(t, err)
	}
	_, err := e.CreateEarlyRenewal(t.Context(), one)
	wantKind(t, err, problem.Conflict)
}
