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
	"context"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"sync"
	"time"

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
	chains  *chains

	mu      sync.Mutex
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
	c := &Checker{cfg: cfg, work: make(chan item, waiting), serials: NewSerialSet(), chains: newChains(cfg.Roots)}
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
	evidence := pem.Block{Type: "OCSP RESPONSE", Bytes: i.answer.OCSP}
	if c.cfg.Issuer != nil {
		err = c.status(i)
	} else {
		chain := i.answer.DER
		if chain == nil {
			chain = decode(i.answer.PEM, i.full)
		}
		evidence = pem.Block{Type: "CERTIFICATE"}
		if len(chain) > 0 {
			evidence.Bytes = chain[0]
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
		w := Wrong{Request: i.request.ID, Why: err.Error()}
		if len(evidence.Bytes) > 0 {
			w.Evidence = string(pem.EncodeToMemory(&evidence))
		}
		c.summary.Examples = append(c.summary.Examples, w)
	}
}

// decode returns the first certificate, or all of them.
func decode(data []byte, all bool) [][]byte {
	var out [][]byte
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out
		}
		out = append(out, block.Bytes)
		if !all {
			return out
		}
	}
}
