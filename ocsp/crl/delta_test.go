package crl

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"os"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// pair returns CRL and delta of a shard of the world's four.
func (w *world) pair(crls []ledger.CRL, shard int) (base, delta ledger.CRL) {
	w.t.Helper()
	if len(crls) != 8 {
		w.t.Fatalf("%d CRLs, want four with a delta each", len(crls))
	}
	return crls[shard], crls[4+shard]
}

func baseNumber(t *testing.T, list *x509.RevocationList) int64 {
	t.Helper()
	for _, e := range list.Extensions {
		if e.Id.Equal(oidDelta) {
			if !e.Critical {
				t.Error("the delta indicator is not critical")
			}
			n := new(big.Int)
			_, err := asn1.Unmarshal(e.Value, &n)
			noError(t, err)
			return n.Int64()
		}
	}
	return 0
}

func TestADeltaHasWhatItsBaseLacks(t *testing.T) {
	w := newWorld(t)
	m := w.maker(func(c *Config, _ *Deps) { c.Delta = true })
	early := w.issue(10 * time.Hour)
	w.revoke(early)
	late := w.issue(10 * time.Hour)
	for crldp.Of(late, 4) != crldp.Of(early, 4) {
		late = w.issue(10 * time.Hour)
	}
	shard := crldp.Of(early, 4)
	base, delta := w.pair(w.look(m), shard)
	if !w.lists(base, early) || w.lists(delta, early) {
		t.Error("what was revoked before stands in the delta, or not in its base")
	}
	w.revoke(late)
	again, after := w.pair(w.look(m), shard)
	if again != base {
		t.Error("the revocation has made the whole CRL anew")
	}
	if after.Number <= delta.Number || after.Number <= base.Number || w.lists(after, early) || !w.lists(after, late) || after.Entries != 1 {
		t.Errorf("the delta %+v after %+v", after, delta)
	}
	if n := baseNumber(t, w.read(after)); n != base.Number {
		t.Errorf("a delta to number %d, the CRL has %d", n, base.Number)
	}
	if baseNumber(t, w.read(base)) != 0 {
		t.Error("the CRL calls itself a delta")
	}
	// The schedule moves the base on. A delta that was begun at the same time may be one
	// to the base before, and then serves both; it is never older than its base, and may have
	// its number (RFC 5280 section 5.2.4).
	w.ahead.Add(int64(70 * time.Minute))
	base, delta = w.pair(w.look(m), shard)
	if !w.lists(base, early) || !w.lists(base, late) || base.Number == again.Number {
		t.Errorf("after the schedule: %+v", base)
	}
	if n := baseNumber(t, w.read(delta)); n < again.Number || n > base.Number || delta.Number < base.Number {
		t.Errorf("a delta %d to %d beside CRL %d", delta.Number, n, base.Number)
	}
	// Without deltas, revocations go where they went before, and deltas run out.
	last := w.issue(10 * time.Hour)
	w.revoke(last)
	shard = crldp.Of(last, 4)
	old := delta
	whole, delta := w.pair(w.look(w.maker()), shard)
	if !w.lists(whole, last) {
		t.Error("with deltas switched off again the CRL lacks a revocation")
	}
	if old.Shard == delta.Shard && delta != old {
		t.Error("a delta was made although they are switched off")
	}
}

// Deltas are off by default: nothing of them is in a CRL.
func TestNoDeltaUnlessAskedFor(t *testing.T) {
	w := newWorld(t)
	for _, c := range w.look(w.maker()) {
		for _, e := range w.read(c).Extensions {
			if e.Id.Equal(oidFreshest) || e.Id.Equal(oidDelta) {
				t.Errorf("extension %s", e.Id)
			}
		}
	}
}

// openssl finds a revocation in the delta that the CRL lacks.
func TestOpenSSLTakesADelta(t *testing.T) {
	openssl := testenv.Program(t, "openssl", "openssl")
	w := newWorld(t)
	m := w.maker(func(c *Config, _ *Deps) { c.Delta = true })
	w.look(m)
	point := points[0].Point.For("issuing", w.issuer)
	leaf := w.ca.leaf(t, time.Hour, point)
	n := w.known(leaf)
	w.revoke(n)
	base, delta := w.pair(w.look(m), crldp.Of(n, 4))
	root, cert := ocsptest.WriteCertificate(t, "ca.pem", w.ca.cert), ocsptest.WriteCertificate(t, "leaf.pem", leaf)
	whole := crlPEM(t, "base.pem", w.der(base))
	text, err := os.ReadFile(whole)
	noError(t, err)
	more, err := os.ReadFile(crlPEM(t, "delta.pem", w.der(delta)))
	noError(t, err)
	both := writeFile(t, "both.pem", append(text, more...))
	runs(t, true, "OK", openssl, "verify", "-crl_check", "-CRLfile", whole, "-CAfile", root, cert)
	runs(t, false, "certificate revoked", openssl, "verify", "-crl_check", "-use_deltas", "-CRLfile", both, "-CAfile", root, cert)
}

// der puts a CRL together.
func (w *world) der(c ledger.CRL) []byte {
	w.t.Helper()
	var der bytes.Buffer
	for n := range c.Chunks {
		piece, err := w.book.CRLChunk(context.Background(), c.Set, c.Shard, c.Number, n)
		noError(w.t, err)
		der.Write(piece)
	}
	return der.Bytes()
}
