package signer

import (
	"crypto/x509"
	"fmt"

	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/tlv"
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
	// subject holds the attributes that stand in every subject.
	subject []byte
	// extensions are those of fixedExtensions for each shard of the profile's CRLs; one
	// where there are no shards.
	extensions [][]byte
	// revocation is what the ledger notes of the profile's revocation services.
	revocation uint8
	lint       *linter
}

func newTemplate(issuer *x509.Certificate, row ledger.Issuer, p *profile.Profile, s *scheme) (*template, error) {
	t := &template{profile: p, algorithm: s.identifier, issuer: issuer.RawSubject}
	var err error
	if t.subject, err = fixedSubject(p.Subject); err != nil {
		return nil, fmt.Errorf("profile %s: subject: %w", p.Name, err)
	}
	if t.extensions, err = allExtensions(issuer, row, p); err != nil {
		return nil, fmt.Errorf("profile %s: extensions: %w", p.Name, err)
	}
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

func allExtensions(issuer *x509.Certificate, row ledger.Issuer, p *profile.Profile) ([][]byte, error) {
	urls := []string{""}
	if p.HasCRL() {
		point := p.CRLPoint().For(row.Name, row.ID)
		urls = make([]string, point.Shards)
		for i := range urls {
			urls[i] = point.Shard(i)
		}
	}
	all := make([][]byte, len(urls))
	for i, url := range urls {
		var err error
		if all[i], err = fixedExtensions(issuer.SubjectKeyId, p, p.IssuersURLOf(row.Name, row.ID), url); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// extensionsFor returns the fixed extensions of a certificate: its serial chooses the
// CRL, for good.
func (t *template) extensionsFor(number serial.Number) []byte {
	return t.extensions[crldp.Of(number, len(t.extensions))]
}

// assemble returns the Certificate: the TBSCertificate, the algorithm and the signature
// (RFC 5280 section 4.1).
func (t *template) assemble(tbs, signature []byte) []byte {
	size := len(tbs) + len(t.algorithm) + tlv.Size(1+len(signature))
	b := make([]byte, 0, tlv.Size(size))
	b = tlv.AppendHead(b, der.SEQUENCE, size)
	b = append(b, tbs...)
	b = append(b, t.algorithm...)
	b = append(tlv.AppendHead(b, der.BIT_STRING, 1+len(signature)), 0) // no unused bits
	return append(b, signature...)
}
