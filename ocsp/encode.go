package ocsp

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RFC 6960: SHA-1 names keys and issuers here, it signs nothing
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/tlv"
)

// Template holds all that the answers of one issuer by one OCSP signer share. It
// writes the ResponseData that the presigner signs and the OCSPResponse that the
// responder sends around the same bytes. A Template is immutable and safe for
// concurrent use.
type Template struct {
	SignerID int32
	Issuer   *Issuer
	Signer   *x509.Certificate

	data       [Hashes][numKinds]dataTemplate
	digest     crypto.Hash // 0 for Ed25519, which signs the message itself
	coordinate int         // octets of an ECDSA coordinate; 0 for other keys
	sigSize    int         // octets of a signature in a Record
	algorithm  []byte      // AlgorithmIdentifier of the signature
	certs      []byte      // the [0] EXPLICIT certs of a BasicOCSPResponse
}

// The ResponseData of one kind has one length, so its fields lie at fixed places.
type dataTemplate struct {
	der                                                 []byte
	produced, serial, thisUpdate, nextUpdate, revokedAt int
}

const (
	kindGood = iota
	kindRevoked
	kindRevokedReason
	numKinds

	timeSize = 15 // YYYYMMDDHHMMSSZ
	// reasonOffset is from revocationTime to revocationReason's octet.
	reasonOffset = timeSize + 4
)

// Placeholders, found again in the encoded template to learn the places.
var (
	markProduced = []byte("<producedAt===>")
	markThis     = []byte("<thisUpdate===>")
	markNext     = []byte("<nextUpdate===>")
	markRevoked  = []byte("<revokedAt====>")
	markSerial   = []byte("<serial number:>")
)

var (
	tagExplicit0 = asn1.Tag(0).ContextSpecific().Constructed()
	tagExplicit1 = asn1.Tag(1).ContextSpecific().Constructed()
	tagExplicit2 = asn1.Tag(2).ContextSpecific().Constructed()

	hashOIDs = [Hashes][]byte{SHA1: oidSHA1, SHA256: oidSHA256}
)

// NewTemplate prepares the answers of a signer whose certificate the issuer signed
// with the extended key usage OCSPSigning (RFC 6960 section 4.2.2.2). The issuer's
// signature is checked here, once.
func NewTemplate(id int32, issuer *Issuer, signer *x509.Certificate) (*Template, error) {
	t := &Template{SignerID: id, Issuer: issuer, Signer: signer}
	if err := t.setAlgorithm(); err != nil {
		return nil, err
	}
	if !bytes.Equal(signer.Raw, issuer.Certificate.Raw) {
		if err := checkDelegate(issuer.Certificate, signer); err != nil {
			return nil, err
		}
		var b cryptobyte.Builder
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(signer.Raw) })
		})
		t.certs = b.BytesOrPanic()
	}
	key, err := keyBits(signer)
	if err != nil {
		return nil, err
	}
	responder := sha1.Sum(key)
	for h := range Hashes {
		for kind := range numKinds {
			t.data[h][kind] = newDataTemplate(responder[:], h, issuer.ids[h], kind)
		}
	}
	return t, nil
}

func checkDelegate(issuer, signer *x509.Certificate) error {
	if err := signer.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("OCSP signer certificate %s: %w", signer.Subject, err)
	}
	for _, usage := range signer.ExtKeyUsage {
		if usage == x509.ExtKeyUsageOCSPSigning {
			return nil
		}
	}
	return fmt.Errorf("OCSP signer certificate %s has no extended key usage OCSPSigning", signer.Subject)
}

func (t *Template) setAlgorithm() error {
	oid, null := []byte(nil), false
	switch key := t.Signer.PublicKey.(type) {
	case *ecdsa.PublicKey:
		t.coordinate = (key.Curve.Params().BitSize + 7) / 8
		t.sigSize = 2 * t.coordinate
		switch t.coordinate {
		case 32:
			t.digest, oid = crypto.SHA256, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02}
		case 48:
			t.digest, oid = crypto.SHA384, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03}
		}
	case *rsa.PublicKey:
		t.sigSize, t.digest, null = key.Size(), crypto.SHA256, true
		oid = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b}
	case ed25519.PublicKey:
		t.sigSize, oid = ed25519.SignatureSize, []byte{0x2b, 0x65, 0x70}
	}
	if oid == nil {
		return fmt.Errorf("OCSP signer certificate %s: keys are ECDSA P-256 or P-384, RSA, or Ed25519", t.Signer.Subject)
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(oid) })
		if null {
			b.AddASN1NULL()
		}
	})
	t.algorithm = b.BytesOrPanic()
	return nil
}

