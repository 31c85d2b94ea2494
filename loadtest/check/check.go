// Package check looks at what a service under load has answered. A wrong answer is
// worse than a slow one: it fails the run by itself.
//
// Every certificate is looked at for being one and for its serial, which must be
// unique. A stated share is checked in full: chain, key, names, lifetime, and where
// asked for the ledger's row and the OCSP answer. Checks run beside the measured
// requests, after their clock has stopped, and never drop one: when they fall behind,
// callers wait, and the report shows it as the generator's limit.
package check

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/loadtest/target"
)

// Config says what to check.
type Config struct {
	// Share of the answers is checked in full, 0 to 1.
	Share float64
	// Roots are the anchors of the chain; nil leaves the chain out, which is stated.
	Roots *x509.CertPool
	// Lifetime is notAfter - now as asked for; 0 leaves it out. LifetimeLess is the share
	// by which it may be shorter (a CA's jitter); it may never be longer by more than a
	// minute.
	Lifetime     time.Duration
	LifetimeLess float64
	// Names are expected in place of the CSR's, for CAs that take them from the caller.
	Names []string
	// AnyNames leaves the names out.
	AnyNames bool
	// Row looks the certificate up where it should be stored; nil leaves it out.
	Row func(ctx context.Context, serial *big.Int) (der []byte, err error)
	// Status fetches the OCSP answer of a new certificate; nil leaves it out. It is asked
	// again until it is good or StatusWithin has passed.
	Status       func(ctx context.Context, serial *big.Int, issuer *x509.Certificate) ([]byte, error)
	StatusWithin time.Duration
	// Issuer is whose OCSP answers are checked, for OCSP targets.
	Issuer *x509.Certificate
	// Now is time.Now when nil.
	Now func() time.Time
}

const (
	workers  = 2
	waiting  = 256
	maxWrong = 20
)

// Checker checks answers. It is safe for concurrent use.
type Checker struct {
	cfg     Config
	work    chan item
	done    sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
	serials *SerialSet

	mu      sync.Mutex
	seen    int64
	offered float64
	summary Summary
}

type item struct {
	request *target.Request
	answer  target.Answer
	full    bool
	at      time.Time
}

// Summary is what checking found.
type Summary struct {
	// Seen is how many answers were looked at for their serial (certificates) or status
	// (OCSP); Checked how many of them in full.
	Seen    int64   `json:"seen"`
	Checked int64   `json:"checked"`
	Share   float64 `json:"share"`
	// What lists what a full check covered.
	What []string `json:"what"`
	// Wrong is how many answers were wrong; Examples are the first of them.
	Wrong    int64   `json:"wrong"`
	Examples []Wrong `json:"examples,omitempty"`
	// Serials says how uniqueness was checked.
	Serials string `json:"serials,omitempty"`
}

// Wrong is one wrong answer.
type Wrong struct {
	Request string `json:"request"`
	Why     string `json:"why"`
	// Evidence is the answer in PEM.
	Evidence string `json:"evidence,omitempty"`
}

// New starts a checker; Close ends it.
func New(cfg Config) *Checker {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Checker{cfg: cfg, work: make(chan item, waiting), serials: NewSerialSet()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for range workers {
		c.done.Go(func() {
			for i := range c.work {
				c.look(i)
			}
		})
	}
	return c
}

// Offer hands an answer over. It waits when the checks have fallen behind.
func (c *Checker) Offer(r *target.Request, a target.Answer) {
	c.mu.Lock()
	// Bresenham's way of picking a share: evenly, without chance.
	c.offered += c.cfg.Share
	full := c.offered >= 1
	if full {
		c.offered--
	}
	c.mu.Unlock()
	c.work <- item{r, a, full, c.cfg.Now()}
}

// Close waits for the checks under way and returns what was found. Nothing may be
// offered any more.
func (c *Checker) Close() Summary {
	close(c.work)
	c.done.Wait()
	c.cancel()
	return c.Summary()
}

// Summary returns what was found so far.
func (c *Checker) Summary() Summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.summary
	s.Examples = slices.Clone(s.Examples)
	s.Share = c.cfg.Share
	s.What = c.cfg.what()
	if c.cfg.Issuer == nil {
		s.Serials = c.serials.String()
	}
	return s
}

func (c Config) what() []string {
	if c.Issuer != nil {
		return []string{"status good", "serial", "validity", "signature"}
	}
	w := []string{"key"}
	if !c.AnyNames {
		w = append(w, "names")
	}
	if c.Roots != nil {
		w = append(w, "chain")
	}
	if c.Lifetime > 0 {
		w = append(w, "lifetime")
	}
	if c.Row != nil {
		w = append(w, "ledger row")
	}
	if c.Status != nil {
		w = append(w, "OCSP answer")
	}
	return w
}

func (c *Checker) look(i item) {
	var err error
	var evidence []byte
	if c.cfg.Issuer != nil {
		err = c.status(i)
		evidence = pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: i.answer.OCSP})
	} else {
		chain := i.answer.DER
		if chain == nil {
			chain = decode(i.answer.PEM)
		}
		if len(chain) > 0 {
			evidence = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]})
		}
		err = c.certificate(i, chain)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.summary.Seen++
	if i.full {
		c.summary.Checked++
	}
	if err == nil {
		return
	}
	c.summary.Wrong++
	if len(c.summary.Examples) < maxWrong {
		c.summary.Examples = append(c.summary.Examples, Wrong{Request: i.request.ID, Why: err.Error(), Evidence: string(evidence)})
	}
}

func decode(data []byte) [][]byte {
	var out [][]byte
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out
		}
		out = append(out, block.Bytes)
	}
}

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
	issuer, chainErr := c.chain(leaf, chain[1:], i.at)
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

// chain verifies up to a root and returns the issuer, if it is known.
func (c *Checker) chain(leaf *x509.Certificate, rest [][]byte, at time.Time) (issuer *x509.Certificate, err error) {
	pool := x509.NewCertPool()
	for k, der := range rest {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain cannot be parsed: %w", k+2, err)
		}
		if k == 0 {
			issuer = cert
		}
		pool.AddCert(cert)
	}
	if c.cfg.Roots == nil {
		return issuer, nil
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: c.cfg.Roots, Intermediates: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		err = fmt.Errorf("the chain does not verify: %w", err)
	}
	return issuer, err
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
