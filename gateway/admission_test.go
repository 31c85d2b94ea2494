package gateway

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestAFloodLeavesPlacesToOthers(t *testing.T) {
	places := newLimiter("in_flight", 1000, time.Second)
	s := newShares("caller_share", places, 0.8)
	flood := func(caller string) (held int) {
		for {
			if places.acquire(1) != nil {
				return held
			}
			if s.acquire(caller, 1) != nil {
				places.release(1)
				return held
			}
			held++
		}
	}
	alone := flood("a")
	if alone < 790 || alone > 810 {
		t.Errorf("a caller who is alone holds %d of 1000, want about 800", alone)
	}
	// Five floods, each of which takes again whatever comes free.
	held := map[string]int{"a": alone}
	callers := []string{"a", "b", "c", "d", "e"}
	for range 20_000 {
		c := callers[rand.IntN(len(callers))]
		if held[c] > 0 {
			places.release(1)
			s.release(c, 1)
			held[c]--
		}
		c = callers[rand.IntN(len(callers))]
		held[c] += flood(c)
	}
	free := places.max - places.used.Load()
	if free < 20 { // 1000 / (1 + 5·4) in the mean
		t.Errorf("five floods leave %d of 1000 places", free)
	}
	for _, c := range callers {
		if held[c] < 130 || held[c] > 250 {
			t.Errorf("of five floods %s holds %d places, want about 190", c, held[c])
		}
	}
	must0(t, places.acquire(1))
	if err := s.acquire("newcomer", 1); err != nil {
		t.Errorf("who comes after five floods is refused: %v", err)
	}
	if n, _ := s.callers(); n != 6 {
		t.Errorf("%d callers hold places", n)
	}
}

// TestWhoHoldsLittleIsServedThroughALowerBound: the places that a flood holds when they
// lose their worth are in nobody else's way.
func TestWhoHoldsLittleIsServedThroughALowerBound(t *testing.T) {
	places := newLimiter("in_flight", 1000, time.Second)
	s := newShares("caller_share", places, 0.8)
	take := func(caller string, n int) (taken int) {
		for ; taken < n && places.acquire(1) == nil; taken++ {
			if s.acquire(caller, 1) != nil {
				places.release(1)
				return taken
			}
		}
		return taken
	}
	if n := take("flood", 1000); n < 700 {
		t.Fatalf("a flood that is alone gets %d places", n)
	}
	s.bound.Store(300)
	if n := take("flood", 1); n != 0 {
		t.Error("the flood gets more than is worth having")
	}
	if n := take("polite", 50); n != 50 {
		t.Errorf("the polite caller gets %d places of 50", n)
	}
	if n := take("second flood", 1000); n == 0 || n > 100 {
		t.Errorf("a second flood gets %d places", n)
	}
}

// Whatever is taken and given back, nobody is left who holds nothing.
func TestSharesForgetWhoHoldsNothing(t *testing.T) {
	places := newLimiter("in_flight", 50, time.Second)
	s := newShares("caller_share", places, 0.5)
	type holding struct {
		caller string
		n      int
	}
	var held []holding
	for range 20_000 {
		if len(held) > 0 && rand.IntN(2) == 0 {
			h := held[len(held)-1]
			held = held[:len(held)-1]
			s.release(h.caller, h.n)
			places.release(h.n)
			continue
		}
		h := holding{fmt.Sprint(rand.IntN(20)), 1 + rand.IntN(5)}
		if places.acquire(h.n) != nil {
			continue
		}
		if s.acquire(h.caller, h.n) != nil {
			places.release(h.n)
			continue
		}
		held = append(held, h)
	}
	for _, h := range held {
		s.release(h.caller, h.n)
		places.release(h.n)
	}
	if n, _ := s.callers(); n != 0 || places.used.Load() != 0 {
		t.Errorf("%d callers and %d places are left", n, places.used.Load())
	}
}

