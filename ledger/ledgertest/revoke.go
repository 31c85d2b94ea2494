package ledgertest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var revokeTests = map[string]func(*testing.T, *env){
	"a revocation is final and the first one stands": revokeFirst,
	"what cannot be revoked":                         revokeRefused,
	"of many at once one is the first":               revokeRace,
	"the cursor misses nothing under concurrency":    revokeCursor,
}

func revokeFirst(t *testing.T, e *env) {
	entry := e.entry(t, time.Hour)
	entry.Revocation = ledger.RevocationOCSP | ledger.RevocationCRL
	commitOne(t, e.Ledger, entry)
	first, made, err := e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: 1, RevokedBy: "alice", Comment: "lost"})
	noError(t, err)
	if !made || first.Issuer != entry.Issuer || !first.NotAfter.Equal(entry.NotAfter) || first.Services != entry.Revocation || first.RevokedAt.IsZero() {
		t.Errorf("the first is %+v, made %v", first, made)
	}
	e.clock.advance(time.Minute)
	second, made, err := e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: 4, RevokedBy: "bob"})
	if err != nil || made || second != first {
		t.Errorf("the repeat is %+v, made %v, %v", second, made, err)
	}
	_, revoked, err := e.Certificate(t.Context(), entry.Serial)
	if err != nil || revoked == nil || *revoked != first {
		t.Errorf("read back %+v, %v", revoked, err)
	}
	page, _, err := e.List(t.Context(), ledger.Filter{}, "", 10)
	if err != nil || page[0].Revoked == nil || *page[0].Revoked != first {
		t.Errorf("listed %+v, %v", page, err)
	}
	audit, err := e.Audit(t.Context(), 0, 10)
	if err != nil || len(audit) != 1 || audit[0].Actor != "alice" || audit[0].Subject != entry.Serial.String() || audit[0].Detail != "keyCompromise" {
		t.Errorf("audit %+v, %v", audit, err)
	}
}

func revokeRefused(t *testing.T, e *env) {
	entry := e.entry(t, time.Hour)
	commitOne(t, e.Ledger, entry)
	for _, reason := range []int16{-1, 6, 7, 8, 11, 99} {
		_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: reason})
		if !errors.Is(err, &problem.Error{Kind: problem.Invalid, Field: "reason"}) {
			t.Errorf("reason %d: %v", reason, err)
		}
	}
	_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: e.entry(t, time.Hour).Serial})
	wantKind(t, err, problem.NotFound)
	e.clock.advance(2 * time.Hour)
	_, _, err = e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial})
	if !errors.Is(err, &problem.Error{Kind: problem.Invalid, Rule: "expired"}) {
		t.Errorf("expired: %v", err)
	}
	if n := e.count(t, `SELECT count(*) FROM audit`); n != 0 {
		t.Errorf("%d audit rows for nothing", n)
	}
}

func revokeRace(t *testing.T, e *env) {
	entry := e.entry(t, time.Hour)
	commitOne(t, e.Ledger, entry)
	var firsts int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, first, err := e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: 1, RevokedBy: string(rune('a' + i))})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if first {
				firsts++
			}
		})
	}
	wg.Wait()
	if firsts != 1 {
		t.Errorf("%d first revocations", firsts)
	}
}

func revokeCursor(t *testing.T, e *env) {
	const n = 100
	var wg sync.WaitGroup
	for range n {
		entry := e.entry(t, time.Hour)
		wg.Go(func() {
			if r := e.CommitBatch(t.Context(), []ledger.Entry{entry})[0]; r.Err != nil {
				t.Error(r.Err)
			}
			if _, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: 1}); err != nil {
				t.Error(err)
			}
		})
	}
	// Read on while they are written: each must appear after what was read before.
	seen, after := 0, int64(0)
	for seen < n && !t.Failed() {
		page, err := e.Revocations(t.Context(), after, 7)
		noError(t, err)
		for _, r := range page {
			after = r.Sequence
			seen++
		}
	}
	wg.Wait()
	if rest, err := e.Revocations(t.Context(), 0, n+1); err != nil || len(rest) != n {
		t.Errorf("%d revocations, %v", len(rest), err)
	}
	if _, err := e.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}
