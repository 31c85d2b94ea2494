package staple

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // RFC 6960: it names keys and issuers here
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

// skew is by how much clocks may differ.
const skew = 5 * time.Minute

// Staple is an answer that has been verified for its certificate.
type Staple struct {
	DER                    []byte
	Revoked                bool
	ThisUpdate, NextUpdate time.Time
}

// errExpired says that an answer was valid once.
var errExpired = errors.New("the answer has expired")

// verify judges an answer as a careful client does: the CertID is this certificate's,
// the signature is the issuer's or that of a valid delegate (RFC 6960 section 4.2.2.2),
// it is valid now, and HAProxy, nginx and Go take it for a staple: one single response,
// by SHA-1.
func verify(der []byte, m *material, now time.Time) (*Staple, error) {
	r, err := ocsp.ParseResponse(der, m.issuer) // refuses two single responses
	if err != nil {
		return nil, err
	}
	if err := checkID(r.TBSResponseData, m); err != nil {
		return nil, err
	}
	if err := checkDelegate(r.Certificate, m.issuer, now); err != nil {
		return nil, err
	}
	s := &Staple{DER: der, Revoked: r.Status == ocsp.Revoked, ThisUpdate: r.ThisUpdate, NextUpdate: r.NextUpdate}
	switch {
	case r.Status == ocsp.Unknown:
		return nil, errors.New("the responder does not know the certificate")
	case r.NextUpdate.IsZero():
		return nil, errors.New("the answer has no nextUpdate")
	case r.ThisUpdate.After(now.Add(skew)):
		return nil, fmt.Errorf("the answer is valid from %s on", r.ThisUpdate.Format(time.RFC3339))
	case !now.Before(r.NextUpdate):
		return s, fmt.Errorf("%w at %s", errExpired, r.NextUpdate.Format(time.RFC3339))
	}
	return s, nil
}

// responseData is a ResponseData down to the CertIDs, which x/crypto does not compare.
type responseData struct {
	Version   int `asn1:"optional,default:0,explicit,tag:0"`
	Responder asn1.RawValue
	Produced  time.Time `asn1:"generalized"`
	Responses []struct {
		ID   certID
		Rest asn1.RawValue
		This time.Time     `asn1:"generalized"`
		Next asn1.RawValue `asn1:"optional,explicit,tag:0"`
		Ext  asn1.RawValue `asn1:"optional,explicit,tag:1"`
	}
	Extensions asn1.RawValue `asn1:"optional,explicit,tag:1"`
}

type certID struct {
	Hash              pkix.AlgorithmIdentifier
	NameHash, KeyHash []byte
	Serial            *big.Int
}

var oidSHA1 = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}

func checkID(tbs []byte, m *material) error {
	var data responseData
	if _, err := asn1.Unmarshal(tbs, &data); err != nil {
		return fmt.Errorf("reading the answer's CertID: %w", err)
	}
	if n := len(data.Responses); n != 1 {
		return fmt.Errorf("the answer holds %d single responses", n)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(m.issuer.RawSubjectPublicKeyInfo, &spki); err != nil {
		return fmt.Errorf("the issuer's key: %w", err)
	}
	id := data.Responses[0].ID
	name, key := sha1.Sum(m.issuer.RawSubject), sha1.Sum(spki.Key.RightAlign())
	switch {
	case !id.Hash.Algorithm.Equal(oidSHA1):
		return errors.New("the answer's CertID is not by SHA-1, which HAProxy and nginx refuse in a staple")
	case !bytes.Equal(id.NameHash, name[:]) || !bytes.Equal(id.KeyHash, key[:]):
		return errors.New("the answer is for another issuer")
	case id.Serial.Cmp(m.leaf.SerialNumber) != 0:
		return errors.New("the answer is for another certificate")
	}
	return nil
}

// checkDelegate: that the issuer signed the delegate, ocsp.ParseResponse has checked.
// Without the key usage any certificate of the issuer could speak for it.
func checkDelegate(c, issuer *x509.Certificate, now time.Time) error {
	if c == nil || bytes.Equal(c.Raw, issuer.Raw) {
		return nil
	}
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return errors.New("the answer is signed by a certificate that is not for OCSP")
	}
	if now.Before(c.NotBefore.Add(-skew)) || now.After(c.NotAfter) {
		return fmt.Errorf("the certificate that signs the answer is valid from %s to %s", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// better reports whether an answer may take the place of one for the same certificate.
// A cache on the way can give an old one; a revoked certificate stays revoked.
func better(s, before *Staple) error {
	switch {
	case before == nil || s.Revoked && !before.Revoked:
		return nil
	case before.Revoked && !s.Revoked:
		return errors.New("the answer says good, and an earlier one says revoked")
	case s.ThisUpdate.Before(before.ThisUpdate):
		return errors.New("the answer is older than the one that is there")
	}
	return nil
}
