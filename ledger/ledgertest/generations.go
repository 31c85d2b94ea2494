package ledgertest

import (
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/ledger"
)

var generationTests = map[string]func(*testing.T, *env){
	"a key stands across a turn, and no longer than its time": acrossTurn,
	"a key stands for its time however often Maintain runs":   oftenMaintained,
	"commits during a turn make one certificate per key":      duringTurn,
	"a commit that straddles a turn is thrown out":            straddling,
	"the generation after next is emptied":                    emptied,
	"a generation in use is not emptied":                      notEmptied,
}

// turn moves the clock until a turn is due and maintains the ledger.
func turn(t *testing.T, e *env) {
	t.Helper()
	e.clock.advance(ledger.MaxReuse + 90*time.Minute)
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if !m.Rotated {
		t.Fatal("the generations did not turn")
	}
}

func acrossTurn(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	e.clock.advance(ledger.MaxReuse + 90*time.Minute) // a turn is due, but has not come
	first := e.entry(t, 72*time.Hour)
	first.ReuseUntil = e.clock.Now().Add(20 * time.Hour)
	commitOne(t, e.Ledger, first)
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if !m.Rotated {
		t.Fatal("the generations did not turn")
	}
	if out := commitOne(t, e.Ledger, again(t, e, first)); !out.Duplicate || out.Certificate.Serial != first.Serial {
		t.Errorf("after the turn the key gave %+v", out)
	}
	if out := commitOne(t, e.Ledger, first); out.Duplicate {
		t.Error("the entry itself, again after the turn, is called a duplicate")
	}
	e.clock.advance(21 * time.Hour)
	second := again(t, e, first)
	if out := commitOne(t, e.Ledger, second); out.Duplicate {
		t.Error("the key of the old generation stands past its time")
	}
	if out := commitOne(t, e.Ledger, again(t, e, first)); out.Certificate.Serial != second.Serial {
		t.Error("the key gives the certificate of the old generation")
	}
}

func oftenMaintained(t *testing.T, e *env) {
	first := e.entry(t, 72*time.Hour)
	first.ReuseUntil = e.clock.Now().Add(ledger.MaxReuse)
	commitOne(t, e.Ledger, first)
	for range 7 { // 23 h 20 min
		e.clock.advance(200 * time.Minute)
		_, err := e.Maintain(t.Context())
		noError(t, err)
		if out := commitOne(t, e.Ledger, again(t, e, first)); !out.Duplicate {
			t.Fatal("the key was forgotten before its time")
		}
	}
}

func duringTurn(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	for range 3 {
		before := e.count(t, `SELECT count(*) FROM certificates`)
		e.clock.advance(ledger.MaxReuse + 90*time.Minute)
		keys := make([]ledger.Entry, 100)
		for i := range keys {
			keys[i] = e.entry(t, 10*24*time.Hour)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for from := 0; from < len(keys); from += 5 {
					var batch []ledger.Entry
					for _, k := range keys[from : from+5] {
						batch = append(batch, again(t, e, k))
					}
					for _, r := range e.CommitBatch(t.Context(), batch) {
						if r.Err != nil {
							t.Error(r.Err)
						}
					}
				}
			})
		}
		m, err := e.Maintain(t.Context())
		noError(t, err)
		wg.Wait()
		if !m.Rotated {
			t.Fatal("the generations did not turn")
		}
		if n := e.count(t, `SELECT count(*) FROM certificates`) - before; n != len(keys) {
			t.Fatalf("%d certificates for %d keys", n, len(keys))
		}
	}
}

// straddling plays a commit by hand that began before the turn and ends after it,
// while another commit has used the same key in the new generation.
func straddling(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	e.clock.advance(ledger.MaxReuse + 90*time.Minute)
	entry := e.entry(t, 10*24*time.Hour)
	slow, err := e.connect(t).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.Serializable})
	noError(t, err)
	_, err = slow.Exec(t.Context(), `INSERT INTO requests (gen, key, serial, csr, expires_at)
		SELECT gen, $1::bytea, $2::bytea, $3::bytea, $4::timestamptz FROM ledger_state WHERE id = 1`,
		entry.RequestKey[:], entry.Serial[:], entry.CSR[:], entry.ReuseUntil)
	noError(t, err)
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if !m.Rotated {
		t.Fatal("the generations did not turn")
	}
	quick := again(t, e, entry)
	if out := commitOne(t, e.Ledger, quick); out.Duplicate {
		t.Fatal("the commit saw the other transaction's row")
	}
	if err := slow.Commit(t.Context()); sqlState(err) != "40001" {
		t.Errorf("the slow commit ended with %v; both have the key now", err)
	}
}

func emptied(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	commitOne(t, e.Ledger, e.entry(t, time.Hour))
	turn(t, e)
	if n := e.count(t, `SELECT count(*) FROM requests`); n != 1 {
		t.Fatalf("%d keys after one turn, want 1", n)
	}
	turn(t, e)
	if n := e.count(t, `SELECT count(*) FROM requests`); n != 0 {
		t.Fatalf("%d keys after two turns, want 0", n)
	}
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if m.Rotated {
		t.Error("the generations turned before their time")
	}
}

// notEmptied plays a process whose lock on the maintenance was lost with its
// connection: it found a generation to empty, another process turns to it meanwhile.
func notEmptied(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	entry, look, other := e.entry(t, time.Hour), e.connect(t), e.connect(t)
	_, err := other.Exec(t.Context(), `BEGIN; LOCK TABLE requests_1 IN ACCESS EXCLUSIVE MODE`)
	noError(t, err)
	maintained := make(chan error, 1)
	go func() {
		_, err := e.Maintain(t.Context())
		maintained <- err
	}()
	for waiting := 0; waiting == 0; { // it has read that generation 0 is in use, and looks into 1
		err := look.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'requests_1'::regclass AND NOT granted`).Scan(&waiting)
		noError(t, err)
	}
	_, err = other.Exec(t.Context(), `UPDATE ledger_state SET gen = 1 WHERE id = 1`)
	noError(t, err)
	_, err = other.Exec(t.Context(), `INSERT INTO requests (gen, key, serial, csr, expires_at) VALUES (1, $1, $2, $3, $4)`,
		entry.RequestKey[:], entry.Serial[:], entry.CSR[:], entry.ReuseUntil)
	noError(t, err)
	_, err = other.Exec(t.Context(), `COMMIT`)
	noError(t, err)
	noError(t, <-maintained)
	if n := e.count(t, `SELECT count(*) FROM requests_1`); n != 1 {
		t.Error("the keys of the generation in use were emptied")
	}
}
