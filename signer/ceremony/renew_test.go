package ceremony

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// pool is a token as a signer's pool shows it, with a clock and an end.
type pool struct {
	token *hsm.Token
	book  *ledger.Ledger

	mu    sync.Mutex
	now   time.Time
	away  bool
	asked int
}

func (p *pool) Now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *pool) advance(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

func (p *pool) setAway(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

var errAway = errors.New("the token is away")

func (p *pool) key(ctx context.Context, issuer ledger.Issuer) (IssuerKey, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.away {
		return nil, errAway
	}
	cert, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return nil, err
	}
	key, err := p.token.KeyFor(ctx, issuer.KeyURI, cert.PublicKey)
	if err != nil {
		return nil, err
	}
	return pooled{tokenKey{key}}, nil
}

type pooled struct{ tokenKey }

func (p pooled) TokenSerial() string { return p.Serial() }
func (p pooled) Hash() crypto.Hash   { return crypto.SHA256 }
func (p pooled) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	return p.sign(ctx, digest, crypto.SHA256)
}

func newPool(t *testing.T) *pool {
	t.Helper()
	where := testenv.SoftHSM(t)
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = where.Module, where.TokenLabel, where.PINFile
	token, err := hsm.Open(t.Context(), cfg, hsm.Deps{})
	noError(t, err)
	t.Cleanup(func() { noError(t, token.Close(context.Background())) })
	db := config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 4}
	noError(t, ledger.Migrate(t.Context(), db))
	book, err := ledger.Open(t.Context(), db, ledger.Deps{})
	noError(t, err)
	t.Cleanup(book.Close)
	return &pool{token: token, book: book, now: time.Now()}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *pool) init(t *testing.T, spec Spec) *Result {
	t.Helper()
	made, err := Init(t.Context(), spec, p.token, p.book, Deps{Now: p.Now})
	noError(t, err)
	return made
}

func (p *pool) renewer(t *testing.T, change ...func(*RenewConfig)) *Renewer {
	t.Helper()
	cfg := DefaultRenewConfig()
	for _, c := range change {
		c(&cfg)
	}
	r, err := NewRenewer(cfg, RenewDeps{Ledger: p.book, Key: p.key, Now: p.Now})
	noError(t, err)
	return r
}

// signers returns the OCSP signers of the ledger.
func (p *pool) signers(t *testing.T) (rows []ledger.OCSPSigner, certs []*x509.Certificate) {
	t.Helper()
	rows, err := p.book.OCSPSigners(t.Context())
	noError(t, err)
	for _, row := range rows {
		cert, err := x509.ParseCertificate(row.DER)
		noError(t, err)
		certs = append(certs, cert)
	}
	return rows, certs
}

// Four months of two signers: at any moment there is an OCSP signer that stays valid for
// longer than answers are, the key never changes, and nothing is made twice.
func TestOCSPSignersRenewThemselvesAheadOfTime(t *testing.T) {
	p := newPool(t)
	ca := p.init(t, DefaultSpec())
	fleet := []*Renewer{p.renewer(t), p.renewer(t)}
	const days = 120
	for range days {
		for _, r := range fleet {
			noError(t, r.look(t.Context()))
		}
		_, certs := p.signers(t)
		newest := certs[len(certs)-1]
		if left := newest.NotAfter.Sub(p.Now()); left < 9*day {
			t.Fatalf("%s are left to the newest of %d", left, len(certs))
		}
		p.advance(day)
	}
	rows, certs := p.signers(t)
	if n := len(certs); n != 1+(days-1)/20 {
		t.Errorf("%d certificates in %d days, want one every 20", n, days)
	}
	for i, cert := range certs {
		noError(t, check(cert, ca.Issuing.Certificate))
		if rows[i].KeyURI != ca.OCSP.Signer.KeyURI || !bytes.Equal(cert.SubjectKeyId, ca.OCSP.Certificate.SubjectKeyId) {
			t.Errorf("certificate %d has another key, %s", i, rows[i].KeyURI)
		}
		if i > 0 && !cert.NotBefore.Before(certs[i-1].NotAfter.Add(-9*day)) {
			t.Errorf("certificate %d begins when the one before has ended, or nearly", i)
		}
	}
	if n := len(certs) - 1; p.asked != n {
		t.Errorf("the issuer's key was asked for %d times, to make %d", p.asked, n)
	}
}

