package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestEveryIssuerAlgorithmVerifiesEverywhere(t *testing.T) {
	rsaKey := newRSAKey(t)
	for _, c := range []struct {
		key       crypto.Signer
		algorithm x509.SignatureAlgorithm // as configured
		want      x509.SignatureAlgorithm
	}{
		{fixedKey(t, "issuing"), x509.UnknownSignatureAlgorithm, x509.ECDSAWithSHA256},
		{newP384Key(t), x509.UnknownSignatureAlgorithm, x509.ECDSAWithSHA384},
		{newEd25519Key(t), x509.UnknownSignatureAlgorithm, x509.PureEd25519},
		{rsaKey, x509.UnknownSignatureAlgorithm, x509.SHA256WithRSA},
		{rsaKey, x509.SHA256WithRSAPSS, x509.SHA256WithRSAPSS},
	} {
		t.Run(c.want.String(), func(t *testing.T) {
			ca := newIssuingCAAt(t, c.key, time.Now())
			p := ca.preparer(t, func(p *PreparerConfig) { p.SignatureAlgorithm, p.Profiles = c.algorithm, oneProfile(t, nil) })
			_, cert := ca.issue(t, p, asking(t, nil))
			if cert.SignatureAlgorithm != c.want {
				t.Errorf("signed with %s", cert.SignatureAlgorithm)
			}
			verifyEverywhere(t, ca, cert)
		})
	}
}

// brokenSigner changes what the key signs or what comes back.
type brokenSigner struct {
	ContextSigner
	digest, signature func([]byte) []byte
}

func (b brokenSigner) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if b.digest != nil {
		digest = b.digest(slices.Clone(digest))
	}
	s, err := b.ContextSigner.SignContext(ctx, digest, opts)
	if err == nil && b.signature != nil {
		s = b.signature(s)
	}
	return s, err
}

func flip(b []byte) []byte { b[len(b)-1] ^= 1; return b }

func TestABadSignatureNeverBecomesACertificate(t *testing.T) {
	rsaKey := newRSAKey(t)
	for name, c := range map[string]struct {
		key, other crypto.Signer
		algorithm  x509.SignatureAlgorithm
	}{
		"ECDSA":   {fixedKey(t, "issuing"), fixedKey(t, "other"), 0},
		"Ed25519": {newEd25519Key(t), newEd25519Key(t), 0},
		"RSA":     {rsaKey, newRSAKey(t), 0},
		"PSS":     {rsaKey, newRSAKey(t), x509.SHA256WithRSAPSS},
	} {
		ca := newIssuingCA(t, c.key)
		p := ca.preparer(t, func(p *PreparerConfig) { p.SignatureAlgorithm, p.Profiles = c.algorithm, oneProfile(t, nil) })
		for fault, key := range map[string]ContextSigner{
			"a signature with a bit flipped":  brokenSigner{ContextSigner: ca, signature: flip},
			"a signature over something else": brokenSigner{ContextSigner: ca, digest: flip},
			"an empty signature":              brokenSigner{ContextSigner: ca, signature: func([]byte) []byte { return nil }},
			"another key's signature":         &issuingCA{key: c.other},
		} {
			prepared, err := p.Prepare(asking(t, nil), 5)
			if err != nil {
				t.Fatal(err)
			}
			row, err := prepared.Sign(context.Background(), key)
			if !errors.Is(err, ErrBadSignature) || row.DER != nil {
				t.Errorf("%s, %s: got %v", name, fault, err)
			}
		}
	}
}

func TestSchemesThatDoNotFitAreRefused(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak := &rsa.PublicKey{N: newRSAKey(t).Public().(*rsa.PublicKey).N, E: 65537}
	weak.N.Rsh(weak.N, 1000)
	for name, c := range map[string]struct {
		key       crypto.PublicKey
		algorithm x509.SignatureAlgorithm
	}{
		"P-224":              {p224.Public(), 0},
		"RSA of 1048 bits":   {weak, 0},
		"SHA-1":              {fixedKey(t, "x").Public(), x509.ECDSAWithSHA1},
		"RSA's on an EC key": {fixedKey(t, "x").Public(), x509.SHA256WithRSAPSS},
		"SHA-384 on P-256":   {fixedKey(t, "x").Public(), x509.ECDSAWithSHA384},
		"RSA with SHA-1":     {newRSAKey(t).Public(), x509.SHA1WithRSA},
	} {
		if _, err := newScheme(c.key, c.algorithm); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
