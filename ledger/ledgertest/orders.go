package ledgertest

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var orderTests = map[string]func(*testing.T, *env){
	"an order has its certificate as soon as the ledger has it":      orderIssued,
	"the same request makes one order":                               orderOnce,
	"a failed order stays failed, an issued one does not fail":       orderFailed,
	"stale orders go to one sweeper each":                            orderSweep,
	"a key is free for a new order after its reuse time":             orderReuse,
	"an order keeps the certificate made for it past the key's time": orderPastKey,
	"unknown orders":                                    orderUnknown,
	"who dies at an order leaves a mark":                orderDeaths,
	"a failure and a commit at one moment: one of them": orderRace,
	"no certificate comes after a failure":              orderFailedForGood,
	"a failure across a turn of the generations":        orderFailedAcrossTurn,
	"an order fails whose key stands for another CSR":   orderOtherCSR,
}

func orderOf(entry ledger.Entry) ledger.Order {
	return ledger.Order{Caller: entry.Caller, RequestKey: entry.RequestKey, CSR: entry.CSR, RequestID: "r-1", Request: []byte("request")}
}

func newOrder(t *testing.T, e *env, entry ledger.Entry) ledger.Order {
	t.Helper()
	o, created, err := e.CreateOrder(t.Context(), orderOf(entry))
	noError(t, err)
	if !created || o.State != ledger.OrderPending || o.ID == "" {
		t.Fatalf("order %+v, created %v", o, created)
	}
	return o
}

func orderIssued(t *testing.T, e *env) {
	entry := e.entry(t, 48*time.Hour)
	o := newOrder(t, e, entry)
	got, err := e.Order(t.Context(), o.ID)
	if err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("read %+v, %v\nwrote %+v", got, err, o)
	}
	commitOne(t, e.Ledger, entry)
	check := func(when string) {
		got, err = e.Order(t.Context(), o.ID)
		if err != nil || got.State != ledger.OrderIssued || got.Certificate == nil || !reflect.DeepEqual(*got.Certificate, entry.Certificate) {
			t.Errorf("%s: %+v, %v", when, got, err)
		}
	}
	check("after the commit")
	due, err := e.ClaimStaleOrders(t.Context(), 0, 10)
	if err != nil || len(due) != 0 {
		t.Errorf("%d orders are due, %v", len(due), err)
	}
	if n := e.count(t, `SELECT count(*) FROM orders WHERE state = 'issued'`); n != 1 {
		t.Error("the sweep did not settle the order")
	}
	check("after the sweep")
	e.clock.advance(2 * time.Hour) // the request key's time is over, the order's not
	check("after the key's time")
}

func orderOnce(t *testing.T, e *env) {
	entry := e.entry(t, time.Hour)
	ids := make([]string, 20)
	made := make([]bool, len(ids))
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			o, created, err := e.CreateOrder(t.Context(), orderOf(entry))
			if err != nil {
				t.Error(err)
			}
			ids[i], made[i] = o.ID, created
		})
	}
	wg.Wait()
	created := 0
	for i := range ids {
		if ids[i] != ids[0] {
			t.Fatal("two orders for one request")
		}
		if made[i] {
			created++
		}
	}
	if created != 1 {
		t.Errorf("created %d times", created)
	}
	other := orderOf(entry)
	other.CSR = sha256.Sum256([]byte("another"))
	_, _, err := e.CreateOrder(t.Context(), other)
	wantKind(t, err, problem.Conflict)
	commitOne(t, e.Ledger, entry)
	o, _, err := e.CreateOrder(t.Context(), orderOf(entry))
	if err != nil || o.State != ledger.OrderIssued || o.Certificate == nil {
		t.Errorf("again, after the commit: %+v, %v", o, err)
	}
}

