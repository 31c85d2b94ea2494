package signer

import (
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
)

// template is an issuer and a profile compiled: the parts of the TBSCertificate that do
// not change from one certificate to the next, as DER. It is immutable.
type template struct {
	profile *profile.Profile
	// algorithm is the AlgorithmIdentifier, which stands in the TBSCertificate and
	// again beside the signature.
	algorithm []byte
	// issuer is the issuer's subject, byte for byte: relying parties compare names as bytes.
	issuer []byte
	// extensions are those of fixedExtensions.
	extensions []byte
	// revocation is what the ledger notes of the profile's revocation services.
	revocation uint8
	lint       *linter
}

func newTemplate(issuer *x509.Certificate, p *profile.Profile, s *scheme) (*template, error) {
	extensions, err := fixedExtensions(issuer.SubjectKeyId, p)
	if err != nil {
		return nil, fmt.Errorf("profile %s: extensions: %w", p.Name, err)
	}
	t := &template{profile: p, algorithm: s.identifier, issuer: issuer.RawSubject, extensions: extensions}
	if p.HasOCSP() {
		t.revocation |= ledger.RevocationOCSP
	}
	if p.HasCRL() {
		t.revocation |= ledger.RevocationCRL
	}
	if t.lint, err = newLinter(p); err != nil {
		return nil, fmt.Errorf("profile %s: lint: %w", p.Name, err)
	}
	return t, nil
}

// assemble returns the Certificate: the TBSCertificate, the algorithm and the signature
// (RFC 5280 section 4.1).
func (t *template) assemble(tbs, signature []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(t.algorithm)+len(signature)+16))
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(t.algorithm)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}
