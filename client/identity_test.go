package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func open(t *testing.T, ca *testCA, name string) *Identity {
	t.Helper()
	id, err := Open(t.Context(), ca.config(), Request{URIs: []string{"spiffe://a.test/" + name}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = id.Close() })
	return id
}

// next waits for a certificate other than serial.
func next(t *testing.T, id *Identity, serial string) *Certificate {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		changed := id.Changed()
		if c := id.Certificate(); c.Serial != serial {
			return c
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no renewal of %s within 20 s: %v", serial, id.Err())
		}
	}
}

// handshake returns what each side says of an mTLS handshake over TCP.
func handshake(server, client *tls.Config) (serverErr, clientErr error) {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return err, nil
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if err = conn.(*tls.Conn).Handshake(); err == nil {
			_, err = conn.Write([]byte("x"))
		}
		done <- err
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", listener.Addr().String(), client)
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1)) // a server's refusal comes after the client's handshake
		_ = conn.Close()
	} else {
		_ = listener.Close()
	}
	return <-done, err
}

func mustShake(t *testing.T, server, client *tls.Config) {
	t.Helper()
	if s, c := handshake(server, client); s != nil || c != nil {
		t.Fatalf("the handshake failed: server %v, client %v", s, c)
	}
}

func TestAnIdentityRenewsItselfAndShowsWhatItHas(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 3*time.Second)
	a, b := open(t, ca, "a"), open(t, ca, "b")
	server, client := a.ServerTLS(AllowURI("spiffe://a.test/b")), b.ClientTLS(AllowURI("spiffe://a.test/*"))
	mustShake(t, server, client)
	first := a.Certificate()
	second := next(t, a, first.Serial)
	if second.Leaf().NotAfter.Before(first.Leaf().NotAfter) || !second.Leaf().NotBefore.Before(first.Leaf().NotAfter) {
		t.Error("the renewal did not come in time")
	}
	next(t, b, b.Certificate().Serial)
	mustShake(t, server, client) // the same configurations
	for _, k := range ca.asks()[2:] {
		if k.shown == nil || k.token == "" {
			t.Errorf("a renewal came with certificate %v and token %q", k.shown != nil, k.token)
		}
	}
}

func TestPeersAreJudged(t *testing.T) {
	t.Parallel()
	ca, elsewhere := newTestCA(t, time.Hour), newTestCA(t, time.Hour)
	a, b, stranger := open(t, ca, "a"), open(t, ca, "b"), open(t, elsewhere, "b")
	for name, c := range map[string]struct {
		server, client *tls.Config
		good           bool
	}{
		"each other":                  {a.ServerTLS(AllowURI("spiffe://a.test/b")), b.ClientTLS(AllowURI("spiffe://a.test/a")), true},
		"anybody of the CA":           {a.ServerTLS(AllowAny()), b.ClientTLS(AllowAny()), true},
		"a client that is not meant":  {a.ServerTLS(AllowURI("spiffe://a.test/c")), b.ClientTLS(AllowAny()), false},
		"a server that is not meant":  {a.ServerTLS(AllowAny()), b.ClientTLS(AllowURI("spiffe://a.test/aa")), false},
		"nobody named":                {a.ServerTLS(nil), b.ClientTLS(AllowAny()), false},
		"no host name":                {a.ServerTLS(AllowAny()), b.ClientTLS(nil), false},
		"a client of another CA":      {a.ServerTLS(AllowAny()), stranger.ClientTLS(AllowAny()), false},
		"a client without a cert":     {a.ServerTLS(AllowAny()), &tls.Config{InsecureSkipVerify: true}, false},
		"a server of another CA":      {stranger.ServerTLS(AllowAny()), b.ClientTLS(AllowAny()), false},
		"a client that needs no cert": {lowered(a.ServerTLS(AllowAny())), &tls.Config{InsecureSkipVerify: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if s, cl := handshake(c.server, c.client); (s == nil && cl == nil) != c.good {
				t.Errorf("server %v, client %v", s, cl)
			}
		})
	}
}

func lowered(c *tls.Config) *tls.Config { c.ClientAuth = tls.RequestClientCert; return c }

func TestAnIdentityOutlivesAnOutageAndKeepsItsRequest(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 8*time.Second)
	id := open(t, ca, "a")
	first := id.Certificate()
	ca.set(func() {
		ca.refuse = func(*certmillv1.IssueRequest) error { return problem.Busy("full", 100*time.Millisecond, "full") }
	})
	for end := time.Now().Add(15 * time.Second); len(ca.asks()) < 4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the renewal is not tried")
		}
	}
	ca.set(func() { ca.refuse = nil })
	next(t, id, first.Serial)
	asks := ca.asks()[1:]
	for _, k := range asks {
		if k.id != asks[0].id || k.csr != asks[0].csr {
			t.Error("a retry of the renewal was another request")
		}
	}
	if id.Err() != nil {
		t.Errorf("after the renewal: %v", id.Err())
	}
}

