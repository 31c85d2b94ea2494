package ledgertest

import (
	"crypto/sha256"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

var commitTests = map[string]func(*testing.T, *env){
	"what is stored is read back whole":                            storedWhole,
	"a retry gets the first certificate":                           retryGetsFirst,
	"the same entry again is no duplicate":                         sameEntryAgain,
	"the same key with another CSR is a conflict":                  otherCSR,
	"a key is free again after its reuse time":                     reuseOver,
	"a key does not outlive its certificate":                       keyEndsWithCertificate,
	"one key from 50 goroutines makes one certificate":             race,
	"batches that share keys in any order all end":                 overlappingBatches,
	"one key twice in a batch":                                     twiceInBatch,
	"a bad row fails alone":                                        badRow,
	"a serial used twice is refused and the other rows are stored": serialTwice,
	"entries that could not be found again are refused":            refused,
	"a full batch with many names":                                 fullBatch,
	"a serialization failure is repeated":                          serializationFailure,
	"lookup leaves out what is free":                               lookup,
}

func storedWhole(t *testing.T, e *env) {
	for _, names := range [][]string{nil, {"dns:one.test"}, {"dns:a.test", "ip:192.0.2.1", "uri:spiffe://a/b", "dns:a.test", "email:ü@x.test"}} {
		in := e.entry(t, time.Hour)
		in.Names = names
		in.Owner, in.Revocation = "", ledger.RevocationOCSP|ledger.RevocationCRL
		if out := commitOne(t, e.Ledger, in); out.Duplicate || !reflect.DeepEqual(out.Certificate, in.Certificate) {
			t.Errorf("outcome is %+v", out)
		}
		got, revoked, err := e.Certificate(t.Context(), in.Serial)
		noError(t, err)
		if revoked != nil || !reflect.DeepEqual(got, in.Certificate) {
			t.Errorf("read %+v\nwrote %+v", got, in.Certificate)
		}
	}
}

// again is a new certificate for the same request, as a second signer makes it.
func again(t *testing.T, e *env, first ledger.Entry) ledger.Entry {
	second := e.entry(t, time.Hour)
	second.RequestKey, second.CSR = first.RequestKey, first.CSR
	return second
}

func retryGetsFirst(t *testing.T, e *env) {
	first := e.entry(t, time.Hour)
	commitOne(t, e.Ledger, first)
	out := commitOne(t, e.Ledger, again(t, e, first))
	if !out.Duplicate || !reflect.DeepEqual(out.Certificate, first.Certificate) {
		t.Errorf("outcome is %+v, want a duplicate with the first certificate", out)
	}
	if n := e.count(t, `SELECT count(*) FROM certificates`); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

func sameEntryAgain(t *testing.T, e *env) {
	// With a reuse time that is over at once: even then it finds itself.
	entry := e.entry(t, time.Hour, "dns:a", "dns:b")
	entry.ReuseUntil = e.clock.Now().Add(-time.Second)
	for range 3 {
		if out := commitOne(t, e.Ledger, entry); out.Duplicate || out.Certificate.Serial != entry.Serial {
			t.Errorf("outcome is %+v", out)
		}
	}
	if n := e.count(t, `SELECT count(*) FROM certificates`); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

func otherCSR(t *testing.T, e *env) {
	first := e.entry(t, time.Hour)
	commitOne(t, e.Ledger, first)
	second := again(t, e, first)
	second.CSR = sha256.Sum256([]byte("another"))
	err := e.CommitBatch(t.Context(), []ledger.Entry{second})[0].Err
	if !errors.Is(err, &problem.Error{Kind: problem.Conflict, Field: "request_id"}) {
		t.Errorf("error is %v", err)
	}
	_, _, err = e.Certificate(t.Context(), second.Serial)
	wantKind(t, err, problem.NotFound)
}

func reuseOver(t *testing.T, e *env) {
	first := e.entry(t, 48*time.Hour)
	first.ReuseUntil = e.clock.Now().Add(time.Hour)
	commitOne(t, e.Ledger, first)
	e.clock.advance(time.Hour + time.Second)
	second := again(t, e, first)
	if out := commitOne(t, e.Ledger, second); out.Duplicate || out.Certificate.Serial != second.Serial {
		t.Errorf("outcome is %+v, want the second certificate", out)
	}
	third := again(t, e, first)
	if out := commitOne(t, e.Ledger, third); !out.Duplicate || out.Certificate.Serial != second.Serial {
		t.Errorf("outcome is %+v, want a duplicate of the second", out)
	}
	_, _, err := e.Certificate(t.Context(), first.Serial)
	noError(t, err) // the first stays in the ledger
}

func keyEndsWithCertificate(t *testing.T, e *env) {
	first := e.entry(t, 10*time.Minute)
	first.ReuseUntil = e.clock.Now().Add(20 * time.Hour)
	commitOne(t, e.Ledger, first)
	e.clock.advance(11 * time.Minute)
	if out := commitOne(t, e.Ledger, again(t, e, first)); out.Duplicate {
		t.Error("a retry got an expired certificate")
	}
}

func race(t *testing.T, e *env) {
	first := e.entry(t, time.Hour)
	serials := make([]serial.Number, 50)
	var duplicates int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range serials {
		entry := again(t, e, first)
		wg.Go(func() {
			r := e.CommitBatch(t.Context(), []ledger.Entry{entry})[0]
			if r.Err != nil {
				t.Errorf("goroutine %d: %v", i, r.Err)
			}
			mu.Lock()
			defer mu.Unlock()
			if serials[i] = r.Certificate.Serial; r.Duplicate {
				duplicates++
			}
		})
	}
	wg.Wait()
	for _, s := range serials {
		if s != serials[0] {
			t.Fatalf("two certificates: %s and %s", s, serials[0])
		}
	}
	if duplicates != 49 {
		t.Errorf("%d duplicates, want 49", duplicates)
	}
	if n := e.count(t, `SELECT count(*) FROM certificates`); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

func overlappingBatches(t *testing.T, e *env) {
	keys := make([]ledger.Entry, 20)
	for i := range keys {
		keys[i] = e.entry(t, time.Hour)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		batch := make([]ledger.Entry, len(keys))
		for i := range batch {
			// Every goroutine has its own order.
			batch[i] = again(t, e, keys[(i*(2*g+1)+g)%len(keys)])
		}
		wg.Go(func() {
			for _, r := range e.CommitBatch(t.Context(), batch) {
				if r.Err != nil {
					t.Error(r.Err)
				}
			}
		})
	}
	wg.Wait()
	if n := e.count(t, `SELECT count(*) FROM certificates`); n != len(keys) {
		t.Errorf("%d certificates, want %d", n, len(keys))
	}
}

func twiceInBatch(t *testing.T, e *env) {
	first, other := e.entry(t, time.Hour), e.entry(t, time.Hour)
	second, conflicting := again(t, e, first), again(t, e, first)
	conflicting.CSR = sha256.Sum256([]byte("another"))
	r := e.CommitBatch(t.Context(), []ledger.Entry{first, other, second, conflicting})
	if r[0].Err != nil || r[0].Duplicate || r[1].Err != nil || r[1].Duplicate {
		t.Errorf("the first of each key: %+v, %+v", r[0], r[1])
	}
	if r[2].Err != nil || !r[2].Duplicate || r[2].Certificate.Serial != first.Serial {
		t.Errorf("the second with the same CSR: %+v", r[2])
	}
	wantKind(t, r[3].Err, problem.Conflict)
}

func badRow(t *testing.T, e *env) {
	batch := make([]ledger.Entry, 33)
	for i := range batch {
		batch[i] = e.entry(t, time.Hour)
	}
	batch[20].Service = "not UTF-8: \xff" // refused by the server, not by us
	results := e.CommitBatch(t.Context(), batch)
	for i, r := range results {
		if i == 20 {
			wantKind(t, r.Err, problem.Internal)
		} else if r.Err != nil || r.Duplicate {
			t.Errorf("row %d: %+v", i, r)
		}
	}
	if n := e.count(t, `SELECT count(*) FROM certificates`); n != 32 {
		t.Errorf("%d certificates, want 32", n)
	}
	found, err := e.Lookup(t.Context(), []ledger.RequestKey{batch[20].RequestKey})
	if err != nil || len(found) != 0 {
		t.Errorf("the bad row's key is taken: %v, %v", found, err)
	}
}

func serialTwice(t *testing.T, e *env) {
	first, twin, other := e.entry(t, time.Hour), e.entry(t, time.Hour), e.entry(t, time.Hour)
	twin.Serial = first.Serial
	commitOne(t, e.Ledger, first)
	r := e.CommitBatch(t.Context(), []ledger.Entry{twin, other})
	wantKind(t, r[0].Err, problem.Internal)
	noError(t, r[1].Err)
	got, _, err := e.Certificate(t.Context(), first.Serial)
	noError(t, err)
	if !reflect.DeepEqual(got, first.Certificate) {
		t.Error("the first certificate was changed")
	}
}

func refused(t *testing.T, e *env) {
	for name, spoil := range map[string]func(*ledger.Entry){
		"no request key":         func(x *ledger.Entry) { x.RequestKey = ledger.RequestKey{} },
		"key beyond MaxReuse":    func(x *ledger.Entry) { x.ReuseUntil = e.clock.Now().Add(ledger.MaxReuse + time.Hour) },
		"a line break in a name": func(x *ledger.Entry) { x.Names = []string{"dns:a", "dns:b\ndns:c"} },
		"a NUL in a name":        func(x *ledger.Entry) { x.Names = []string{"dns:a\x00"} },
		"too many names":         func(x *ledger.Entry) { x.Names = strings.Split(strings.Repeat("dns:a,", 10_001), ",") },
		"no serial":              func(x *ledger.Entry) { x.Serial = serial.Number{} },
		"no certificate":         func(x *ledger.Entry) { x.DER = nil },
	} {
		bad, good := e.entry(t, 48*time.Hour), e.entry(t, time.Hour)
		spoil(&bad)
		r := e.CommitBatch(t.Context(), []ledger.Entry{bad, good})
		if r[0].Err == nil || r[1].Err != nil {
			t.Errorf("%s: %v, and the good entry: %v", name, r[0].Err, r[1].Err)
		}
	}
	for _, r := range e.CommitBatch(t.Context(), make([]ledger.Entry, ledger.MaxBatch+1)) {
		if r.Err == nil {
			t.Fatal("a batch beyond MaxBatch was taken")
		}
	}
}

func fullBatch(t *testing.T, e *env) {
	batch := make([]ledger.Entry, ledger.MaxBatch)
	names := make([]string, 100)
	for i := range names {
		names[i] = "dns:" + strings.Repeat("x", i+1) + ".example.test"
	}
	for i := range batch {
		batch[i] = e.entry(t, time.Hour, names...)
	}
	for i, r := range e.CommitBatch(t.Context(), batch) {
		if r.Err != nil || r.Duplicate || r.Certificate.Serial != batch[i].Serial {
			t.Fatalf("row %d: %+v", i, r)
		}
	}
	page, _, err := e.List(t.Context(), ledger.Filter{Name: names[99]}, "", ledger.MaxPage)
	noError(t, err)
	if len(page) != len(batch) {
		t.Errorf("%d certificates have the last name, want %d", len(page), len(batch))
	}
}

// serializationFailure makes the database throw a commit out with 40001: another
// transaction has the key, in a row that the commit's snapshot does not see.
func serializationFailure(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	first := e.entry(t, time.Hour)
	commitOne(t, e.Ledger, first)
	taken := e.entry(t, time.Hour)
	other := e.connect(t)
	tx, err := other.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.Serializable})
	noError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO requests (gen, key, serial, csr, expires_at) VALUES (0, $1, $2, $3, $4)`,
		taken.RequestKey[:], first.Serial[:], taken.CSR[:], taken.ReuseUntil)
	noError(t, err)
	result := make(chan ledger.Result)
	go func() { result <- e.CommitBatch(t.Context(), []ledger.Entry{taken})[0] }()
	watch := e.connect(t)
	for blocked := false; !blocked; {
		noError(t, watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)`).Scan(&blocked))
	}
	noError(t, tx.Commit(t.Context()))
	r := <-result
	if r.Err != nil || !r.Duplicate || r.Certificate.Serial != first.Serial {
		t.Errorf("result is %+v, want a duplicate of what the other transaction wrote", r)
	}
	if n := e.retries(t, "conflict"); n < 1 {
		t.Errorf("%v repeats; there was no 40001", n)
	}
}

func lookup(t *testing.T, e *env) {
	live, over := e.entry(t, time.Hour), e.entry(t, time.Hour)
	over.ReuseUntil = e.clock.Now().Add(time.Minute)
	commitOne(t, e.Ledger, live)
	commitOne(t, e.Ledger, over)
	e.clock.advance(2 * time.Minute)
	found, err := e.Lookup(t.Context(), []ledger.RequestKey{live.RequestKey, over.RequestKey, ledger.NewRequestKey("none")})
	noError(t, err)
	want := map[ledger.RequestKey]ledger.Found{live.RequestKey: {Certificate: live.Certificate, CSR: live.CSR}}
	if !reflect.DeepEqual(found, want) {
		t.Errorf("found %+v", found)
	}
}

// sqlState returns the SQLSTATE of an error of the database.
func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
