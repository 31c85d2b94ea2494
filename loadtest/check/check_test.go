package check

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/target"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type ca struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t *testing.T) *ca {
	t.Helper()
	return (*ca)(nil).below(t, "ca", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(1000 * time.Hour) })
}

// issue makes a right answer to csr, unless change spoils it.
func (a *ca) issue(t *testing.T, csr *material.CSR, serial int64, change func(*x509.Certificate) crypto.PublicKey) []byte {
	t.Helper()
	req, err := x509.ParseCertificateRequest(csr.DER)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: req.DNSNames, URIs: req.URIs,
		NotBefore: time.Now().Add(-2 * time.Minute), NotAfter: time.Now().Add(24 * time.Hour)}
	public := req.PublicKey
	if change != nil {
		if p := change(template); p != nil {
			public = p
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pool(t *testing.T) *material.Pool {
	t.Helper()
	p, err := material.Make(t.Context(), material.Config{CSRs: 4, Name: "w{n}.load.test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (a *ca) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func TestWrongAnswersAreFound(t *testing.T) {
	a, other, p := newCA(t), newCA(t), pool(t)
	csr := p.Get(0)
	type change = func(*x509.Certificate) crypto.PublicKey
	for name, tc := range map[string]struct {
		by     *ca
		change change
		want   string
	}{
		"right":        {a, nil, ""},
		"another key":  {a, func(*x509.Certificate) crypto.PublicKey { return other.key.Public() }, "key"},
		"another name": {a, func(c *x509.Certificate) crypto.PublicKey { c.DNSNames = []string{"x.test"}; return nil }, "names"},
		"one name more": {a, func(c *x509.Certificate) crypto.PublicKey {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}}
			return nil
		}, "names"},
		"too short a life":      {a, func(c *x509.Certificate) crypto.PublicKey { c.NotAfter = time.Now().Add(20 * time.Hour); return nil }, "lives for"},
		"too long a life":       {a, func(c *x509.Certificate) crypto.PublicKey { c.NotAfter = time.Now().Add(25 * time.Hour); return nil }, "lives for"},
		"a life within jitter":  {a, func(c *x509.Certificate) crypto.PublicKey { c.NotAfter = time.Now().Add(22 * time.Hour); return nil }, ""},
		"not valid yet":         {a, func(c *x509.Certificate) crypto.PublicKey { c.NotBefore = time.Now().Add(time.Hour); return nil }, "not now"},
		"signed by another key": {other, nil, "chain"},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(Config{Share: 1, Roots: a.roots(), Lifetime: 24 * time.Hour, LifetimeLess: 0.1})
			c.Offer(&target.Request{ID: "r", CSR: csr}, target.Answer{DER: [][]byte{tc.by.issue(t, csr, 77, tc.change)}})
			s := c.Close()
			if (s.Wrong == 0) != (tc.want == "") || s.Seen != 1 || s.Checked != 1 {
				t.Fatalf("%+v", s)
			}
			if tc.want != "" && (!strings.Contains(s.Examples[0].Why, tc.want) || s.Examples[0].Evidence == "" || s.Examples[0].Request != "r") {
				t.Errorf("%+v", s.Examples[0])
			}
		})
	}
}

func TestASerialSeenTwiceIsWrongWhateverTheShare(t *testing.T) {
	a, p := newCA(t), pool(t)
	c := New(Config{Share: 0})
	for i := range int64(4) {
		c.Offer(&target.Request{CSR: p.Get(i)}, target.Answer{DER: [][]byte{a.issue(t, p.Get(i), 100+i%3, nil)}})
	}
	c.Offer(&target.Request{}, target.Answer{PEM: []byte("no certificate")})
	c.Offer(&target.Request{}, target.Answer{DER: [][]byte{{0x30, 0x03, 1, 2, 3}}})
	if s := c.Close(); s.Wrong != 3 || s.Seen != 6 || s.Checked != 0 {
		t.Errorf("%+v", s)
	}
}

func TestTheShareIsKeptEvenly(t *testing.T) {
	a, p := newCA(t), pool(t)
	c := New(Config{Share: 0.25, AnyNames: true})
	for i := range int64(200) {
		c.Offer(&target.Request{CSR: p.Get(0)}, target.Answer{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.issue(t, p.Get(0), 1000+i, nil)})})
	}
	if s := c.Close(); s.Checked != 50 || s.Wrong != 0 {
		t.Errorf("%+v", s)
	}
}

