package ocsp

import (
	"crypto/sha1" //nolint:gosec // RFC 6960: SHA-1 names keys and issuers here, it signs nothing
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/serial"
)

// Issuer is one generation of an issuing key as CertIDs name it.
type Issuer struct {
	ID          int32
	Certificate *x509.Certificate

	ids [Hashes]issuerID
}

// issuerID is the two hashes by which a CertID names an issuer.
type issuerID struct{ name, key string }

// NewIssuer hashes an issuer's name and key with each hash of a CertID.
func NewIssuer(id int32, certificate *x509.Certificate) (*Issuer, error) {
	key, err := keyBits(certificate)
	if err != nil {
		return nil, err
	}
	name1, key1 := sha1.Sum(certificate.RawSubject), sha1.Sum(key)
	name256, key256 := sha256.Sum256(certificate.RawSubject), sha256.Sum256(key)
	return &Issuer{ID: id, Certificate: certificate, ids: [Hashes]issuerID{
		SHA1:   {string(name1[:]), string(key1[:])},
		SHA256: {string(name256[:]), string(key256[:])},
	}}, nil
}

// keyBits returns the content of the subjectPublicKey BIT STRING, without tag, length
// and count of unused bits, which is what RFC 6960 hashes.
func keyBits(c *x509.Certificate) ([]byte, error) {
	in := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	var spki cryptobyte.String
	var bits []byte
	if !in.ReadASN1(&spki, asn1.SEQUENCE) || !spki.SkipASN1(asn1.SEQUENCE) || !spki.ReadASN1BitStringAsBytes(&bits) {
		return nil, fmt.Errorf("certificate %s: no public key in it", c.Subject)
	}
	return bits, nil
}

// Shared is what all answers have in common and Redis holds once: issuers, OCSP
// signers, and which epoch of serials belongs to which issuer.
type Shared struct {
	// Issuers and Signers hold certificates in DER by their ids in the ledger.
	Issuers map[int32][]byte
	Signers map[int32]SharedSigner
	// Epochs maps the epoch in a serial to the issuer of its certificates.
	Epochs map[uint32]int32
	// Complete is set once everything in the ledger has an answer in Redis. Without it
	// a missing record may still come, and the responder says tryLater for it.
	Complete bool
}

// SharedSigner is a delegated OCSP signer of an issuer.
type SharedSigner struct {
	Issuer int32
	DER    []byte
}

// Directory is Shared made ready for use: parsed, checked, hashed. It is immutable
// and safe for concurrent use.
type Directory struct {
	issuers   map[int32]*Issuer
	byID      map[issuerID]*Issuer
	templates map[int32]*Template // by signer
	epochs    map[uint32]int32
	complete  bool
}

// NewDirectory parses and checks s. What is broken is left out and named in the
// error; the directory holds all the rest.
func NewDirectory(s *Shared) (*Directory, error) {
	d := &Directory{
		issuers: map[int32]*Issuer{}, byID: map[issuerID]*Issuer{}, templates: map[int32]*Template{},
		epochs: s.Epochs, complete: s.Complete,
	}
	var errs []error
	for id, der := range s.Issuers {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			errs = append(errs, fmt.Errorf("issuer %d: %w", id, err))
			continue
		}
		issuer, err := NewIssuer(id, certificate)
		if err != nil {
			errs = append(errs, fmt.Errorf("issuer %d: %w", id, err))
			continue
		}
		d.issuers[id] = issuer
		for _, name := range issuer.ids {
			d.byID[name] = issuer
		}
	}
	for id, signer := range s.Signers {
		if err := d.addSigner(id, signer); err != nil {
			errs = append(errs, fmt.Errorf("OCSP signer %d: %w", id, err))
		}
	}
	return d, errors.Join(errs...)
}

func (d *Directory) addSigner(id int32, s SharedSigner) error {
	issuer := d.issuers[s.Issuer]
	if issuer == nil {
		return fmt.Errorf("its issuer %d is not known", s.Issuer)
	}
	certificate, err := x509.ParseCertificate(s.DER)
	if err != nil {
		return err
	}
	t, err := NewTemplate(id, issuer, certificate)
	if err != nil {
		return err
	}
	d.templates[id] = t
	return nil
}

// find returns the serial that id means, if one of our issuers can have issued it:
// both hashes are the issuer's, the serial has our form, and its epoch is one of that
// issuer's. Redis is asked for no other.
//
// Several generations of one issuer have keys of their own, so the hashes of one
// CertID name one of them.
func (d *Directory) find(id *CertID) (serial.Number, bool) {
	if id.Hash >= Hashes {
		return serial.Number{}, false
	}
	issuer := d.byID[issuerID{string(id.NameHash), string(id.KeyHash)}]
	if issuer == nil || len(id.NameHash) != len(issuer.ids[id.Hash].name) {
		return serial.Number{}, false
	}
	n, err := serial.FromBytes(id.Serial)
	if err != nil {
		return serial.Number{}, false
	}
	of, known := d.epochs[n.Epoch()]
	return n, known && of == issuer.ID
}

// Template returns the template of an OCSP signer, or nil.
func (d *Directory) Template(signer int32) *Template { return d.templates[signer] }
