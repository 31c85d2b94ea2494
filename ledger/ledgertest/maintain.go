package ledgertest

import (
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var maintainTests = map[string]func(*testing.T, *env){
	"partitions are made ahead and dropped when past":        partitions,
	"rows without a partition are kept and moved":            strays,
	"maintenance goes on beside commits, once at a time":     beside,
	"what is small and expired is deleted, and nothing else": deleted,
}

func partitions(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	short, long := e.entry(t, time.Hour, "dns:a", "dns:b"), e.entry(t, 60*24*time.Hour)
	commitOne(t, e.Ledger, short)
	commitOne(t, e.Ledger, long)
	if n := e.count(t, `SELECT count(*) FROM certificates_rest`); n != 0 {
		t.Errorf("%d certificates have no partition right after the migration", n)
	}
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if len(m.Created)+len(m.Dropped) != 0 || m.Skipped || m.Rotated {
		t.Errorf("there was nothing to do: %+v", m)
	}
	e.clock.advance(time.Hour + ledger.Grace - time.Minute)
	_, err = e.Maintain(t.Context())
	noError(t, err)
	_, _, err = e.Certificate(t.Context(), short.Serial) // kept for all of Grace
	noError(t, err)
	e.clock.advance(25 * time.Hour)
	m, err = e.Maintain(t.Context())
	noError(t, err)
	if len(m.Dropped) == 0 || len(m.Created) == 0 {
		t.Errorf("maintained %+v", m)
	}
	_, _, err = e.Certificate(t.Context(), short.Serial)
	wantKind(t, err, problem.NotFound)
	if n := e.count(t, `SELECT count(*) FROM certificate_names`); n != 0 {
		t.Errorf("%d names of dropped certificates", n)
	}
	_, _, err = e.Certificate(t.Context(), long.Serial)
	noError(t, err)
}

func strays(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	e.clock.advance(40 * 24 * time.Hour) // nobody has maintained the ledger meanwhile
	stray := e.entry(t, time.Hour, "dns:a", "dns:b")
	commitOne(t, e.Ledger, stray)
	decades := e.entry(t, 30*365*24*time.Hour)
	commitOne(t, e.Ledger, decades)
	if n := e.count(t, `SELECT count(*) FROM certificates_rest`); n != 2 {
		t.Fatalf("%d certificates without a partition, want 2", n)
	}
	find := func(when string) {
		for _, name := range []string{"dns:a", "dns:b"} {
			page, _, err := e.List(t.Context(), ledger.Filter{Name: name}, "", 10)
			if err != nil || len(page) != 1 || page[0].Serial != stray.Serial {
				t.Errorf("%s: by %s found %d, %v", when, name, len(page), err)
			}
		}
		if out := commitOne(t, e.Ledger, again(t, e, stray)); !out.Duplicate {
			t.Errorf("%s: a retry made another certificate", when)
		}
	}
	find("before")
	_, err := e.Maintain(t.Context())
	noError(t, err)
	if n := e.count(t, `SELECT count(*) FROM certificates_rest`); n != 1 { // the one of 30 years
		t.Errorf("%d certificates were not moved", n)
	}
	find("after")
	_, _, err = e.Certificate(t.Context(), decades.Serial)
	noError(t, err)
}

func beside(t *testing.T, e *env) {
	stop := make(chan struct{})
	var writers, keepers sync.WaitGroup
	committed := make([]int, 2)
	for g := range committed {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := e.CommitBatch(t.Context(), []ledger.Entry{e.entry(t, time.Hour), e.entry(t, 48*time.Hour, "dns:a", "dns:b")})
				if r[0].Err != nil || r[1].Err != nil {
					t.Error(r[0].Err, r[1].Err)
				}
				committed[g] += 2
			}
		})
	}
	for range 5 {
		e.clock.advance(26 * time.Hour)
		for range 3 {
			keepers.Go(func() {
				if _, err := e.Maintain(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		keepers.Wait()
	}
	close(stop)
	writers.Wait()
	if committed[0] == 0 || committed[1] == 0 {
		t.Error("nothing was committed beside the maintenance")
	}
}

func deleted(t *testing.T, e *env) {
	past, living := e.entry(t, time.Hour), e.entry(t, 60*24*time.Hour)
	for _, x := range []ledger.Entry{past, living} {
		commitOne(t, e.Ledger, x)
		_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: x.Serial, Reason: 1})
		noError(t, err)
	}
	newToken(t, e, 1)
	settled, pending := newOrder(t, e, e.entry(t, time.Hour)), newOrder(t, e, e.entry(t, time.Hour))
	failing(t, e, settled, "no", true)
	e.clock.advance(ledger.OrderRetention + 26*time.Hour)
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if m.Deleted != 3 { // a revocation, a token, an order
		t.Errorf("%d rows deleted, want 3", m.Deleted)
	}
	if left, err := e.Revocations(t.Context(), 0, 10); err != nil || len(left) != 1 || left[0].Serial != living.Serial {
		t.Errorf("revocations left: %+v, %v", left, err)
	}
	if _, err := e.Order(t.Context(), pending.ID); err != nil {
		t.Errorf("the pending order: %v", err)
	}
	_, err = e.Order(t.Context(), settled.ID)
	wantKind(t, err, problem.NotFound)
	if _, err := e.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}
