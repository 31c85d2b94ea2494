package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/certmill/certmill/loadtest/target"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// fakeCA signs what it is asked, with a lifetime that jitter shortens at random.
type fakeCA struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	life   time.Duration
	jitter float64
	// refuse is asked first, with how often this CSR has come; nil lets everything through.
	refuse func(try int, r *target.Request) error

	mu     sync.Mutex
	seen   map[string]int
	stored []*certmillv1.Certificate
	twice  bool // store a certificate nobody got, once
}

func newFakeCA(t *testing.T, jitter float64) *fakeCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeCA{key: key, cert: &x509.Certificate{}, life: 100 * time.Second, jitter: jitter, seen: map[string]int{}}
}

func (f *fakeCA) Do(_ context.Context, r *target.Request) (target.Answer, error) {
	f.mu.Lock()
	f.seen[string(r.CSR.DER)]++
	try := f.seen[string(r.CSR.DER)]
	f.mu.Unlock()
	if f.refuse != nil {
		if err := f.refuse(try, r); err != nil {
			return target.Answer{}, err
		}
	}
	csr, err := x509.ParseCertificateRequest(r.CSR.DER)
	if err != nil {
		return target.Answer{}, err
	}
	life := f.life - time.Duration(f.jitter*mathrand.Float64()*float64(f.life))
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(life), URIs: csr.URIs}, f.cert, csr.PublicKey, f.key)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stored = append(f.stored, &certmillv1.Certificate{Names: []string{"uri:" + csr.URIs[0].String()}})
	if f.twice {
		f.twice = false
		f.stored = append(f.stored, f.stored[0])
	}
	return target.Answer{DER: [][]byte{der}}, err
}

func (f *fakeCA) Close() error { return nil }

// ledger serves what the CA has stored, three to a page.
type ledger struct {
	certmillv1.CertificateAuthorityClient
	ca *fakeCA
}

func (l ledger) ListCertificates(_ context.Context, in *certmillv1.ListCertificatesRequest, _ ...grpc.CallOption) (*certmillv1.ListCertificatesResponse, error) {
	from := len(in.PageToken)
	to := min(from+3, len(l.ca.stored))
	out := &certmillv1.ListCertificatesResponse{Certificates: l.ca.stored[from:to]}
	if to < len(l.ca.stored) {
		out.NextPageToken = strings.Repeat("x", to)
	}
	return out, nil
}

