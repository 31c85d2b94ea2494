package profile

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"time"
)

// maxCross bounds the cross-certificates of a profile.
const maxCross = 16

func (p *Profile) compileCross(f *faults) {
	const key = "cross_certificates"
	rest := []byte(p.CrossCertificates)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case block.Type != "CERTIFICATE":
			f.add(key, "it holds a block %q", block.Type)
		case err != nil:
			f.addErr(key, err)
		case !cert.BasicConstraintsValid || !cert.IsCA:
			f.add(key, "%s is not a CA's", cert.Subject)
		case bytes.Equal(cert.RawSubject, cert.RawIssuer):
			f.add(key, "%s is a root; roots are not delivered", cert.Subject)
		default:
			p.cross = append(p.cross, cert)
		}
	}
	if strings.TrimSpace(string(rest)) != "" {
		f.add(key, "it holds something that is no PEM block")
	}
	if len(p.cross) > maxCross {
		f.add(key, "%d certificates; at most %d are allowed", len(p.cross), maxCross)
	}
}

// CrossFor returns the cross-certificates for the keys of a chain, as DER, that have not
// expired.
func (p *Profile) CrossFor(chain []*x509.Certificate, now time.Time) (ders [][]byte) {
	for _, x := range p.cross {
		for _, c := range chain {
			if now.Before(x.NotAfter) && bytes.Equal(x.RawSubject, c.RawSubject) && bytes.Equal(x.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) {
				ders = append(ders, x.Raw)
			}
		}
	}
	return ders
}
