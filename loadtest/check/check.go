// Package check looks at what a service under load has answered. A wrong answer is
// worse than a slow one: it fails the run by itself.
//
// Every certificate is looked at for being one and for its serial, which must be
// unique. A stated share is checked in full: chain, key, names, lifetime, and where
// asked for the ledger's row and the OCSP answer. Checks run beside the measured
// requests, after their clock has stopped, and nobody waits for them: a full check for
// which there is no room, or no time before the end, is left out and counted. One that
// could not be made, since the ledger or the responder could not be asked, is counted
// apart too: it says nothing about the answer.
package check

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/certmill/certmill/loadtest/engine"
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
	// Row looks the certificate up where it should be stored; nil leaves it out. That there
	// is none is an error with the gRPC code NotFound; others say that it could not look.
	Row func(ctx context.Context, serial *big.Int) (der []byte, err error)
	// Status fetches the OCSP answer of a new certificate; nil leaves it out. It is asked
	// again until it is good or StatusWithin has passed. An error says that there was no
	// answer.
	Status       func(ctx context.Context, serial *big.Int, issuer *x509.Certificate) ([]byte, error)
	StatusWithin time.Duration
	// Issuer is whose OCSP answers are checked, for OCSP targets.
	Issuer *x509.Certificate
	// Now is time.Now when nil.
	Now func() time.Time
}

// Askers is how many full checks are made at one time where they wait for a ledger or a
// responder.
const Askers = 16

const (
	workers  = 2 // where they do not
	waiting  = 256
	maxWrong = 20
	// closing is how long Close waits: a little longer than the default of
	// --check-ocsp-within.
	closing = 6 * time.Second
	// Of an answer that is no certificate, or a huge one, its first bytes are evidence.
	maxEvidence = 16 << 10
	quoted      = 512
	maxWhy      = 1000 // characters
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
	at      time.Time
}

// Summary is what checking found.
type Summary struct {
	// Seen is how many answers were looked at for their serial (certificates) or status
	// (OCSP); Checked how many of them in full.
	Seen    int64   `json:"seen"`
	Checked int64   `json:"checked"`
	Share   float64 `json:"share"`
	// Skipped is how many were to be checked in full and were not, since the checks were
	// behind.
	Skipped int64 `json:"skipped,omitempty"`
	// Unmade is how many could not be checked in full, since the ledger or the responder
	// could not be asked; what could be checked without them was. UnmadeWhy is why, of the
	// first.
	Unmade    int64  `json:"unmade,omitempty"`
	UnmadeWhy string `json:"unmade_why,omitempty"`
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
	// Evidence is the answer in PEM, or if it is no such its first 512 bytes, quoted.
	Evidence string `json:"evidence,omitempty"`
}

// New starts a checker; Close ends it.
func New(cfg Config) *Checker {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Checker{cfg: cfg, work: make(chan item, waiting), serials: NewSerialSet(), chains: newChains(cfg.Roots)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	n := workers
	if cfg.Row != nil || cfg.Status != nil {
		n = Askers
	}
	for range n {
		c.done.Go(func() {
			for i := range c.work {
				c.look(i)
			}
		})
	}
	return c
}

// Offer looks at an answer's serial and hands it over to be checked in full if it is its
// turn. It does not wait.
func (c *Checker) Offer(r *target.Request, a target.Answer) {
	i := item{r, a, c.cfg.Now()}
	err := c.serial(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.summary.Seen++
	// Bresenham's way of picking a share: evenly, without chance.
	c.offered += c.cfg.Share
	full := c.offered >= 1
	if full {
		c.offered--
	}
	switch {
	case err != nil:
		c.wrong(i, err)
		if full {
			c.summary.Checked++
		}
	case full:
		select {
		case c.work <- i:
		default:
			c.summary.Skipped++
		}
	}
}

// Close waits for the checks under way, but not for long, and returns what was found.
// Nothing may be offered any more.
func (c *Checker) Close() Summary {
	close(c.work)
	timer := time.AfterFunc(closing, c.cancel)
	c.done.Wait()
	timer.Stop()
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

// look checks an answer in full.
func (c *Checker) look(i item) {
	var wrong error
	unmade := c.ctx.Err() // Close has waited long enough
	if unmade == nil {
		wrong, unmade = c.full(i)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case wrong != nil:
		c.summary.Checked++
		c.wrong(i, wrong)
	case unmade == nil:
		c.summary.Checked++
	case c.ctx.Err() != nil:
		c.summary.Skipped++
	default:
		if c.summary.Unmade++; c.summary.UnmadeWhy == "" {
			c.summary.UnmadeWhy = printable(unmade)
		}
	}
}

// full returns what is wrong with an answer, and why the check could not be made whole.
func (c *Checker) full(i item) (wrong, unmade error) {
	if c.cfg.Issuer != nil {
		return c.status(i), nil
	}
	return c.certificate(i, chain(i.answer, true))
}

// wrong counts a wrong answer. c.mu is held.
func (c *Checker) wrong(i item, why error) {
	c.summary.Wrong++
	if len(c.summary.Examples) < maxWrong {
		c.summary.Examples = append(c.summary.Examples, Wrong{Request: i.request.ID, Why: printable(why), Evidence: c.evidence(i.answer)})
	}
}

// printable is an error for people: it may hold what a server said.
func printable(err error) string {
	return engine.Printable(strings.ReplaceAll(err.Error(), "\n", "; "), maxWhy)
}

// evidence is an answer as a report shows it.
func (c *Checker) evidence(a target.Answer) string {
	block, raw := pem.Block{Type: "OCSP RESPONSE", Bytes: a.OCSP}, a.OCSP
	if c.cfg.Issuer == nil {
		block, raw = pem.Block{Type: "CERTIFICATE"}, a.PEM
		if found := chain(a, false); len(found) > 0 {
			block.Bytes = found[0]
		}
		if a.DER != nil {
			raw = block.Bytes
		}
	}
	if n := len(block.Bytes); n > 0 && n <= maxEvidence {
		return string(pem.EncodeToMemory(&block))
	}
	return strconv.Quote(string(raw[:min(len(raw), quoted)]))
}

// chain returns the certificates of an answer, in DER; all of them or at least the first.
func chain(a target.Answer, all bool) [][]byte {
	if a.DER != nil {
		return a.DER
	}
	return decode(a.PEM, all)
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