// newDataTemplate encodes a ResponseData (RFC 6960 section 4.2.1): no version (v1 is
// the default), the responder byKey, one SingleResponse, no extensions.
func newDataTemplate(responder []byte, h Hash, id issuerID, kind int) dataTemplate {
	moment := func(mark []byte) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes(mark) })
		}
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tagExplicit2, func(b *cryptobyte.Builder) { b.AddASN1OctetString(responder) })
		moment(markProduced)(b)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addCertID(b, h, id)
				addStatus(b, kind, moment(markRevoked))
				moment(markThis)(b)
				b.AddASN1(tagExplicit0, moment(markNext))
			})
		})
	})
	der := b.BytesOrPanic()
	return dataTemplate{
		der:      der,
		produced: bytes.Index(der, markProduced), serial: bytes.Index(der, markSerial),
		thisUpdate: bytes.Index(der, markThis), nextUpdate: bytes.Index(der, markNext),
		revokedAt: bytes.Index(der, markRevoked),
	}
}

func addCertID(b *cryptobyte.Builder, h Hash, id issuerID) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(hashOIDs[h]) })
			b.AddASN1NULL()
		})
		b.AddASN1OctetString([]byte(id.name))
		b.AddASN1OctetString([]byte(id.key))
		b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(markSerial) })
	})
}

func addStatus(b *cryptobyte.Builder, kind int, revokedAt func(*cryptobyte.Builder)) {
	if kind == kindGood {
		b.AddASN1(asn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
		return
	}
	b.AddASN1(tagExplicit1, func(b *cryptobyte.Builder) { // IMPLICIT RevokedInfo, a SEQUENCE
		revokedAt(b)
		if kind == kindRevokedReason {
			b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.ENUM, func(b *cryptobyte.Builder) { b.AddUint8(0) })
			})
		}
	})
}

// AppendData appends the ResponseData in DER that is signed for this status.
func (t *Template) AppendData(dst []byte, h Hash, n serial.Number, s *Status) []byte {
	d := &t.data[h][s.kind()]
	at := len(dst)
	dst = append(dst, d.der...)
	out := dst[at:]
	copy(out[d.serial:], n[:])
	putTime(out[d.produced:], s.ProducedAt)
	putTime(out[d.thisUpdate:], s.ThisUpdate)
	putTime(out[d.nextUpdate:], s.NextUpdate)
	if s.Revoked {
		putTime(out[d.revokedAt:], s.RevokedAt)
		if s.Reason != 0 {
			out[d.revokedAt+reasonOffset] = s.Reason
		}
	}
	return dst
}

func (s *Status) kind() int {
	switch {
	case !s.Revoked:
		return kindGood
	case s.Reason == 0:
		return kindRevoked
	default:
		return kindRevokedReason
	}
}

// putTime writes a GeneralizedTime of 15 octets.
func putTime(dst []byte, unix int64) {
	t := time.Unix(unix, 0).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	two := func(i, v int) { dst[i], dst[i+1] = byte('0'+v/10%10), byte('0'+v%10) }
	two(0, year/100)
	two(2, year)
	two(4, int(month))
	two(6, day)
	two(8, hour)
	two(10, minute)
	two(12, second)
	dst[14] = 'Z'
}

// SigningInput returns what a signer with this template's key signs for data: its
// digest, or data itself where the returned hash is 0 (Ed25519).
func (t *Template) SigningInput(data []byte) ([]byte, crypto.Hash) {
	if t.digest == 0 {
		return data, 0
	}
	h := t.digest.New()
	h.Write(data)
	return h.Sum(nil), t.digest
}

// CompactSignature turns a signature as crypto.Signer makes it into its form in a
// Record: ECDSA as r ‖ s, others as they are. It checks the form, not the signature.
func (t *Template) CompactSignature(sig []byte) (string, error) {
	if t.coordinate == 0 {
		if len(sig) != t.sigSize {
			return "", fmt.Errorf("a signature of %d octets, not %d", len(sig), t.sigSize)
		}
		return string(sig), nil
	}
	in := cryptobyte.String(sig)
	var seq cryptobyte.String
	var r, s []byte
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() ||
		!seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() ||
		len(r) > t.coordinate || len(s) > t.coordinate {
		return "", errors.New("not an ECDSA signature of this curve")
	}
	out := make([]byte, t.sigSize)
	copy(out[t.coordinate-len(r):], r)
	copy(out[t.sigSize-len(s):], s)
	return string(out), nil
}

