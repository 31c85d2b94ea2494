package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
)

func TestARenewalIsWhatTheCallersCertificateCoversAlready(t *testing.T) {
	w := newWorld(t)
	issue := func(t *testing.T, c httpCall) []*x509.Certificate {
		c.method, c.contentType = http.MethodPost, pemType
		return parseChain(t, w.do(t, c).ok(t, 200).body)
	}
	const workload, server = "/v1/certificates?profile=workload", "/v1/certificates?profile=server"
	own := w.obtain(t, httpCall{path: workload, token: w.idp.token(t, "shop")})
	key := newKey(t)
	leaf := issue(t, httpCall{path: server, token: w.idp.token(t, "web"), body: armour(newCSR(t, key, "a.example.test"))})[0]
	web := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	foreign := w.pki.foreign.issue(t, &x509.Certificate{DNSNames: []string{"a.example.test"}})
	csr := func(names ...string) []byte { return armour(newCSR(t, nil, names...)) }

	for name, c := range map[string]struct {
		call httpCall
		want queue.Priority
	}{
		"its own name again":                        {httpCall{path: workload, client: w.client(own), body: csr()}, queue.Renewal},
		"another name":                              {httpCall{path: server, client: w.client(web), body: csr("b.example.test")}, queue.First},
		"its own name and another":                  {httpCall{path: server, client: w.client(web), body: csr("a.example.test", "b.example.test")}, queue.First},
		"another name for the same key":             {httpCall{path: server, client: w.client(web), body: armour(newCSR(t, key, "c.example.test"))}, queue.Renewal},
		"a certificate of another CA":               {httpCall{path: server, client: w.client(foreign), body: csr("a.example.test")}, queue.First},
		"a token":                                   {httpCall{path: workload, token: w.idp.token(t, "shop"), body: csr()}, queue.First},
		"a token beside the certificate":            {httpCall{path: workload, token: w.idp.token(t, "shop"), client: w.client(own), body: csr()}, queue.Renewal},
		"a token beside another's certificate":      {httpCall{path: workload, token: w.idp.token(t, "cart"), client: w.client(own), body: csr()}, queue.First},
		"a token beside a certificate of elsewhere": {httpCall{path: workload, token: w.idp.token(t, "shop"), client: w.client(foreign), body: csr()}, queue.First},
	} {
		t.Run(name, func(t *testing.T) {
			issue(t, c.call)
			if got := w.signer.lastPriority(); got != c.want {
				t.Errorf("priority %s, want %s", got, c.want)
			}
		})
	}
}

func TestRenewalsLeaveRoomForFirstCertificates(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.MaxInFlight, c.Limits.MaxBatch, c.Limits.RenewalShare = 4, 4, 0.5
	})
	own := w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", token: w.idp.token(t, "shop")})
	release := w.signer.block()
	defer release()
	renewer := w.client(own)
	renew := func() httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates?profile=workload", contentType: pemType, client: renewer, body: armour(newCSR(t, nil))})
	}
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() { renew().ok(t, 200) })
	}
	eventually(t, "two renewals are in flight", func() bool { return w.gateway.service.renewing.used.Load() == 2 })
	renew().expect(t, http.StatusTooManyRequests, "", "renewals_in_flight")
	wait.Go(func() {
		w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", token: w.idp.token(t, "new")})
	})
	eventually(t, "a first certificate is let in", func() bool { return w.gateway.service.inFlight.used.Load() == 3 })
	release()
	wait.Wait()
	renew().ok(t, 200)
}

func TestPendingRenewalsLeaveRoomForFirstCertificates(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.MaxPending, m.cfg.MaxInFlight = 8, 2 })
	ctx, cancel := context.WithCancel(patience(t))
	defer cancel()
	var wait sync.WaitGroup
	ask := func(id string, p queue.Priority) {
		wait.Go(func() { _, _ = m.d.Do(ctx, asking("mtls:a", id), p) })
	}
	pending := func(n float64) func() bool {
		return func() bool { return m.value("certmill_gateway_dispatch_pending") == n }
	}
	for i := range 6 {
		ask(strconv.Itoa(i), queue.Renewal)
	}
	until(t, "six renewals wait", pending(6))
	if _, err := m.d.Do(ctx, asking("mtls:b", "x"), queue.Renewal); !errors.Is(err, &problem.Error{Kind: problem.Overloaded, Rule: "gateway_pending"}) {
		t.Errorf("the seventh renewal: %v", err)
	}
	ask("first", queue.First)
	until(t, "a first certificate waits beside them", pending(7))
	cancel()
	wait.Wait()
	m.settled()
}
