package signer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
	"github.com/certmill/certmill/signer/hsm"
)

// load keeps 40 requests on their way while the test waits for something.
type load struct {
	*world
	sent []ledger.RequestKey // in the order in which they were sent
	got  map[ledger.RequestKey]*queuev1.SignResult
}

func (w *world) load() *load {
	return &load{world: w, got: map[ledger.RequestKey]*queuev1.SignResult{}}
}

func (l *load) until(what string, ok func() bool) { l.t.Helper(); l.run(40, what, ok) }

// more goes on until so many more results are there.
func (l *load) more(n int) {
	l.t.Helper()
	n += len(l.got)
	l.until(fmt.Sprintf("%d results", n), func() bool { return len(l.got) >= n })
}

func (l *load) run(ahead int, what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(end) {
			l.t.Fatalf("not within 60 s: %s", what)
		}
		for len(l.sent)-len(l.got) < ahead {
			r := l.request(fmt.Sprintf("load-%d", len(l.sent)))
			l.send(queue.First, r)
			l.sent = append(l.sent, ledger.RequestKey(r.RequestKey))
		}
		select {
		case r := <-l.results:
			if r.Failure != nil {
				l.t.Fatalf("a request failed: %v", r.Failure)
			}
			l.got[ledger.RequestKey(r.RequestKey)] = r
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// end waits for what is on its way.
func (l *load) end() {
	l.t.Helper()
	l.run(0, "every request has its certificate", func() bool { return len(l.got) == len(l.sent) })
}

// prepareGeneration registers a generation of the issuer with a key of its own.
func (w *world) prepareGeneration() {
	w.t.Helper()
	ctx := bounded(w.t)
	token, err := hsm.Open(ctx, w.cfg.Tokens[0], hsm.Deps{})
	w.check(err)
	defer func() { w.check(token.Close(ctx)) }()
	key, err := token.GenerateKey(ctx, hsm.KeySpec{Label: "issuing 2", Algorithm: hsm.ECDSAP256})
	w.check(err)
	w.issuer.State, w.issuer.KeyURI = ledger.IssuerPrepared, key.URI()
	w.sign(key)
}

func (w *world) startSecond() *running {
	w.t.Helper()
	w.cfg.Name = "test2"
	return w.start()
}

func TestARolloverUnderLoadFailsNoRequest(t *testing.T) {
	w := newWorld(t)
	signers := []*running{w.start(), w.startSecond()}
	old, oldCert := w.issuer.ID, w.cert
	l := w.load()
	l.more(50)
	w.prepareGeneration()
	l.more(50)
	for _, r := range l.got {
		if r.IssuerId != old {
			t.Fatal("a prepared generation has issued")
		}
	}
	w.issuer.State = ledger.IssuerActive
	_, err := w.book.PutIssuer(bounded(t), w.issuer)
	w.check(err)
	l.until("both signers serve the new generation alone", func() bool {
		for _, s := range signers {
			if lines := s.allLines(); len(lines) != 1 || lines[0].issuer.ID != w.issuer.ID || s.Ready() != nil {
				return false
			}
		}
		return true
	})
	switched := len(l.sent)
	l.more(100)
	l.end()
	for i, key := range l.sent {
		r, issuer := l.got[key], w.cert
		if r.IssuerId == old {
			issuer = oldCert
		}
		if i >= switched && r.IssuerId == old {
			t.Errorf("request %d was sent after the rollover and has the old generation", i)
		}
		cert, err := x509.ParseCertificate(r.Der)
		w.check(err)
		w.check(cert.CheckSignatureFrom(issuer))
	}
	epochs, err := w.book.Epochs(bounded(t))
	w.check(err)
	for _, e := range epochs {
		if e.Final != (e.Issuer == old) {
			t.Errorf("epoch %d of generation %d: final %v", e.ID, e.Issuer, e.Final)
		}
	}
}

func TestASignerWithoutTheNewKeyGoesOnWithTheOld(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	old := w.issuer.ID
	next := w.issuer
	next.KeyURI = hsm.URI{Object: "elsewhere"}.String()
	// The key of this certificate is in no token here.
	next.DER, next.Chain = otherCA(t), [][]byte{w.cert.Raw}
	_, err := w.book.PutIssuer(bounded(t), next)
	w.check(err)
	eventually(t, "it says that something is wrong", func() bool { return s.Ready() != nil })
	if r := w.one(w.request("a")); r.Failure != nil || r.IssuerId != old {
		t.Errorf("the result is %v", r)
	}
}

func TestADrainedSignerTakesNoWork(t *testing.T) {
	w := newWorld(t)
	first := w.start()
	w.startSecond()
	state := func() string {
		var m certmillv1.RoleStatus
		first.describe(&m)
		return m.State
	}
	l := w.load()
	l.more(50)
	w.check(w.book.Drain(bounded(t), "test", "local:ada"))
	l.until("the first is drained", func() bool { return state() == presence.Drained })
	if first.Ready() == nil || first.inFlight.Load() != 0 {
		t.Errorf("drained, and ready with %d requests at work", first.inFlight.Load())
	}
	drained := len(l.sent)
	l.more(100)
	l.end() // so that what was sent until now is the other's
	undrained := len(l.sent)
	w.check(w.book.Undrain(bounded(t), "test", "local:ada"))
	l.until("the first works again", func() bool { return first.Ready() == nil && state() != presence.Drained })
	l.more(200)
	l.end()

	epochs, err := w.book.Epochs(bounded(t))
	w.check(err)
	signer := map[uint32]string{}
	for _, e := range epochs {
		signer[e.ID] = e.Signer
	}
	var before, during, after int
	for i, key := range l.sent {
		cert, err := x509.ParseCertificate(l.got[key].Der)
		w.check(err)
		n, err := serial.FromBig(cert.SerialNumber)
		w.check(err)
		if signer[n.Epoch()] != "test" {
			continue
		}
		switch {
		case i < drained:
			before++
		case i < undrained:
			during++
		default:
			after++
		}
	}
	if before == 0 || during > 0 || after == 0 {
		t.Errorf("the drained signer has signed %d before, %d during and %d after", before, during, after)
	}
}

// otherCA makes a certificate of a key that no token has.
func otherCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "elsewhere"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