func TestARenewalThatFailsIsTriedAgain(t *testing.T) {
	p := newPool(t)
	p.init(t, DefaultSpec())
	r := p.renewer(t, func(c *RenewConfig) { c.Poll = 10 * time.Millisecond })
	p.setAway(true)
	p.advance(21 * day)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	eventually(t, "it is asked for twice", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.asked > 1
	})
	if _, certs := p.signers(t); len(certs) != 1 {
		t.Errorf("%d certificates without a key", len(certs))
	}
	p.setAway(false)
	eventually(t, "it is renewed", func() bool { _, certs := p.signers(t); return len(certs) == 2 })
	cancel()
	noError(t, <-done)
}

func TestARenewalEndsWithItsIssuer(t *testing.T) {
	p := newPool(t)
	spec := DefaultSpec()
	p.init(t, spec)
	r := p.renewer(t)
	p.advance(spec.Issuing.Lifetime.D() - 5*day)
	for range 3 { // the last one ends with the issuer, and is not made again
		noError(t, r.look(t.Context()))
	}
	_, certs := p.signers(t)
	if len(certs) != 2 {
		t.Errorf("%d certificates", len(certs))
	}
	p.advance(6 * day)
	noError(t, r.look(t.Context()))
	if _, after := p.signers(t); len(after) != len(certs) {
		t.Error("renewed after the issuer's end")
	}
}

// A key in software: made once, kept for its owner alone, renewed without being read.
func TestAnOCSPSignersKeyMayBeAFile(t *testing.T) {
	p := newPool(t)
	spec := DefaultSpec()
	dir := t.TempDir()
	spec.OCSP.KeyFile = filepath.Join(dir, "{issuer}-ocsp.key")
	ca := p.init(t, spec)
	path := filepath.Join(dir, "issuing-ocsp.key")
	if ca.OCSP.Signer.KeyURI != "file:"+path {
		t.Fatalf("the key is %s", ca.OCSP.Signer.KeyURI)
	}
	info, err := os.Stat(path)
	noError(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %s", info.Mode())
	}
	key, err := keyInFile(path, spec.OCSP.KeyAlgorithm)
	noError(t, err)
	digest := bytes.Repeat([]byte{1}, 32)
	sig, err := key.Sign(rand.Reader, digest, crypto.SHA256)
	noError(t, err)
	noError(t, hsm.Verify(ca.OCSP.Certificate.PublicKey, digest, sig, crypto.SHA256))
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// It is the presigners' from now on: a signer needs only what it has certified.
	noError(t, os.Remove(path))
	p.advance(21 * day)
	noError(t, p.renewer(t).look(t.Context()))
	rows, certs := p.signers(t)
	if len(rows) != 2 || rows[1].KeyURI != "file:"+path || !bytes.Equal(certs[1].SubjectKeyId, certs[0].SubjectKeyId) {
		t.Errorf("renewed: %d rows, the last with key %s", len(rows), rows[len(rows)-1].KeyURI)
	}
	spec.OCSP.KeyFile = "relative.key"
	if err := spec.Validate(); err == nil || !strings.Contains(err.Error(), "ocsp.key_file") {
		t.Errorf("a relative path: %v", err)
	}
}

func TestRenewConfigNamesItsMistakes(t *testing.T) {
	noError(t, DefaultRenewConfig().Validate())
	err := RenewConfig{Lifetime: time.Second, RenewBefore: time.Hour, Backdate: -1}.Validate()
	for _, want := range []string{"lifetime", "renew_before", "backdate", "poll"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