func testMaterial(t *testing.T, agents, each int) *Material {
	t.Helper()
	keyPEM, jwks, err := NewTokenKey()
	if err != nil || len(jwks) == 0 {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, keyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ReadTokenKey(file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Make(t.Context(), agents, each, Identities{Prefix: "spiffe://a.test/", Run: "r", Issuer: "i", Audience: "a", Key: key, Lifetime: time.Hour}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// play runs a mesh in virtual time, whose agents start within a tenth of the CA's lifetime.
func play(t *testing.T, ca *fakeCA, m *Material, renew time.Duration) *Outcome {
	t.Helper()
	var out *Outcome
	synctest.Test(t, func(t *testing.T) {
		var err error
		out, err = Run(t.Context(), Config{Agents: m.Agents(), Within: ca.life / 10, For: renew, TryTimeout: time.Second, Target: ca, Material: m})
		if err != nil {
			t.Fatal(err)
		}
	})
	return out
}

func TestJitterDissolvesTheHerdAndNothingElseDoes(t *testing.T) {
	// A life of 20 s, so that thirty agents renew in a second of which the peak is taken: of
	// six, chance alone makes peaks as high as a herd's.
	m := testMaterial(t, 300, 7)
	short := func(jitter float64) *fakeCA {
		ca := newFakeCA(t, jitter)
		ca.life = 20 * time.Second
		return ca
	}
	still := play(t, short(0), m, 24*time.Second)
	if last := still.Herd[len(still.Herd)-1]; still.Herd[0] < 4 || last < 2.5 {
		t.Errorf("without jitter the herd is %v", still.Herd)
	}
	spread := play(t, short(0.5), m, 24*time.Second)
	if last := spread.Herd[len(spread.Herd)-1]; spread.Herd[0] < 2.5 || last > 2 {
		t.Errorf("with jitter the herd is %v", spread.Herd)
	}
	for _, o := range []*Outcome{still, spread} {
		if o.Served != 300 || o.Renewals < 450 || len(o.Refused) != 0 || o.Late != 0 || len(o.Failed()) != 0 {
			t.Errorf("served %d, renewals %d, refused %v, late %d, failed %v", o.Served, o.Renewals, o.Refused, o.Late, o.Failed())
		}
	}
}

func TestAgentsRepeatAsIstiosDo(t *testing.T) {
	ca := newFakeCA(t, 0)
	var mu sync.Mutex
	var times []time.Time
	ca.refuse = func(try int, _ *target.Request) error {
		mu.Lock()
		defer mu.Unlock()
		if times = append(times, time.Now()); len(times) <= 7 {
			return &target.Failure{Kind: "overloaded", Detail: "full"}
		}
		return nil
	}
	o := play(t, ca, testMaterial(t, 1, 4), 20*time.Second)
	if o.Served != 1 || o.Refused["overloaded"] != 7 || o.GivenUp != 1 || len(ca.seen) != 2 {
		t.Fatalf("served %d, refused %v, given up %d, %d CSRs", o.Served, o.Refused, o.GivenUp, len(ca.seen))
	}
	for i, want := range []time.Duration{100, 200, 400, 800} { // of the first CSR; ± 10 %
		if got := times[i+1].Sub(times[i]); got < want*9/10*time.Millisecond || got > want*11/10*time.Millisecond {
			t.Errorf("pause %d was %s", i+1, got)
		}
	}
}

func TestWhatIstioDoesNotRepeatIsNotRepeated(t *testing.T) {
	ca := newFakeCA(t, 0)
	ca.refuse = func(int, *target.Request) error { return &target.Failure{Kind: "denied", Detail: "no"} }
	var out *Outcome
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var err error
		if out, err = Run(ctx, Config{Agents: 1, Within: time.Second, For: time.Minute, TryTimeout: time.Second, Target: ca, Material: testMaterial(t, 1, 2)}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%+v, %v", out, err)
		}
	})
	for _, n := range ca.seen {
		if n != 1 {
			t.Errorf("a CSR that was denied came %d times", n)
		}
	}
}

func TestCountFindsWhatWasMadeTwiceOrLost(t *testing.T) {
	ca := newFakeCA(t, 0.5)
	ca.twice = true
	o := play(t, ca, testMaterial(t, 4, 8), 100*time.Second)
	if err := o.Count(t.Context(), ledger{ca: ca}); err != nil {
		t.Fatal(err)
	}
	if o.Duplicates != 1 || o.Lost != 0 || len(o.Failed()) != 1 {
		t.Errorf("%d duplicates, %d lost", o.Duplicates, o.Lost)
	}
	ca.stored = ca.stored[2:] // the one made twice was the first
	if err := o.Count(t.Context(), ledger{ca: ca}); err != nil || o.Duplicates != 0 || o.Lost != 1 {
		t.Errorf("%d duplicates, %d lost, %v", o.Duplicates, o.Lost, err)
	}
	var text strings.Builder
	if err := o.Write(&text); err != nil || !strings.Contains(text.String(), "\nagents=4 served=4 duplicate_renewals=0 herd_peak_ratio_first=") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

func TestAWrongAnswerIsNoCertificate(t *testing.T) {
	ca := newFakeCA(t, 0)
	m := testMaterial(t, 2, 2)
	ca.refuse = func(_ int, r *target.Request) error {
		other, err := m.CSR(0, 1)
		r.CSR.DER = other.der // the certificate will be for this key
		return err
	}
	if o := play(t, ca, m, 10*time.Second); o.Served != 0 || o.Wrong != 2 || len(o.Failed()) == 0 {
		t.Errorf("served %d, wrong %d", o.Served, o.Wrong)
	}
}