func TestARefusedRenewalIsAskedAnewAndTold(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 4*time.Second)
	id := open(t, ca, "a")
	ca.set(func() {
		ca.refuse = func(*certmillv1.IssueRequest) error {
			return &problem.Error{Kind: problem.Unauthenticated, Rule: "revoked", Detail: "the client certificate is revoked"}
		}
	})
	for id.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	if !errors.Is(id.Err(), &Error{Kind: Unauthenticated, Rule: "revoked"}) {
		t.Errorf("the failure is %v", id.Err())
	}
	asks := ca.asks()[1:] // by the token and, as that was refused, by the certificate alone
	if len(asks) < 2 || asks[0].token == "" || asks[1].token != "" || asks[1].shown == nil {
		t.Errorf("asked %d times", len(asks))
	}
	if err := ca.newRoot(); err != nil {
		t.Fatal(err)
	}
	late := time.After(20 * time.Second)
	for len(id.Bundle().Roots) < 2 { // its peers have renewed, and it still judges them
		select {
		case <-id.Changed():
		case <-time.After(50 * time.Millisecond):
		case <-late:
			t.Fatal("the bundle is not read while the renewal is refused")
		}
	}
	for time.Now().Before(id.Certificate().Leaf().NotAfter) {
		time.Sleep(50 * time.Millisecond)
	}
	if s, _ := handshake(id.ServerTLS(AllowAny()), id.ClientTLS(AllowAny())); !errors.Is(s, errExpired) && s == nil {
		t.Errorf("an expired certificate is shown: %v", s)
	}
}

func TestAnEnrollmentTokenIsUsedOnce(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 3*time.Second)
	if err := os.WriteFile(ca.file("token"), []byte("cmt_secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := open(t, ca, "a")
	next(t, id, id.Certificate().Serial)
	asks := ca.asks()
	if asks[0].token != "Bearer cmt_secret" || asks[0].shown != nil {
		t.Errorf("the first certificate was asked for with %q", asks[0].token)
	}
	if asks[1].token != "" || asks[1].shown == nil {
		t.Errorf("the renewal was asked for with %q", asks[1].token)
	}
}

func TestARenewalPulledForwardIsHeard(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 20*time.Second)
	pulled := ""
	ca.set(func() {
		ca.renewAt = func(serial string) time.Time {
			if pulled == "" {
				pulled = serial
			}
			if serial == pulled {
				return time.Now()
			}
			return time.Now().Add(time.Hour)
		}
	})
	began := time.Now()
	id := open(t, ca, "a")
	next(t, id, id.Certificate().Serial)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("renewed after %s of 10", took)
	}
}

func TestACAThatAlwaysSaysNowIsNotAskedWithoutEnd(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 20*time.Second)
	id := open(t, ca, "a")
	var p *prepared
	ctx := context.Background()
	ca.life = 20 * time.Second
	if err := id.tryRenew(ctx, &p); err != nil {
		t.Fatal(err)
	}
	p, _ = id.request.prepare()
	ca.set(func() { ca.made[p.message.RequestId] = nil })
	cert, err := ca.issue(p.message)
	if err != nil {
		t.Fatal(err)
	}
	cert.RenewAt.Seconds -= 3600
	if err := id.tryRenew(ctx, &p); err != nil {
		t.Fatal(err)
	}
	if wait := time.Until(id.Certificate().RenewAt); wait < 500*time.Millisecond {
		t.Errorf("the next renewal is in %s", wait)
	}
}

// A root is changed as operators should: the new one into the bundle, then the issuing
// over to it, then the old one out.
func TestARootIsChangedUnderway(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, 3*time.Second)
	a, b := open(t, ca, "a"), open(t, ca, "b")
	server, client := a.ServerTLS(AllowAny()), b.ClientTLS(AllowAny())
	both := func(what string, done func(*Identity) bool) {
		t.Helper()
		late := time.After(20 * time.Second)
		for _, id := range []*Identity{a, b} {
			for changed := id.Changed(); !done(id); changed = id.Changed() {
				select {
				case <-changed:
				case <-time.After(50 * time.Millisecond): // it may have changed between the two
				case <-late:
					t.Fatalf("not within 20 s: %s (%v)", what, id.Err())
				}
			}
		}
		mustShake(t, server, client)
	}
	if err := ca.newRoot(); err != nil {
		t.Fatal(err)
	}
	both("the new root is trusted", func(id *Identity) bool { return len(id.Bundle().Roots) == 2 })
	ca.set(func() { ca.issuer = ca.roots[1] }) // the gateway's own certificate too
	newest, old := ca.issuer.cert, ca.roots[0].cert
	next(t, a, a.Certificate().Serial)
	mustShake(t, server, client) // one of each
	both("renewed under the new root", func(id *Identity) bool { return id.Certificate().Leaf().CheckSignatureFrom(newest) == nil })
	ca.set(func() { ca.roots = ca.roots[1:] })
	both("the old root is gone", func(id *Identity) bool { return !id.Bundle().has(old.Raw) })
	next(t, a, a.Certificate().Serial) // from a gateway whose root is in no file
}

func TestCloseWaitsAndContextsEnd(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	id, err := Open(ctx, ca.config(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-id.Done()
	if err := id.Close(); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ended, ca.config(), Request{}); err == nil {
		t.Error("opened with a context that has ended")
	}
}
