package check

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// certificate checks an answer that holds a certificate.
func (c *Checker) certificate(i item, chain [][]byte) error {
	if len(chain) == 0 {
		return errors.New("no certificate in the answer")
	}
	serial, err := Serial(chain[0])
	if err != nil {
		return err
	}
	if c.serials.Add(serial) {
		return fmt.Errorf("serial %x was in an earlier answer of this run", serial)
	}
	if !i.full {
		return nil
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("the certificate cannot be parsed: %w", err)
	}
	issuer, chainErr := c.chains.verify(leaf, chain[1:], i.at)
	return errors.Join(c.key(leaf, i), c.names(leaf, i), c.lifetime(leaf, i.at), chainErr, c.row(leaf), c.newStatus(leaf, issuer))
}

func (c *Checker) key(leaf *x509.Certificate, i item) error {
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, i.request.CSR.SPKI) {
		return errors.New("the key is not the one of the CSR")
	}
	return nil
}

func (c *Checker) names(leaf *x509.Certificate, i item) error {
	if c.cfg.AnyNames {
		return nil
	}
	want := slices.Clone(c.cfg.Names)
	if len(want) == 0 {
		want = append(append(want, i.request.CSR.DNSNames...), i.request.CSR.URIs...)
	}
	got := slices.Clone(leaf.DNSNames)
	for _, u := range leaf.URIs {
		got = append(got, u.String())
	}
	for _, ip := range leaf.IPAddresses {
		got = append(got, ip.String())
	}
	got = append(got, leaf.EmailAddresses...)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("the names are %s, not %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
	return nil
}

func (c *Checker) lifetime(leaf *x509.Certificate, at time.Time) error {
	if at.Before(leaf.NotBefore) || !at.Before(leaf.NotAfter) {
		return fmt.Errorf("valid from %s to %s, which is not now (%s)", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), at.Format(time.RFC3339))
	}
	if c.cfg.Lifetime == 0 {
		return nil
	}
	const slack = time.Minute // the request's own time, and whole seconds
	got := leaf.NotAfter.Sub(at)
	least := time.Duration(float64(c.cfg.Lifetime) * (1 - c.cfg.LifetimeLess))
	if got < least-slack || got > c.cfg.Lifetime+slack {
		return fmt.Errorf("lives for %s, not %s", got.Round(time.Second), c.cfg.Lifetime)
	}
	return nil
}

func (c *Checker) row(leaf *x509.Certificate) error {
	if c.cfg.Row == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	der, err := c.cfg.Row(ctx, leaf.SerialNumber)
	if err != nil {
		return fmt.Errorf("looking for it in the ledger: %w", err)
	}
	if !bytes.Equal(der, leaf.Raw) {
		return errors.New("the ledger holds another certificate under this serial")
	}
	return nil
}
