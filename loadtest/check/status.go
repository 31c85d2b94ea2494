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

// newStatus waits until the new certificate's status is good. If it is not in time, that
// is wrong; that no answer came at last is not.
func (c *Checker) newStatus(leaf, issuer *x509.Certificate) (wrong, unmade error) {
	if c.cfg.Status == nil {
		return nil, nil
	}
	if issuer == nil {
		return nil, errors.New("the answer holds no issuer to ask for the OCSP status of")
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.StatusWithin)
	defer cancel()
	for {
		der, err := c.cfg.Status(ctx, leaf.SerialNumber, issuer)
		switch {
		case err == nil:
			if wrong, unmade = goodStatus(der, leaf.SerialNumber, issuer, c.cfg.Now()), nil; wrong == nil {
				return nil, nil
			}
		case ctx.Err() == nil || wrong == nil: // not only cut short after an answer
			wrong, unmade = nil, err
		}
		select {
		case <-ctx.Done():
			switch {
			case c.ctx.Err() != nil:
				return nil, c.ctx.Err()
			case wrong != nil:
				return fmt.Errorf("no good OCSP status within %s: %w", c.cfg.StatusWithin, wrong), nil
			}
			return nil, fmt.Errorf("no OCSP answer within %s: %w", c.cfg.StatusWithin, unmade)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// status checks an OCSP target's answer.
func (c *Checker) status(i item) error {
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
