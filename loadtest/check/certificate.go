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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/loadtest/target"
)

// serial checks what every answer of an issuer must hold: a certificate with a serial of
// its own.
func (c *Checker) serial(a target.Answer) error {
	if c.cfg.Issuer != nil {
		return nil
	}
	found := chain(a, false)
	if len(found) == 0 {
		return errors.New("no certificate in the answer")
	}
	serial, err := Serial(found[0])
	if err != nil {
		return err
	}
	if c.serials.Add(serial) {
		return fmt.Errorf("serial %x was in an earlier answer of this run", serial)
	}
	return nil
}

// certificate checks the rest of an answer whose serial is right.
func (c *Checker) certificate(i item, chain [][]byte) (wrong, unmade error) {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("the certificate cannot be parsed: %w", err), nil
	}
	issuer, chainErr := c.chains.verify(leaf, chain[1:], i.at)
	noRow, rowUnmade := c.row(leaf)
	notGood, statusUnmade := c.newStatus(leaf, issuer)
	return errors.Join(c.key(leaf, i), c.names(leaf, i), c.lifetime(leaf, i.at), chainErr, noRow, notGood), errors.Join(rowUnmade, statusUnmade)
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

// row looks for the certificate in the ledger. That it is not found is wrong; that the
// ledger could not be asked is not.
func (c *Checker) row(leaf *x509.Certificate) (wrong, unmade error) {
	if c.cfg.Row == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	der, err := c.cfg.Row(ctx, leaf.SerialNumber)
	switch {
	case status.Code(err) == codes.NotFound:
		return fmt.Errorf("looking for it in the ledger: %w", err), nil
	case err != nil:
		return nil, fmt.Errorf("looking for it in the ledger: %w", err)
	case !bytes.Equal(der, leaf.Raw):
		return errors.New("the ledger holds another certificate under this serial"), nil
	}
	return nil, nil
}
