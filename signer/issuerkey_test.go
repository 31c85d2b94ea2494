package signer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// makeRetired registers a retired generation of the issuer, with this key usage.
func (w *world) makeRetired(usage x509.KeyUsage) ledger.Issuer {
	w.t.Helper()
	ctx := bounded(w.t)
	token, err := hsm.Open(ctx, w.cfg.Tokens[0], hsm.Deps{})
	w.check(err)
	defer func() { w.check(token.Close(ctx)) }()
	key, err := token.Key(ctx, w.issuer.KeyURI)
	w.check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(usage)), Subject: pkix.Name{CommonName: "retired"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: usage, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	issuer := ledger.Issuer{Name: "issuing", State: ledger.IssuerRetired, KeyURI: w.issuer.KeyURI}
	issuer.DER, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	w.check(err)
	issuer.ID, err = w.book.PutIssuer(ctx, issuer)
	w.check(err)
	return issuer
}

func TestTheKeyOfARetiredGenerationSignsItsCRLs(t *testing.T) {
	w := newWorld(t)
	issuer := w.makeRetired(x509.KeyUsageCRLSign)
	other := w.makeRetired(x509.KeyUsageCertSign)
	idle, err := New(w.cfg, Deps{})
	w.check(err)
	if _, err := idle.IssuerKey(t.Context(), issuer); problem.KindOf(err) != problem.Unavailable {
		t.Errorf("without an open token: %v", err)
	}
	s := w.start()
	if s.Profiles() == nil {
		t.Error("a signer at work has no profiles")
	}
	key, err := s.IssuerKey(t.Context(), issuer)
	w.check(err)
	digest := sha256.Sum256([]byte("tbsCertList"))
	signature, err := key.Sign(t.Context(), digest[:])
	w.check(err)
	cert, err := x509.ParseCertificate(issuer.DER)
	w.check(err)
	if err := cert.CheckSignature(x509.ECDSAWithSHA256, []byte("tbsCertList"), signature); err != nil {
		t.Error(err)
	}
	if _, err := s.IssuerKey(t.Context(), other); err == nil {
		t.Error("an issuer without cRLSign gives its key for CRLs")
	}
}

func badSignature(context.Context, ContextSigner, []byte, crypto.SignerOpts) ([]byte, error) {
	return []byte("no signature"), nil
}

func TestATokenThatSignsACRLWronglyIsCondemned(t *testing.T) {
	w := newWorld(t)
	issuer := w.makeRetired(x509.KeyUsageCRLSign)
	token := &fakeToken{sign: badSignature}
	s := w.startWith(func(_ *parts, tokens *[]Token) {
		token.Token = (*tokens)[0]
		*tokens = []Token{token}
	})
	key, err := s.IssuerKey(t.Context(), issuer)
	w.check(err)
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(t.Context(), digest[:]); !errors.Is(err, ErrBadSignature) {
		t.Errorf("a wrong signature: %v", err)
	}
	if token.Ready() {
		t.Error("the token goes on")
	}
}
