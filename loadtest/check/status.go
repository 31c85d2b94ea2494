package check

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/ocsp"
)

// newStatus waits until the new certificate's status is good.
func (c *Checker) newStatus(leaf, issuer *x509.Certificate) error {
	if c.cfg.Status == nil {
		return nil
	}
	if issuer == nil {
		return errors.New("the answer holds no issuer to ask for the OCSP status of")
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.StatusWithin)
	defer cancel()
	for {
		der, err := c.cfg.Status(ctx, leaf.SerialNumber, issuer)
		if err == nil {
			err = goodStatus(der, leaf.SerialNumber, issuer, c.cfg.Now())
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no good OCSP status within %s: %w", c.cfg.StatusWithin, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// status checks an OCSP target's answer.
func (c *Checker) status(i item) error {
	if !i.full {
		return nil
	}
	return goodStatus(i.answer.OCSP, i.request.Status.Serial, c.cfg.Issuer, i.at)
}

func goodStatus(der []byte, serial *big.Int, issuer *x509.Certificate, now time.Time) error {
	res, err := ocsp.ParseResponse(der, issuer)
	switch {
	case err != nil:
		return fmt.Errorf("the OCSP answer: %w", err)
	case res.SerialNumber.Cmp(serial) != 0:
		return fmt.Errorf("the OCSP answer is for serial %x, not %x", res.SerialNumber, serial)
	case res.Status != ocsp.Good:
		return fmt.Errorf("the OCSP status of %x is not good but %d", serial, res.Status)
	case now.Before(res.ThisUpdate) || (!res.NextUpdate.IsZero() && !now.Before(res.NextUpdate)):
		return fmt.Errorf("the OCSP answer is valid from %s to %s, which is not now", res.ThisUpdate.Format(time.RFC3339), res.NextUpdate.Format(time.RFC3339))
	}
	return nil
}