// Check verifies a compact signature over the answer that states s.
func (t *Template) Check(h Hash, n serial.Number, s *Status, sig string) error {
	data := t.AppendData(nil, h, n, s)
	full, err := t.appendSignature(nil, sig)
	if err != nil {
		return err
	}
	digest, hash := t.SigningInput(data)
	ok := false
	switch key := t.Signer.PublicKey.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, digest, full)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, hash, digest, full) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, data, full)
	}
	if !ok {
		return fmt.Errorf("the signature over the answer for %s is wrong", n)
	}
	return nil
}

// appendSignature is the way back from CompactSignature.
func (t *Template) appendSignature(dst []byte, sig string) ([]byte, error) {
	if len(sig) != t.sigSize {
		return dst, errRecord
	}
	if t.coordinate == 0 {
		return append(dst, sig...), nil
	}
	r, s := trimInteger(sig[:t.coordinate]), trimInteger(sig[t.coordinate:])
	// Two coordinates of at most 48 octets: every length fits one octet.
	dst = append(dst, byte(asn1.SEQUENCE), byte(integerSize(r)+integerSize(s)))
	return appendInteger(appendInteger(dst, r), s), nil
}

func trimInteger(s string) string {
	for len(s) > 1 && s[0] == 0 {
		s = s[1:]
	}
	return s
}

func integerSize(s string) int { return 2 + len(s) + int(s[0]>>7) }

func appendInteger(dst []byte, s string) []byte {
	dst = append(dst, byte(asn1.INTEGER), byte(len(s)+int(s[0]>>7)))
	if s[0]>>7 != 0 {
		dst = append(dst, 0)
	}
	return append(dst, s...)
}

// oidBasic is the responseType id-pkix-ocsp-basic, encoded.
var oidBasic = []byte{0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01}

// AppendResponse appends the OCSPResponse in DER that rec stands for, in answer to a
// CertID of hash h. It fails where rec holds no signature for h or one that is not of
// this signer's kind. With room in dst it allocates nothing.
func (t *Template) AppendResponse(dst []byte, h Hash, n serial.Number, rec *Record) ([]byte, error) {
	var space [128]byte
	sig, err := t.appendSignature(space[:0], rec.Signatures[h])
	if err != nil {
		return dst, fmt.Errorf("the record of %s: %w", n, err)
	}
	data := len(t.data[h][rec.kind()].der)
	bits := 1 + len(sig) // no unused bits
	basic := data + len(t.algorithm) + tlv.Size(bits) + len(t.certs)
	octets := tlv.Size(basic)
	response := len(oidBasic) + tlv.Size(octets)
	explicit := tlv.Size(response)
	dst = tlv.AppendHead(dst, byte(asn1.SEQUENCE), 3+tlv.Size(explicit))
	dst = append(dst, byte(asn1.ENUM), 1, 0) // successful
	dst = tlv.AppendHead(dst, byte(tagExplicit0), explicit)
	dst = tlv.AppendHead(dst, byte(asn1.SEQUENCE), response)
	dst = append(dst, oidBasic...)
	dst = tlv.AppendHead(dst, byte(asn1.OCTET_STRING), octets)
	dst = tlv.AppendHead(dst, byte(asn1.SEQUENCE), basic)
	dst = t.AppendData(dst, h, n, &rec.Status)
	dst = append(dst, t.algorithm...)
	dst = tlv.AppendHead(dst, byte(asn1.BIT_STRING), bits)
	dst = append(dst, 0)
	dst = append(dst, sig...)
	return append(dst, t.certs...), nil
}

// The error answers of RFC 6960 section 2.3, which are not signed.
var (
	answerMalformed    = []byte{0x30, 0x03, 0x0a, 0x01, 0x01}
	answerTryLater     = []byte{0x30, 0x03, 0x0a, 0x01, 0x03}
	answerUnauthorized = []byte{0x30, 0x03, 0x0a, 0x01, 0x06}
)
