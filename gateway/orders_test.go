package gateway

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestOrders(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.ReadTimeout = 200 * time.Millisecond // shorter than the waits below
		c.Orders.MaxAge = time.Minute
	})
	alice := w.idp.token(t, "alice")
	submit := func(t *testing.T, key string, csr []byte) httpReply {
		h := http.Header{}
		if key != "" {
			h.Set("Idempotency-Key", key)
		}
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/orders", contentType: pemType, token: alice, header: h, body: armour(csr)})
	}
	get := func(t *testing.T, id, wait string) *certmillv1.Order {
		var o certmillv1.Order
		w.do(t, httpCall{method: http.MethodGet, path: "/v1/orders/" + id + "?wait=" + wait, token: alice}).ok(t, 200).decode(t, &o)
		return &o
	}
	accepted := func(t *testing.T, r httpReply) *certmillv1.Order {
		var o certmillv1.Order
		r.ok(t, http.StatusAccepted).decode(t, &o)
		if r.header.Get("Location") != "/v1/orders/"+o.Id {
			t.Errorf("Location is %q", r.header.Get("Location"))
		}
		return &o
	}

	t.Run("an order ends in its certificate", func(t *testing.T) {
		o := accepted(t, submit(t, "first", newCSR(t, nil, "a.example.test")))
		if p := w.signer.lastPriority(); p != queue.Batch {
			t.Errorf("an order has priority %s", p)
		}
		done := get(t, o.Id, "10s")
		if done.State != certmillv1.Order_STATE_ISSUED || done.RequestId != "first" {
			t.Fatalf("got %v", done)
		}
		w.verify(t, parseChain(t, []byte(done.Certificate.Pem)), "a.example.test")
		pem := w.do(t, httpCall{method: http.MethodGet, path: "/v1/orders/" + o.Id, token: alice, header: http.Header{"Accept": {typeChain}}}).ok(t, 200)
		if string(pem.body) != done.Certificate.Pem {
			t.Error("PEM and JSON differ")
		}
		w.do(t, httpCall{method: http.MethodGet, path: "/v1/orders/" + o.Id, token: w.idp.token(t, "bob")}).expect(t, 403, "id", "own_or_viewer")
		w.do(t, httpCall{method: http.MethodGet, path: "/v1/orders/" + o.Id, token: w.idp.token(t, "viewer")}).ok(t, 200)
	})
	t.Run("the same order again is the same order, with another CSR a conflict", func(t *testing.T) {
		csr := newCSR(t, nil, "b.example.test")
		first := accepted(t, submit(t, "second", csr))
		if again := accepted(t, submit(t, "second", csr)); again.Id != first.Id {
			t.Error("two orders")
		}
		r := submit(t, "second", newCSR(t, nil, "b.example.test"))
		if p := r.problem(t); r.status != http.StatusConflict || p.Field != "request_id" {
			t.Errorf("got %d %v", r.status, p)
		}
	})
	t.Run("what the queue did not take is queued again, and a waiting caller hears of it", func(t *testing.T) {
		w.signer.setRefuse(func(context.Context, *queuev1.SignRequest) error { return problem.Down("nats", time.Second, errGone) })
		defer w.signer.setRefuse(nil)
		o := accepted(t, submit(t, "", newCSR(t, nil, "c.example.test")))
		if o.State != certmillv1.Order_STATE_PENDING {
			t.Fatalf("got %v", o)
		}
		before := w.signer.count()
		eventually(t, "the sweep tries again", func() bool { return w.signer.count() > before })
		w.signer.mu.Lock()
		last := w.signer.seen[len(w.signer.seen)-1]
		w.signer.mu.Unlock()
		if !last.Seen || last.OrderId != o.Id || last.DeadlineUnixMs < time.Now().UnixMilli() {
			t.Errorf("it queued %v", last)
		}
		go func() { // while the caller below waits
			time.Sleep(400 * time.Millisecond)
			w.signer.setRefuse(nil)
		}()
		if done := get(t, o.Id, "20s"); done.State != certmillv1.Order_STATE_ISSUED {
			t.Errorf("got %v", done)
		}
	})
	t.Run("a wait that ends before the order says that it is pending", func(t *testing.T) {
		w.signer.setRefuse(overload)
		defer w.signer.setRefuse(nil)
		o := accepted(t, submit(t, "", newCSR(t, nil, "d.example.test")))
		start := time.Now()
		if got := get(t, o.Id, "300ms"); got.State != certmillv1.Order_STATE_PENDING || time.Since(start) < 300*time.Millisecond {
			t.Errorf("got %v after %s", got, time.Since(start))
		}
	})
	t.Run("a signer's failure is the order's end", func(t *testing.T) {
		w.signer.setRefuse(func(ctx context.Context, r *queuev1.SignRequest) error {
			failure := must(proto.Marshal(problem.ToFailure(problem.Rejected("lifetime", "issuer_end", "the issuer ends before"))))(t)
			must(w.book.FailOrder(ctx, r.OrderId, failure))(t)
			return errGone
		})
		defer w.signer.setRefuse(nil)
		o := accepted(t, submit(t, "", newCSR(t, nil, "e.example.test")))
		got := get(t, o.Id, "5s")
		if got.State != certmillv1.Order_STATE_FAILED || got.Problem.Rule != "issuer_end" || got.Problem.Status != 400 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("an order that nobody can serve fails in the end", func(t *testing.T) {
		w.signer.setRefuse(overload)
		defer w.signer.setRefuse(nil)
		o := accepted(t, submit(t, "", newCSR(t, nil, "f.example.test")))
		w.clock.advance(2 * time.Minute)
		defer w.clock.advance(-2 * time.Minute)
		eventually(t, "it has failed", func() bool { return get(t, o.Id, "0s").State == certmillv1.Order_STATE_FAILED })
		if got := get(t, o.Id, "0s"); got.Problem.Rule != "order_expired" || got.Problem.RequestId == "" {
			t.Errorf("got %v", got)
		}
	})
	t.Run("what is wrong with a request is said at once", func(t *testing.T) {
		submit(t, "", newCSR(t, nil, "a.elsewhere.test")).expect(t, 403, "csr.names", "dns_not_allowed")
	})
	if strings.Contains(w.logs.String(), `"level":"ERROR"`) {
		t.Errorf("an error was logged:\n%s", w.logs.String())
	}
}

func TestOrderWaitersAreBounded(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Orders.MaxWaiting = 1 })
	w.signer.setRefuse(overload)
	alice := w.idp.token(t, "alice")
	var o certmillv1.Order
	w.do(t, httpCall{method: http.MethodPost, path: "/v1/orders", contentType: pemType, token: alice, body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 202).decode(t, &o)
	first := make(chan httpReply)
	go func() {
		first <- w.do(t, httpCall{method: http.MethodGet, path: "/v1/orders/" + o.Id + "?wait=2s", token: alice})
	}()
	waiting := w.gateway.service.waiting
	eventually(t, "one waits", func() bool { return waiting.used.Load() == 1 })
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/orders/" + o.Id, token: alice}).expect(t, 429, "", "order_waiters")
	(<-first).ok(t, 200)
	if n := waiting.used.Load(); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}
