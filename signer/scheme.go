package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/certmill/certmill/internal/fixedkey"
)

// ErrBadSignature says that what came back for a TBSCertificate is not a signature of
// the issuer's key over it. Nothing of it leaves the signer: the token is at fault, or
// the key is not the issuer's.
var ErrBadSignature = errors.New("the signature does not verify with the issuer's key")

// scheme is how an issuer signs. It is immutable.
type scheme struct {
	algorithm x509.SignatureAlgorithm
	// identifier is the AlgorithmIdentifier (RFC 5758, RFC 4055, RFC 8410), as DER.
	identifier []byte
	// options go to the key; with a hash of 0 the key signs the message itself.
	options crypto.SignerOpts
	public  crypto.PublicKey
	fixed   *fixedkey.P256 // where the key is on P-256
}

// signerOptions are what each algorithm of an issuer asks of its key.
var signerOptions = map[x509.SignatureAlgorithm]crypto.SignerOpts{
	x509.ECDSAWithSHA256:  crypto.SHA256,
	x509.ECDSAWithSHA384:  crypto.SHA384,
	x509.PureEd25519:      crypto.Hash(0),
	x509.SHA256WithRSA:    crypto.SHA256,
	x509.SHA256WithRSAPSS: &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256},
}

// newScheme chooses the algorithm by the key, or checks the one given against it.
func newScheme(public crypto.PublicKey, algorithm x509.SignatureAlgorithm) (*scheme, error) {
	s := &scheme{algorithm: algorithm, public: public}
	natural := x509.UnknownSignatureAlgorithm
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			natural = x509.ECDSAWithSHA256
			var err error
			if s.fixed, err = fixedkey.NewP256(k); err != nil {
				return nil, err
			}
		case elliptic.P384():
			natural = x509.ECDSAWithSHA384
		}
	case ed25519.PublicKey:
		natural = x509.PureEd25519
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			natural = x509.SHA256WithRSA
		}
	}
	switch {
	case natural == x509.UnknownSignatureAlgorithm:
		return nil, fmt.Errorf("the issuer's key is neither ECDSA P-256 or P-384, nor Ed25519, nor RSA of 2048 bits or more")
	case algorithm == x509.UnknownSignatureAlgorithm:
		s.algorithm = natural
	case algorithm == x509.SHA256WithRSAPSS && natural == x509.SHA256WithRSA:
	case algorithm != natural:
		return nil, fmt.Errorf("the signature algorithm %s does not belong to the issuer's key; %s does", algorithm, natural)
	}
	return s, s.encode()
}

// encode fills in the identifier and the options.
func (s *scheme) encode() (err error) {
	var oid asn1.ObjectIdentifier
	var parameters []byte
	s.options = signerOptions[s.algorithm]
	switch s.algorithm {
	case x509.ECDSAWithSHA256:
		oid = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	case x509.ECDSAWithSHA384:
		oid = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	case x509.PureEd25519:
		oid = asn1.ObjectIdentifier{1, 3, 101, 112}
	case x509.SHA256WithRSA:
		oid = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
		parameters = asn1.NullBytes
	case x509.SHA256WithRSAPSS:
		oid = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
		parameters, err = pssParameters()
	}
	if err != nil {
		return err
	}
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddBytes(parameters)
	})
	s.identifier, err = b.Bytes()
	return err
}

// pssParameters: SHA-256, MGF1 with SHA-256, a salt of 32 octets (RFC 4055 section 3.1).
func pssParameters() ([]byte, error) {
	explicit := func(n uint8) der.Tag { return der.Tag(n).ContextSpecific().Constructed() }
	sha256 := func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1})
			b.AddASN1NULL()
		})
	}
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(0), sha256)
		b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8})
				sha256(b)
			})
		})
		b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddASN1Int64(32) })
	})
	return b.Bytes()
}

// digest returns what the key signs: the hash of the message, or for Ed25519 itself.
func (s *scheme) digest(message []byte) []byte {
	hash := s.options.HashFunc()
	if hash == 0 {
		return message
	}
	h := hash.New()
	h.Write(message)
	return h.Sum(nil)
}

// verify checks a signature over a digest of this scheme.
func (s *scheme) verify(digest, signature []byte) error {
	valid := false
	switch k := s.public.(type) {
	case *ecdsa.PublicKey:
		if s.fixed != nil {
			valid = s.fixed.Verify(digest, signature)
		} else {
			valid = ecdsa.VerifyASN1(k, digest, signature)
		}
	case ed25519.PublicKey:
		valid = ed25519.Verify(k, digest, signature)
	case *rsa.PublicKey:
		if o, ok := s.options.(*rsa.PSSOptions); ok {
			valid = rsa.VerifyPSS(k, o.Hash, digest, signature, o) == nil
		} else {
			valid = rsa.VerifyPKCS1v15(k, s.options.HashFunc(), digest, signature) == nil
		}
	}
	if !valid {
		return ErrBadSignature
	}
	return nil
}