func TestRates(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	r := newRates[string]("caller_rate", "too many", 2, 3, 2, func() time.Time { return now })
	request := func(n byte) ledger.RequestKey { return ledger.RequestKey{n} }
	take := func(key string, n byte, refused time.Duration) {
		t.Helper()
		e := problem.From(r.take(key, request(n)))
		if (e == nil) != (refused == 0) || e != nil && (e.Kind != problem.Overloaded || e.RetryAfter != refused) {
			t.Errorf("%s %d: %v, want a refusal for %s", key, n, e, refused)
		}
	}
	take("a", 1, 0)
	take("a", 2, 0)
	take("a", 3, 0)
	take("a", 4, 500*time.Millisecond) // the burst is used up
	take("a", 2, 0)                    // a retry is free
	take("b", 1, 0)                    // others are not touched
	now = now.Add(400 * time.Millisecond)
	take("a", 4, 100*time.Millisecond)
	now = now.Add(100 * time.Millisecond)
	take("a", 4, 0)
	take("a", 5, 500*time.Millisecond)
	now = now.Add(-time.Hour) // a clock that was set back gives nothing and takes nothing
	take("a", 5, 500*time.Millisecond)
	take("c", 1, 0) // b, not used for longest, is forgotten
	if r.len() != 2 {
		t.Errorf("%d buckets are kept, want 2", r.len())
	}
	take("d", 1, 0)
	take("a", 6, 0) // it was forgotten too, and starts anew
	for n := range byte(200) {
		now = now.Add(time.Second)
		take("a", n, 0)
	}
	if b := r.bucket("a", now); len(b.paid) > maxPaid {
		t.Errorf("a bucket knows %d requests again", len(b.paid))
	}
	var none *rates[string]
	if none.take("a", request(1)) != nil || none.len() != 0 || newRates[string]("", "", 0, 1, 1, nil) != nil {
		t.Error("a rate of 0 is a bound")
	}
}

func TestLimitsOfACallerAndOfNames(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.CallerRate, c.Limits.CallerBurst = 0.1, 5
		c.Limits.NamesRate, c.Limits.NamesBurst = 60, 2
	})
	alice, bob := w.idp.token(t, "alice"), w.idp.token(t, "bob")
	issue := func(token, name, id string) httpReply {
		h := http.Header{}
		if id != "" {
			h.Set("Idempotency-Key", id)
		}
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: token, header: h, body: armour(newCSR(t, nil, name))})
	}
	refused := func(r httpReply, rule string, within int) {
		t.Helper()
		r.expect(t, http.StatusTooManyRequests, "", rule)
		if after, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || after < 1 || after > within {
			t.Errorf("Retry-After is %q, want 1 to %d", r.header.Get("Retry-After"), within)
		}
	}
	issue(alice, "a.example.test", "").ok(t, 200)
	csr := armour(newCSR(t, nil, "a.example.test"))
	again := func() httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: alice, header: http.Header{"Idempotency-Key": {"k"}}, body: csr})
	}
	again().ok(t, 200)
	refused(issue(alice, "a.example.test", ""), "names_rate", 60)
	refused(issue(bob, "a.example.test", ""), "names_rate", 60) // whoever asks
	again().ok(t, 200)                                          // who lost the answer still gets it
	issue(alice, "b.example.test", "").ok(t, 200)
	refused(issue(alice, "c.example.test", ""), "caller_rate", 10) // a sixth after a burst of five
	issue(bob, "c.example.test", "").ok(t, 200)
	w.clock.advance(time.Minute)
	defer w.clock.advance(-time.Minute)
	issue(alice, "a.example.test", "").ok(t, 200)

	t.Run("over gRPC, and in a batch each by itself", func(t *testing.T) {
		ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
		_, err := ca.Issue(as(t.Context(), bob), &certmillv1.IssueRequest{Csr: armour(newCSR(t, nil, "a.example.test"))})
		if e := problem.FromStatus(err); status.Code(err) != codes.ResourceExhausted || e.Rule != "names_rate" || e.RetryAfter <= 0 {
			t.Errorf("got %v", err)
		}
		one := &certmillv1.IssueRequest{Csr: armour(newCSR(t, nil, "d.example.test"))}
		two := &certmillv1.IssueRequest{Csr: armour(newCSR(t, nil, "a.example.test"))}
		out := must(ca.IssueBatch(as(t.Context(), bob), &certmillv1.IssueBatchRequest{Requests: []*certmillv1.IssueRequest{one, two}}))(t)
		if out.Results[0].GetCertificate() == nil || out.Results[1].GetProblem().GetRule() != "names_rate" {
			t.Errorf("got %v", out)
		}
	})
	t.Run("an order costs as much", func(t *testing.T) {
		w.do(t, httpCall{method: http.MethodPost, path: "/v1/orders", contentType: pemType, token: bob, body: armour(newCSR(t, nil, "a.example.test"))}).expect(t, 429, "", "names_rate")
	})
	t.Run("the log names them once a minute, the metrics count", func(t *testing.T) {
		if n := strings.Count(w.logs.String(), `"a caller is held back"`); n < 3 || n > 6 {
			t.Errorf("%d lines say who is held back", n)
		}
		if !strings.Contains(w.logs.String(), w.idp.id("alice")) {
			t.Error("the log does not name the caller")
		}
		m := w.gateway.observer.metrics.refused
		if testutil.ToFloat64(m["names_rate"]) < 3 || testutil.ToFloat64(m["caller_rate"]) != 1 {
			t.Errorf("counted %v by names and %v by caller", testutil.ToFloat64(m["names_rate"]), testutil.ToFloat64(m["caller_rate"]))
		}
		if problems, err := testutil.GatherAndLint(w.registry); err != nil || len(problems) > 0 {
			t.Errorf("%v %v", problems, err)
		}
	})
}

