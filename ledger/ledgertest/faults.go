package ledgertest

import (
	"context"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var faultTests = map[string]func(*testing.T, *env){
	"a commit through one failure of each kind stores one certificate": oneFailure,
	"a commit that failed for good has stored nothing, or all":         failedForGood,
	"a revocation whose COMMIT got lost is still the first":            lostRevocation,
	"a token use whose COMMIT got lost costs one use":                  lostTokenUse,
	"reads are repeated on a new connection":                           lostRead,
}

const theCommit = "INSERT INTO requests"

// faults are the ways in which a statement's answer can fail to come.
var faults = map[string]Fault{
	"cut before it was executed":    {},
	"cut after it was executed":     {Executed: true},
	"40001":                         {Code: "40001"},
	"40003 and it was not executed": {Code: "40003"},
	"40003 and it was executed":     {Code: "40003", Executed: true},
	"57P01 and it was not executed": {Code: "57P01"},
}

func oneFailure(t *testing.T, e *env) {
	w := NewWire(t, e.url)
	faulty := e.another(t, w.URL)
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			batch := []ledger.Entry{e.entry(t, time.Hour), e.entry(t, time.Hour, "dns:a", "dns:b")}
			w.Fail(theCommit, f, 1)
			for i, r := range faulty.CommitBatch(t.Context(), batch) {
				if r.Err != nil || r.Duplicate || r.Certificate.Serial != batch[i].Serial {
					t.Errorf("row %d: %+v", i, r)
				}
			}
			if n := w.Heal(); n != 1 {
				t.Fatalf("%d faults, want 1", n)
			}
			for _, b := range batch {
				out := commitOne(t, e.Ledger, again(t, e, b))
				if !out.Duplicate || out.Certificate.Serial != b.Serial {
					t.Errorf("a retry gets %+v", out)
				}
			}
		})
	}
}

func failedForGood(t *testing.T, e *env) {
	w := NewWire(t, e.url)
	faulty := e.another(t, w.URL)
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			entry := e.entry(t, time.Hour)
			w.Fail(theCommit, f, 1_000_000)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			r := faulty.CommitBatch(ctx, []ledger.Entry{entry})[0]
			wantKind(t, r.Err, problem.Unavailable)
			if n := w.Heal(); n < 2 {
				t.Errorf("it was tried %d times", n)
			}
			_, _, err := e.Certificate(t.Context(), entry.Serial)
			if persisted := err == nil; persisted != f.Executed {
				t.Errorf("persisted is %v, want %v", persisted, f.Executed)
			}
			// The same entry, later: it is stored once, and no duplicate of itself.
			if out := commitOne(t, faulty, entry); out.Duplicate {
				t.Error("the entry is called a duplicate of itself")
			}
			if n := e.count(t, `SELECT count(*) FROM certificates WHERE serial = $1`, entry.Serial[:]); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
	}
}

func lostRevocation(t *testing.T, e *env) {
	w := NewWire(t, e.url)
	faulty := e.another(t, w.URL)
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			entry := e.entry(t, time.Hour)
			commitOne(t, e.Ledger, entry)
			w.Fail("commit", f, 1)
			_, first, err := faulty.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: 1, RevokedBy: "operator"})
			noError(t, err)
			if n := w.Heal(); n != 1 || !first {
				t.Errorf("%d faults, first is %v", n, first)
			}
			if n := e.count(t, `SELECT count(*) FROM audit WHERE subject = $1`, entry.Serial.String()); n != 1 {
				t.Errorf("%d audit rows", n)
			}
		})
	}
	if _, err := e.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

func lostTokenUse(t *testing.T, e *env) {
	w := NewWire(t, e.url)
	faulty := e.another(t, w.URL)
	token := newToken(t, e, len(faults))
	for name, f := range faults {
		w.Fail("commit", f, 1)
		_, err := faulty.UseToken(t.Context(), token.Hash, ledger.NewRequestKey(name), time.Hour)
		if n := w.Heal(); err != nil || n != 1 {
			t.Errorf("%s: %d faults, %v", name, n, err)
		}
	}
	got, err := e.TokenByHash(t.Context(), token.Hash)
	if err != nil || got.Used != len(faults) {
		t.Errorf("%d uses for %d requests: %v", got.Used, len(faults), err)
	}
}

func lostRead(t *testing.T, e *env) {
	w := NewWire(t, e.url)
	faulty := e.another(t, w.URL)
	entry := e.entry(t, time.Hour)
	commitOne(t, e.Ledger, entry)
	for name, f := range faults {
		w.Fail("FROM certificates", f, 1)
		_, _, err := faulty.Certificate(t.Context(), entry.Serial)
		if n := w.Heal(); err != nil || n != 1 {
			t.Errorf("%s: %d faults, %v", name, n, err)
		}
	}
}
