package ledgertest

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"sync"
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
	"unknown orders": orderUnknown,
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
	failing, issued := e.entry(t, time.Hour), e.entry(t, time.Hour)
	f, i := newOrder(t, e, failing), newOrder(t, e, issued)
	commitOne(t, e.Ledger, issued)
	for _, reason := range []string{"first", "second"} {
		noError(t, e.FailOrder(t.Context(), f.ID, []byte(reason)))
		noError(t, e.FailOrder(t.Context(), i.ID, []byte(reason)))
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
	noError(t, e.FailOrder(t.Context(), first.ID, []byte("no")))
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
	noError(t, e.FailOrder(t.Context(), o.ID, []byte("too late")))
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