func TestAFloodOfOneCallerDoesNotStarveAnother(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Limits.MaxInFlight, c.Limits.MaxBatch = 20, 20 })
	release := w.signer.block()
	defer release()
	mallory, bob := w.idp.token(t, "mallory"), w.idp.token(t, "bob")
	client := w.client()
	inFlight := w.gateway.service.inFlight
	call := func(token, name string) httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: token, client: client, body: armour(newCSR(t, nil, name))})
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	rules := map[string]int{}
	for i := range 60 {
		wait.Go(func() {
			r := call(mallory, fmt.Sprintf("m%d.example.test", i))
			rule := "ok"
			if r.status != 200 {
				rule = r.problem(t).Rule
			}
			mu.Lock()
			defer mu.Unlock()
			rules[rule]++
		})
	}
	refusals := func() int {
		mu.Lock()
		defer mu.Unlock()
		return rules["caller_share"] + rules["in_flight"]
	}
	eventually(t, "the flood has what it can get", func() bool { return inFlight.used.Load() >= 16 && refusals() >= 60-17 })
	for i := range 3 {
		wait.Go(func() { call(bob, fmt.Sprintf("b%d.example.test", i)).ok(t, 200) })
	}
	eventually(t, "the other caller's are in work beside the flood's", func() bool { return inFlight.used.Load() >= 19 })
	release()
	wait.Wait()
	if rules["ok"] < 15 || rules["ok"] > 17 {
		t.Errorf("of the flood came through: %v", rules)
	}
	eventually(t, "every place is free", func() bool {
		n, _ := w.gateway.service.admission.calls.callers()
		return inFlight.used.Load() == 0 && n == 0
	})
}

func TestOpenStreamsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Limits.MaxStreams, c.Limits.CallerShare = 3, 1 })
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
	alice := as(t.Context(), w.idp.token(t, "alice"))
	var open []certmillv1.CertificateAuthority_IssueStreamClient
	for i := range 3 {
		s := must(ca.IssueStream(alice))(t)
		must0(t, s.Send(&certmillv1.IssueRequest{Csr: armour(newCSR(t, nil, fmt.Sprintf("s%d.example.test", i)))}))
		if r := must(s.Recv())(t); r.GetCertificate() == nil {
			t.Fatalf("stream %d: %v", i, r)
		}
		open = append(open, s)
	}
	over := must(ca.IssueStream(alice))(t)
	if _, err := over.Recv(); status.Code(err) != codes.ResourceExhausted || problem.FromStatus(err).Rule != "streams" {
		t.Errorf("a fourth stream: %v", err)
	}
	must0(t, open[0].CloseSend())
	if _, err := open[0].Recv(); err == nil {
		t.Error("the stream goes on after its end")
	}
	eventually(t, "its place is free", func() bool { return w.gateway.service.streams.used.Load() == 2 })
}
