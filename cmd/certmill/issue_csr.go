package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// maxInput bounds what is read from a file or standard input, in bytes.
const maxInput = 1 << 20

// requestNames are the names of a CSR that we make.
type requestNames struct {
	commonName          string
	dns, ip, uri, email []string
}

// first returns the first name in a form that can be a file's name; "" without any.
func (n *requestNames) first() string {
	for _, list := range [][]string{n.dns, {n.commonName}, n.ip, n.uri, n.email} {
		if len(list) > 0 && list[0] != "" {
			return strings.Trim(strings.NewReplacer("/", "-", ":", "-", "*", "wildcard", " ", "-").Replace(list[0]), ".-")
		}
	}
	return ""
}

// newKeyAndCSR returns a new private key (PKCS #8) and its CSR, both in PEM.
func (n *requestNames) newKeyAndCSR(keyType string) (key, csr []byte, err error) {
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: n.commonName}, DNSNames: n.dns, EmailAddresses: n.email,
	}
	for _, s := range n.ip {
		ip := net.ParseIP(s)
		if ip == nil {
			return nil, nil, fmt.Errorf("--ip %s is not an IP address", s)
		}
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	for _, s := range n.uri {
		u, err := url.Parse(s)
		if err != nil {
			return nil, nil, fmt.Errorf("--uri %s: %w", s, err)
		}
		template.URIs = append(template.URIs, u)
	}
	signer, err := newKey(keyType)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("making the CSR: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func newKey(keyType string) (crypto.Signer, error) {
	switch keyType {
	case "ecdsa-p256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa-2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa-3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "rsa-4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return nil, fmt.Errorf("--key-type %s is none of ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096, ed25519", keyType)
	}
}

// readInput reads a file, or standard input for "-".
func readInput(c *cobra.Command, path string) ([]byte, error) {
	from := c.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usageError{err}
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxInput+1))
	if err == nil && len(data) > maxInput {
		err = usage("%s has more than %d bytes", path, maxInput)
	}
	return data, err
}