func TestLedgerRowAndOCSPAnswerAreAskedFor(t *testing.T) {
	a, p := newCA(t), pool(t)
	der := a.issue(t, p.Get(0), 5, nil)
	asked := 0
	sign := func(status int) []byte {
		out, err := ocsp.CreateResponse(a.cert, a.cert, ocsp.Response{Status: status, SerialNumber: big.NewInt(5), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}, a.key)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	good, revoked := sign(ocsp.Good), sign(ocsp.Revoked)
	row := func(context.Context, *big.Int) ([]byte, error) { return der, nil }
	later := func(context.Context, *big.Int, *x509.Certificate) ([]byte, error) {
		if asked++; asked == 1 {
			return nil, errors.New("unauthorized: not there yet")
		}
		return good, nil
	}
	never := func(context.Context, *big.Int, *x509.Certificate) ([]byte, error) { return revoked, nil }
	lost := func(context.Context, *big.Int) ([]byte, error) { return nil, status.Error(codes.NotFound, "not found") }
	other := func(context.Context, *big.Int) ([]byte, error) { return []byte("x"), nil }
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"there":         {Config{Row: row, Status: later, StatusWithin: 10 * time.Second}, ""},
		"no row":        {Config{Row: lost}, "looking for it in the ledger"},
		"another row":   {Config{Row: other}, "another certificate"},
		"never is good": {Config{Status: never, StatusWithin: 50 * time.Millisecond}, "no good OCSP status within"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cfg.Share = 1
			c := New(tc.cfg)
			c.Offer(&target.Request{CSR: p.Get(0)}, target.Answer{DER: [][]byte{der, a.cert.Raw}})
			s := c.Close()
			if tc.want == "" && s.Wrong != 0 || tc.want != "" && (s.Wrong != 1 || !strings.Contains(s.Examples[0].Why, tc.want)) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestOCSPAnswersAreChecked(t *testing.T) {
	a, other := newCA(t), newCA(t)
	now := time.Now()
	for name, tc := range map[string]struct {
		by     *ca
		serial int64
		status int
		next   time.Time
		want   string
	}{
		"right":          {a, 9, ocsp.Good, now.Add(time.Hour), ""},
		"another serial": {a, 8, ocsp.Good, now.Add(time.Hour), "for serial"},
		"revoked":        {a, 9, ocsp.Revoked, now.Add(time.Hour), "not good"},
		"expired":        {a, 9, ocsp.Good, now.Add(-time.Minute), "not now"},
		"another signer": {other, 9, ocsp.Good, now.Add(time.Hour), "OCSP answer"},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := ocsp.CreateResponse(a.cert, a.cert, ocsp.Response{Status: tc.status, SerialNumber: big.NewInt(tc.serial), ThisUpdate: now.Add(-time.Hour), NextUpdate: tc.next}, tc.by.key)
			if err != nil {
				t.Fatal(err)
			}
			q, err := target.NewStatusRequest(a.cert, big.NewInt(9), crypto.SHA1)
			if err != nil {
				t.Fatal(err)
			}
			c := New(Config{Share: 1, Issuer: a.cert})
			c.Offer(&target.Request{Status: q}, target.Answer{OCSP: der})
			s := c.Close()
			if tc.want == "" && s.Wrong != 0 || tc.want != "" && (s.Wrong != 1 || !strings.Contains(s.Examples[0].Why, tc.want)) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestSerialSetInItsThreeStages(t *testing.T) {
	s := newSerialSet(100, 1024)
	var b [16]byte
	add := func(n uint64) bool {
		binary.BigEndian.PutUint64(b[:], n|1<<62)
		return s.Add(b[:])
	}
	for n := range uint64(700) {
		if add(n) {
			t.Fatalf("serial %d is new", n)
		}
		if !add(n / 2) {
			t.Fatalf("serial %d was there (%s)", n/2, s)
		}
	}
	if s.exact != nil || len(s.hashes) > 1024 {
		t.Error("memory is not bounded")
	}
	for n := uint64(700); n < 5000; n++ {
		add(n)
	}
	if len(s.hashes) != 1024 || !add(10) || !strings.Contains(s.String(), "with the first 768") {
		t.Errorf("full: %d slots, %s", len(s.hashes), s)
	}
}
