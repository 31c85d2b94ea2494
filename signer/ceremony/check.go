package ceremony

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
)

// check judges a signed certificate as a relying party does.
func check(cert, parent *x509.Certificate) error {
	isRoot := parent.Raw == nil // the template of the certificate itself
	if isRoot {
		parent = cert
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		return fmt.Errorf("checking %s: %w", cert.Subject, err)
	}
	var errs []error
	if cert.NotBefore.Before(parent.NotBefore) || cert.NotAfter.After(parent.NotAfter) {
		errs = append(errs, errors.New("its validity is not within its issuer's"))
	}
	if !isRoot && bytes.Equal(cert.RawSubject, parent.RawSubject) {
		errs = append(errs, errors.New("its subject is its issuer's"))
	}
	if !isRoot && !bytes.Equal(cert.AuthorityKeyId, parent.SubjectKeyId) {
		errs = append(errs, errors.New("its authority key identifier is not its issuer's key identifier"))
	}
	pool := x509.NewCertPool()
	pool.AddCert(parent)
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("checking %s: %w", cert.Subject, err)
	}
	return nil
}