func orderFailed(t *testing.T, e *env) {
	broken, issued := e.entry(t, time.Hour), e.entry(t, time.Hour)
	f, i := newOrder(t, e, broken), newOrder(t, e, issued)
	commitOne(t, e.Ledger, issued)
	for _, reason := range []string{"first", "second"} {
		if failed, err := e.FailOrder(t.Context(), f.ID, []byte(reason)); err != nil || failed != (reason == "first") {
			t.Errorf("failing an order, %s: %v, %v", reason, failed, err)
		}
		failing(t, e, i, reason, false)
	}
	got, err := e.Order(t.Context(), f.ID)
	if err != nil || got.State != ledger.OrderFailed || !bytes.Equal(got.Failure, []byte("first")) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = e.Order(t.Context(), i.ID)
	if err != nil || got.State != ledger.OrderIssued || got.Failure != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func orderDeaths(t *testing.T, e *env) {
	a, b := newOrder(t, e, e.entry(t, time.Hour)), newOrder(t, e, e.entry(t, time.Hour))
	for range 3 {
		noError(t, e.BeginOrder(t.Context(), a.ID))
		noError(t, e.BeginOrder(t.Context(), b.ID))
		noError(t, e.EndOrder(t.Context(), b.ID))
	}
	noError(t, e.EndOrder(t.Context(), a.ID))
	noError(t, e.EndOrder(t.Context(), b.ID)) // once too often
	deaths, err := e.OrderDeaths(t.Context(), []string{a.ID, b.ID, "x", "3e7dd1ac-5dbc-4ff6-bc55-8a3f3cda1b63"})
	if err != nil || !reflect.DeepEqual(deaths, map[string]int{a.ID: 2}) {
		t.Errorf("%v, %v", deaths, err)
	}
}

// failing fails an order, and says whether that must work.
func failing(t *testing.T, e *env, o ledger.Order, reason string, want bool) {
	t.Helper()
	if failed, err := e.FailOrder(t.Context(), o.ID, []byte(reason)); err != nil || failed != want {
		t.Fatalf("failing the order: %v, %v", failed, err)
	}
}

// wantFailed checks what a signer and a caller learn of an order that has failed.
func wantFailed(t *testing.T, e *env, o ledger.Order, entry ledger.Entry) {
	t.Helper()
	err := e.CommitBatch(t.Context(), []ledger.Entry{again(t, e, entry)})[0].Err
	wantKind(t, err, problem.Conflict)
	if rule := problem.From(err).Rule; rule != "order_failed" {
		t.Errorf("a commit for a failed order is refused by %q", rule)
	}
	found, err := e.Lookup(t.Context(), []ledger.RequestKey{entry.RequestKey})
	if err != nil || !found[entry.RequestKey].Failed || found[entry.RequestKey].Refusal(entry.CSR) == nil {
		t.Errorf("under its key is %+v, %v", found, err)
	}
	if got, created, err := e.CreateOrder(t.Context(), orderOf(entry)); err != nil || created || got.ID != o.ID || got.State != ledger.OrderFailed || got.Certificate != nil {
		t.Errorf("asked for once more it is %+v, %v, %v", got, created, err)
	}
}

// orderRace: two sweepers fail an order while two signers commit a certificate for it.
func orderRace(t *testing.T, e *env) {
	const orders = 40
	outcomes := map[string]int{}
	for n := range orders {
		entry := e.entry(t, 48*time.Hour)
		o := newOrder(t, e, entry)
		var failures, issued atomic.Int32
		var start, done sync.WaitGroup
		start.Add(1)
		for k := range 4 {
			mine := again(t, e, entry)
			done.Go(func() {
				start.Wait()
				if (n+k)%2 == 0 {
					failed, err := e.FailOrder(t.Context(), o.ID, []byte("no"))
					if err != nil {
						t.Error(err)
					}
					if failed {
						failures.Add(1)
					}
					return
				}
				r := e.CommitBatch(t.Context(), []ledger.Entry{mine})[0]
				switch {
				case r.Err == nil && !r.Duplicate:
					issued.Add(1)
				case r.Err != nil && problem.From(r.Err).Rule != "order_failed":
					t.Error(r.Err)
				}
			})
		}
		start.Done()
		done.Wait()
		got, err := e.Order(t.Context(), o.ID)
		noError(t, err)
		if failures.Load()+issued.Load() != 1 {
			t.Errorf("an order failed %d times and was issued %d times", failures.Load(), issued.Load())
		}
		if failures.Load() == 1 {
			wantFailed(t, e, o, entry)
		} else if got.State != ledger.OrderIssued || got.Certificate == nil {
			t.Errorf("the order is %+v", got)
		}
		outcomes[string(got.State)]++
	}
	t.Logf("%v", outcomes)
}

func orderFailedForGood(t *testing.T, e *env) {
	entry := e.entry(t, 48*time.Hour)
	o := newOrder(t, e, entry)
	failing(t, e, o, "no", true)
	wantFailed(t, e, o, entry)
	e.clock.advance(10 * time.Minute) // as old as a copy of the request can be
	wantFailed(t, e, o, entry)
	e.clock.advance(26 * time.Hour)
	next, created, err := e.CreateOrder(t.Context(), orderOf(entry))
	if err != nil || !created {
		t.Fatalf("past its time the key is not free: %v, %v", created, err)
	}
	entry = again(t, e, entry)
	entry.ReuseUntil = e.clock.Now().Add(time.Hour)
	if out := commitOne(t, e.Ledger, entry); out.Duplicate {
		t.Error("past its time the key is taken")
	}
	if got, err := e.Order(t.Context(), next.ID); err != nil || got.State != ledger.OrderIssued {
		t.Errorf("the next order is %+v, %v", got, err)
	}
	if got, err := e.Order(t.Context(), o.ID); err != nil || got.State != ledger.OrderFailed || got.Certificate != nil {
		t.Errorf("the first order is %+v, %v", got, err)
	}
}

// orderFailedAcrossTurn: what stands in the generation before counts, certificate and
// failure alike.
func orderFailedAcrossTurn(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	e.clock.advance(ledger.MaxReuse + 90*time.Minute) // a turn is due, but has not come
	broken, issued := e.entry(t, 96*time.Hour), e.entry(t, 96*time.Hour)
	f, i := newOrder(t, e, broken), newOrder(t, e, issued)
	failing(t, e, f, "no", true)
	commitOne(t, e.Ledger, issued)
	m, err := e.Maintain(t.Context())
	noError(t, err)
	if !m.Rotated {
		t.Fatal("the generations did not turn")
	}
	wantFailed(t, e, f, broken)
	failing(t, e, i, "no", false)
	if got, err := e.Order(t.Context(), i.ID); err != nil || got.State != ledger.OrderIssued {
		t.Errorf("the issued order is %+v, %v", got, err)
	}
}

// orderOtherCSR: the key was taken by another CSR, which keeps its certificate.
func orderOtherCSR(t *testing.T, e *env) {
	for _, turned := range []bool{false, true} {
		if turned {
			e.onPostgreSQL(t)
			e.clock.advance(ledger.MaxReuse + 90*time.Minute)
		}
		first := e.entry(t, 96*time.Hour)
		first.ReuseUntil = e.clock.Now().Add(time.Minute)
		commitOne(t, e.Ledger, first)
		other := again(t, e, first)
		other.CSR = sha256.Sum256([]byte("another"))
		o := newOrder(t, e, other)
		if turned {
			if m, err := e.Maintain(t.Context()); err != nil || !m.Rotated {
				t.Fatalf("the generations did not turn: %v", err)
			}
		}
		failing(t, e, o, "same_csr", true)
		e.clock.advance(5 * time.Minute) // a late copy of the order finds the key taken still
		wantKind(t, e.CommitBatch(t.Context(), []ledger.Entry{again(t, e, other)})[0].Err, problem.Conflict)
		if out := commitOne(t, e.Ledger, again(t, e, first)); !out.Duplicate || out.Certificate.Serial != first.Serial {
			t.Errorf("the first CSR gets %+v", out)
		}
	}
}

func orderSweep(t *testing.T, e *env) {
	const n = 60
	issued := 0
	for i := range n {
		entry := e.entry(t, time.Hour)
		newOrder(t, e, entry)
		if i%3 == 0 {
			commitOne(t, e.Ledger, entry)
			issued++
		}
	}
	if due, err := e.ClaimStaleOrders(t.Context(), time.Minute, n); err != nil || len(due) != 0 {
		t.Errorf("%d young orders claimed, %v", len(due), err)
	}
	e.clock.advance(2 * time.Minute)
	sweep := func() map[string]int {
		claimed := map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					due, err := e.ClaimStaleOrders(t.Context(), time.Minute, 10)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for _, o := range due {
						claimed[o.ID]++
						if string(o.Request) != "request" || o.RequestID != "r-1" {
							t.Errorf("claimed %+v", o)
						}
					}
					left := e.count(t, `SELECT count(*) FROM orders WHERE state = 'pending' AND next_attempt_at <= $1`, e.clock.Now().Add(-time.Minute))
					mu.Unlock()
					if left == 0 {
						return
					}
				}
			})
		}
		wg.Wait()
		return claimed
	}
	for round := range 2 {
		claimed := sweep()
		if len(claimed) != n-issued {
			t.Errorf("round %d: %d orders claimed, want %d", round, len(claimed), n-issued)
		}
		for id, times := range claimed {
			if times != 1 {
				t.Errorf("round %d: order %s claimed %d times", round, id, times)
			}
		}
		e.clock.advance(3 * time.Minute)
	}
}

