package staple

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// maxChainBytes bounds the files that are read.
const maxChainBytes = 1 << 20

// material is a certificate with its issuer, as the files had them.
type material struct {
	leaf, issuer *x509.Certificate
	responder    string
	// digest is that of the files, to see that they have changed.
	digest [sha256.Size]byte
}

// read reads the certificate and finds its issuer by the signature.
func (c *Certificate) read() (*material, error) {
	text, err := readBounded(c.Chain, maxChainBytes)
	if err != nil {
		return nil, err
	}
	certs, err := certificates(c.Chain, text)
	if err != nil {
		return nil, err
	}
	m := &material{leaf: certs[0], responder: c.Responder}
	candidates := certs[1:]
	if c.Issuer != "" {
		more, err := readBounded(c.Issuer, maxChainBytes)
		if err != nil {
			return nil, err
		}
		if candidates, err = certificates(c.Issuer, more); err != nil {
			return nil, err
		}
		text = append(append(text, 0), more...)
	}
	m.digest = sha256.Sum256(text)
	for _, i := range candidates {
		if bytes.Equal(i.RawSubject, m.leaf.RawIssuer) && m.leaf.CheckSignatureFrom(i) == nil {
			m.issuer = i
			break
		}
	}
	if m.issuer == nil {
		return nil, fmt.Errorf("%s: its issuer, %s, is not among the certificates given; set issuer", c.Chain, m.leaf.Issuer)
	}
	if m.responder == "" {
		if len(m.leaf.OCSPServer) == 0 {
			return nil, fmt.Errorf("%s names no OCSP responder; set responder", c.Chain)
		}
		m.responder = m.leaf.OCSPServer[0]
	}
	return m, nil
}

func certificates(path string, text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return out, nil
}

var errTooLarge = errors.New("the file is too large")

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: %w", path, errTooLarge)
	}
	return os.ReadFile(path)
}
