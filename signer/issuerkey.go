package signer

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// IssuerKey is an issuer's key for what is no end entity's certificate: its CRLs and
// the certificates of its OCSP signers. CRLs have numbers of their own in the ledger,
// reserved before they are signed; where the signer issues certificates with the key,
// its epoch counts their signatures too. An OCSP signer's certificate has an epoch of
// its own.
type IssuerKey struct {
	scheme *scheme
	key    ContextSigner
	token  Token
	seat   *seat // nil where the key issues nothing here
}

// IssuerKey finds the key of any generation of an issuer, active or retired, in a
// token that is ready. It fails where the issuer's certificate may not sign CRLs. It is
// Unavailable while no such token is open.
func (s *Signer) IssuerKey(ctx context.Context, issuer ledger.Issuer) (*IssuerKey, error) {
	cert, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return nil, fmt.Errorf("parsing the certificate of issuer %s: %w", issuer.Name, err)
	}
	if cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return nil, fmt.Errorf("the certificate of issuer %s lacks the key usage cRLSign", issuer.Name)
	}
	scheme, err := newScheme(cert.PublicKey, x509.UnknownSignatureAlgorithm)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, t := range s.openTokens() {
		if !t.Ready() {
			continue
		}
		key, err := t.Key(ctx, issuer.KeyURI, cert.PublicKey)
		if err == nil {
			return &IssuerKey{scheme, key, t, s.seatOf(issuer.ID, t)}, nil
		}
		errs = append(errs, err)
	}
	return nil, problem.Down("hsm", time.Second, fmt.Errorf("%w: %w", errNoSeat, errors.Join(errs...)))
}

// seatOf returns the seat of an issuer in a token, or nil.
func (s *Signer) seatOf(issuer int32, t Token) *seat {
	s.mu.Lock()
	l := s.lines[issuer]
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	for _, seat := range l.allSeats() {
		if seat.token == t {
			return seat
		}
	}
	return nil
}

// Algorithm is the AlgorithmIdentifier of the signatures, as DER.
func (k *IssuerKey) Algorithm() []byte { return k.scheme.identifier }

// Hash is what Sign takes the digest of; 0 means that it takes the message itself.
func (k *IssuerKey) Hash() crypto.Hash { return k.scheme.options.HashFunc() }

// TokenSerial names the token in epoch rows.
func (k *IssuerKey) TokenSerial() string { return k.token.Serial() }

// Sign signs and verifies the signature. A token that signed wrongly is taken out of
// service, as it is for a certificate.
func (k *IssuerKey) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	signature, err := k.key.SignContext(ctx, digest, k.scheme.options)
	if err != nil {
		return nil, fmt.Errorf("signing in token %s: %w", k.token.Serial(), err)
	}
	if k.seat != nil {
		k.seat.hand.signedCRL()
	}
	if err := k.scheme.verify(digest, signature); err != nil {
		k.token.Condemn(err)
		return nil, fmt.Errorf("signing in token %s: %w", k.token.Serial(), err)
	}
	return signature, nil
}

// Profiles returns the profiles that the signer works by, nil before it serves.
func (s *Signer) Profiles() *profile.Set {
	if !s.serving.Load() {
		return nil
	}
	return s.profiles
}
