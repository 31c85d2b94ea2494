package gateway

import (
	"maps"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// reports is what signers say of themselves: those of alive go on reporting, the last
// report of the others stands until it is forgotten.
type reports struct {
	mu    sync.Mutex
	last  map[string]time.Time
	alive []string
}

func (r *reports) signing() map[string]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.alive {
		r.last[name] = time.Now()
	}
	return maps.Clone(r.last)
}

// report sets who reports from now on; forget says that the last reports of others have
// become too old.
func (r *reports) report(forget bool, issuers ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alive = issuers; forget || r.last == nil {
		r.last = map[string]time.Time{}
	}
}

// twoIssuers shares a profile's work 3:1.
func twoIssuers(t *testing.T) *profile.Profile {
	t.Helper()
	p, err := profile.Parse([]byte(`{name: workload, issuers: [{name: big, weight: 3}, {name: small}], key_types: [ecdsa-p256],
		names: {dns: {allow: ["**"]}}, lifetime: {default: 1h, max: 1h}, key_usage: [digitalSignature], revocation: {mode: none}}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// issuerMill is a mill with two issuers whose signers count what they sign.
type issuerMill struct {
	*mill
	profile *profile.Profile
	reports reports
	signed  map[string]*atomic.Int64
}

func newIssuerMill(t *testing.T, change func(*mill)) *issuerMill {
	t.Helper()
	m := &issuerMill{profile: twoIssuers(t), signed: map[string]*atomic.Int64{"big": {}, "small": {}}}
	m.mill = newMill(t, func(base *mill) {
		base.signing = m.reports.signing
		base.cfg.FailoverAfter = time.Minute
		if change != nil {
			change(base)
		}
	})
	return m
}

func (m *issuerMill) serveIssuer(name string) (stop func()) {
	return m.signFor(name, func(r *queuev1.SignRequest) *queuev1.SignResult {
		if r.Issuer != name {
			m.t.Errorf("a request for %q came to %q", r.Issuer, name)
		}
		m.signed[name].Add(1)
		res := millIssued(r)
		res.IssuerId = int32(len(name))
		return res
	})
}

// ask sends one request as the gateway does, and returns which issuer signed it.
func (m *issuerMill) ask(id string) (int32, error) {
	r := asking("mtls:a", id)
	rank := m.profile.RankIssuers(r.RequestKey)
	r.Issuer = rank[0]
	res, err := m.d.Do(patience(m.t), r, queue.First, rank[1:]...)
	return res.GetIssuerId(), err
}

// askMany asks for n certificates, 32 at a time, and reports every failure.
func (m *issuerMill) askMany(prefix string, n int) {
	var wait sync.WaitGroup
	var next atomic.Int64
	for range 32 {
		wait.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if _, err := m.ask(prefix + strconv.FormatInt(i, 10)); err != nil {
					m.t.Errorf("request %s%d: %v", prefix, i, err)
				}
			}
		})
	}
	wait.Wait()
}

func TestIssuersShareTheWorkAndStandInForEachOther(t *testing.T) {
	// Long enough for a slow machine, on which the living must not be taken for dead.
	m := newIssuerMill(t, func(m *mill) { m.cfg.FailoverAfter = 3 * time.Second })
	stopBig := m.serveIssuer("big")
	m.serveIssuer("small")
	m.reports.report(true, "big", "small")

	// Step 1: by weight; the keys are fixed, so that this is the same in every run.
	const n = 2000
	m.askMany("share-", n)
	big, small := m.signed["big"].Load(), m.signed["small"].Load()
	if sigma := math.Sqrt(n * .75 * .25); big+small != n || math.Abs(float64(big)-n*.75) > 5*sigma {
		t.Fatalf("of %d certificates big signed %d and small %d; the weights are 3:1", n, big, small)
	}
	// Step 2: a repetition goes to the issuer of the first request.
	for i := range 40 {
		id := "again-" + strconv.Itoa(i)
		first, err := m.ask(id)
		m.check(err)
		if second, err := m.ask(id); err != nil || second != first {
			t.Errorf("%s: issuer %d, then %d (%v)", id, first, second, err)
		}
	}
	// Step 3: one issuer's signers die without a word while requests come in.
	var over atomic.Bool
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for round := 0; !over.Load() && !t.Failed(); round++ {
			m.askMany("death-"+strconv.Itoa(round)+"-", 200)
		}
	}()
	until(t, "the load is on", func() bool { return m.signed["big"].Load() > big+100 })
	m.reports.report(false, "small")
	stopBig()
	until(t, "requests go over", func() bool { return m.value("certmill_gateway_dispatch_failovers_total") > 50 })
	over.Store(true)
	<-loaded
	// Step 4: they are known to be gone, and nothing waits for them any more.
	m.reports.report(true, "small")
	until(t, "the reports are read", func() bool { return m.value("certmill_gateway_issuer_up") == 1 })
	dead := m.signed["big"].Load()
	m.askMany("gone-", 200)
	if m.signed["big"].Load() != dead {
		t.Error("the dead have signed")
	}
	// Step 5: they come back and get their part again.
	m.serveIssuer("big")
	m.reports.report(false, "big", "small")
	until(t, "the reports are read", func() bool { return m.value("certmill_gateway_issuer_up") == 2 })
	m.askMany("back-", 200)
	if now := m.signed["big"].Load(); now < dead+100 {
		t.Errorf("big signed %d of 200 after its return", now-dead)
	}
	m.settled()
}

func TestAnIssuerWhoseSignersFailIsStoodInFor(t *testing.T) {
	m := newIssuerMill(t, nil)
	m.signFor("big", func(r *queuev1.SignRequest) *queuev1.SignResult {
		return millFailed(r, problem.Down("hsm", time.Second, nil))
	})
	m.serveIssuer("small")
	m.reports.report(true, "big", "small")
	m.askMany("hsm-", 100)
	m.settled()
}

func TestAnIssuerWhosePartOfTheQueueIsFullIsStoodInFor(t *testing.T) {
	// A subject has a quarter of the queue.
	const quarter = 100
	m := newIssuerMill(t, func(m *mill) { m.nats.MaxPending, m.cfg.MaxBatch = 4*quarter, 1 })
	m.serveIssuer("small")
	m.reports.report(true, "big", "small")
	for i := range quarter {
		order := asking("mtls:a", "fills the queue "+strconv.Itoa(i))
		order.Issuer, order.OrderId = "big", "o"+strconv.Itoa(i)
		m.check(m.d.Enqueue(patience(t), order, queue.First))
	}
	for i := range 20 {
		if _, err := m.ask("full-" + strconv.Itoa(i)); err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	// Where no other may, the refusal is the answer.
	alone := asking("mtls:a", "alone")
	alone.Issuer = "big"
	if _, err := m.d.Do(patience(t), alone, queue.First); problem.KindOf(err) != problem.Overloaded {
		t.Errorf("without a stand-in: %v", err)
	}
}