func orderReuse(t *testing.T, e *env) {
	entry := e.entry(t, 48*time.Hour)
	o := orderOf(entry)
	o.ReuseUntil = e.clock.Now().Add(time.Hour)
	first, _, err := e.CreateOrder(t.Context(), o)
	noError(t, err)
	e.clock.advance(2 * time.Hour)
	if again, created, err := e.CreateOrder(t.Context(), o); err != nil || created || again.ID != first.ID {
		t.Errorf("a pending order gave its key up: %v, %v", created, err)
	}
	failing(t, e, first, "no", true)
	if again, created, err := e.CreateOrder(t.Context(), o); err != nil || created || again.State != ledger.OrderFailed {
		t.Errorf("an order gave its key up while copies of it may be on their way: %v, %v", created, err)
	}
	e.clock.advance(time.Hour)
	o.ReuseUntil = e.clock.Now().Add(time.Hour)
	second, created, err := e.CreateOrder(t.Context(), o)
	if err != nil || !created || second.ID == first.ID {
		t.Errorf("the key is not free: %v, %v", created, err)
	}
	if got, err := e.Order(t.Context(), first.ID); err != nil || got.State != ledger.OrderFailed {
		t.Errorf("the first order is %+v, %v", got, err)
	}
}

// orderPastKey: nobody swept between the commit and the end of the key's time, which
// comes soon where the certificate is short-lived.
func orderPastKey(t *testing.T, e *env) {
	before := e.entry(t, 48*time.Hour)
	commitOne(t, e.Ledger, before)
	e.clock.advance(2 * time.Hour) // the key's time is over before there is an order
	later, entry := newOrder(t, e, before), e.entry(t, 5*time.Minute)
	o := newOrder(t, e, entry)
	commitOne(t, e.Ledger, entry)
	e.clock.advance(10 * time.Minute) // the certificate has expired, and its key with it
	got, err := e.Order(t.Context(), o.ID)
	if err != nil || got.State != ledger.OrderIssued || got.Certificate == nil || got.Certificate.Serial != entry.Serial {
		t.Errorf("the order is %+v, %v", got, err)
	}
	failing(t, e, o, "too late", false)
	due, err := e.ClaimStaleOrders(t.Context(), 0, 10)
	if err != nil || len(due) != 1 || due[0].ID != later.ID {
		t.Errorf("due are %+v, %v: an order that has its certificate is made again", due, err)
	}
	if got, err := e.Order(t.Context(), o.ID); err != nil || got.State != ledger.OrderIssued {
		t.Errorf("after the sweep the order is %+v, %v", got, err)
	}
}

func orderUnknown(t *testing.T, e *env) {
	for _, id := range []string{"", "x", "3e7dd1ac-5dbc-4ff6-bc55-8a3f3cda1b63"} {
		_, err := e.Order(t.Context(), id)
		wantKind(t, err, problem.NotFound)
	}
	_, _, err := e.CreateOrder(t.Context(), ledger.Order{RequestKey: ledger.NewRequestKey("x")})
	wantKind(t, err, problem.Internal)
}
