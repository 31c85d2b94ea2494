// Package csr reads PKCS #10 certification requests (RFC 2986) from strangers.
//
// Parse accepts little and says precisely why it refuses: one request, in DER or one
// PEM block, strict DER, a key type that the service issues for, a signature that
// shows possession of the key, and names in the form in which they may stand in a
// certificate. What it accepts crypto/x509 accepts too, with the same names.
//
// A request only asks. Extensions other than the subject alternative name are read to
// refuse what no profile ever grants (cA, keyCertSign, cRLSign) and then dropped, as
// are the subject's attributes other than the common name: the profile decides on them.
package csr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"net/netip"

	"github.com/certmill/certmill/internal/p256x8"
	"github.com/certmill/certmill/internal/problem"
)

// The bounds of a request. They keep the cost of a hostile one below that of an honest one.
const (
	// MaxBytes bounds the request as sent, PEM armour included.
	MaxBytes = 64 << 10
	// MaxNames bounds the subject alternative names of all kinds together.
	MaxNames = 100
	// MaxCommonName is ub-common-name of RFC 5280 appendix A.1, in characters.
	MaxCommonName = 64

	maxAttributes = 16
	maxExtensions = 32
)

// Request is a checked request. It shares memory with the bytes that it was parsed
// from, so those must not change. It is never modified by this package and safe for
// concurrent reads.
type Request struct {
	// DER is the whole CertificationRequest, and SHA256 its hash.
	DER    []byte
	SHA256 [sha256.Size]byte
	// SPKI is the SubjectPublicKeyInfo in DER; PublicKey is what it holds.
	SPKI      []byte
	PublicKey crypto.PublicKey
	KeyType   KeyType
	// CommonName is the subject's, or empty.
	CommonName string
	// DNSNames are in lower case, without duplicates, as are the other names. A
	// wildcard keeps its "*" label.
	DNSNames    []string
	IPAddresses []netip.Addr
	URIs        []string
	Emails      []string
}

// Parse reads one request and checks its signature, once. Every error is a
// *problem.Error of kind Invalid whose field starts with "csr" and whose rule names
// what was broken. The signature is checked last, so that what is refused is cheap.
func Parse(data []byte) (*Request, error) {
	u, err := Read(data)
	if err != nil {
		return nil, err
	}
	return u.Verify()
}

// Unverified is a request whose signature has not been checked yet: nobody knows whether
// who sent it has the key.
type Unverified struct {
	request *Request
	parts   *parts
	digest  []byte // what is signed
}

// Read is Parse without the check of the signature.
func Read(data []byte) (*Unverified, error) {
	der, err := unwrap(data)
	if err != nil {
		return nil, err
	}
	r, p, err := read(der)
	if err != nil {
		return nil, err
	}
	r.SHA256 = sha256.Sum256(der)
	digest, err := p.digest(r.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Unverified{r, p, digest}, nil
}

// Verify checks the signature.
func (u *Unverified) Verify() (*Request, error) {
	if !u.parts.signed(u.request.PublicKey, u.digest) {
		return nil, problem.Rejected(signatureField, "signature", "the signature does not verify with the request's own key")
	}
	return u.request, nil
}

// Batchable reports whether Proven checks this signature with others in less time than
// Verify does: where it is of P-256 and the processor can work on several.
func (u *Unverified) Batchable() bool {
	return u.request.KeyType == ECDSAP256 && p256x8.Supported()
}

// Proven returns the request of each whose signature is known to be right after a check of
// all of them together, and nil for the others, about which Verify decides.
func Proven(all []*Unverified) []*Request {
	out := make([]*Request, len(all))
	signatures := make([]p256x8.Signature, 0, len(all))
	places := make([]int, 0, len(all))
	for i, u := range all {
		if k, ok := u.request.PublicKey.(*ecdsa.PublicKey); ok {
			signatures = append(signatures, p256x8.Signature{Key: k, Digest: u.digest, Value: u.parts.signature})
			places = append(places, i)
		}
	}
	for k, valid := range p256x8.Valid(signatures) {
		if i := places[k]; valid {
			out[i] = all[i].request
		}
	}
	return out
}

// read is Read for DER, without what the signature is checked against.
func read(der []byte) (*Request, *parts, error) {
	p, err := split(der)
	if err != nil {
		return nil, nil, err
	}
	r := &Request{DER: der, SPKI: p.spki}
	if r.CommonName, err = readSubject(p.subject); err != nil {
		return nil, nil, err
	}
	if err = readAttributes(r, p.attributes); err != nil {
		return nil, nil, err
	}
	if r.PublicKey, r.KeyType, err = ParseKey(p.spki); err != nil {
		return nil, nil, err
	}
	if p.scheme, err = findScheme(p.algorithm); err != nil {
		return nil, nil, err
	}
	return r, p, nil
}
