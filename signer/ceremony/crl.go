package ceremony

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// CRL is what a CA that only ceremonies use says of the certificates that it has revoked:
// signers make the CRLs of issuing CAs, by themselves.
type CRL struct {
	CA   *CA
	List *x509.RevocationList
}

// crlPage is how many revocations are read from the ledger at once.
const crlPage = 1000

// crl signs a CRL: of what the ledger has as revoked of this CA's certificates, and of
// what the spec lists, which is how a CA's own certificate is revoked. Its number is the
// time in Unix milliseconds, as the numbers of all CRLs here are at least.
func (c *ceremony) crl(ctx context.Context, ca *CA) (*CRL, error) {
	entries, err := c.revoked(ctx, ca)
	if err != nil {
		return nil, err
	}
	now := c.Now().UTC().Truncate(time.Second)
	t := &x509.RevocationList{
		Number: big.NewInt(c.Now().UnixMilli()), RevokedCertificateEntries: entries,
		ThisUpdate: slices.MaxFunc([]time.Time{now.Add(-c.spec.Backdate.D()), ca.Certificate.NotBefore}, time.Time.Compare),
		NextUpdate: slices.MinFunc([]time.Time{now.Add(c.spec.CRL.NextUpdate.D()), ca.Certificate.NotAfter}, time.Time.Compare),
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, ca.Certificate, signer{ctx, ca.key})
	if err != nil {
		return nil, fmt.Errorf("signing the CRL of %q: %w", ca.Issuer.Name, err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("reading back the CRL of %q: %w", ca.Issuer.Name, err)
	}
	if err := list.CheckSignatureFrom(ca.Certificate); err != nil {
		return nil, fmt.Errorf("checking the CRL of %q: %w", ca.Issuer.Name, err)
	}
	c.Log.Info("CRL made", "ca", ca.Issuer.Name, "number", list.Number, "entries", len(entries), "until", list.NextUpdate)
	return &CRL{CA: ca, List: list}, nil
}

// revoked gathers the entries of a CA's CRL, by serial.
func (c *ceremony) revoked(ctx context.Context, ca *CA) ([]x509.RevocationListEntry, error) {
	scope := ledger.CRLScope{Issuer: ca.Issuer.ID, Complete: true, Unexpired: c.Now()}
	scope.First, scope.Last = crldp.Slots(0, 1)
	var err error
	if scope.Sequence, err = c.book.RevocationSequence(ctx); err != nil {
		return nil, fmt.Errorf("reading the revocations: %w", err)
	}
	var entries []x509.RevocationListEntry
	var after serial.Number
	for {
		page, err := c.book.CRLEntries(ctx, scope, after, crlPage, nil)
		if err != nil {
			return nil, fmt.Errorf("reading the revocations: %w", err)
		}
		for _, e := range page {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: e.Serial.Big(), RevocationTime: e.RevokedAt.UTC(), ReasonCode: int(e.Reason)})
		}
		if len(page) < crlPage {
			break
		}
		after = page[len(page)-1].Serial
	}
	for _, r := range c.spec.CRL.Revoked {
		n, err := serial.Parse(r.Serial)
		if err != nil {
			return nil, fmt.Errorf("crl.revoked: %w", err)
		}
		there := func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(n.Big()) == 0 }
		if r.by(c.spec) == ca.Issuer.Name && !slices.ContainsFunc(entries, there) {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: n.Big(), RevocationTime: r.At.UTC().Truncate(time.Second), ReasonCode: crlReasons[r.Reason]})
		}
	}
	slices.SortFunc(entries, func(a, b x509.RevocationListEntry) int { return a.SerialNumber.Cmp(b.SerialNumber) })
	return entries, nil
}

// crlReasons are the reasons for which a CA's certificate can be revoked for good
// (RFC 5280 section 5.3.1).
var crlReasons = map[string]int{
	"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5,
}
