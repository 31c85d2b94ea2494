package dev

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// verify checks the chain in a PEM file against our root, for a server of this name.
func (d *dev) verify(file, name string) error {
	root, err := readCertificate(d.dir.Path("root.pem"))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	var leaf *x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if leaf == nil {
			leaf = cert
		} else {
			between.AddCert(cert)
		}
	}
	if leaf == nil {
		return errors.New("no certificate in the answer")
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err != nil {
		return fmt.Errorf("the chain does not verify: %w", err)
	}
	return nil
}
