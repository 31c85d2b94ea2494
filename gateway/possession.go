package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/p256x8"
)

// possession reads CSRs and checks their signatures. Where the processor checks a batch in
// the time of one, they wait a moment for more, the longer the more there is to do.
type possession struct {
	possessionDeps
	// cores bounds the CSRs, or batches of them, that are worked on at one time, to the
	// cores there are: more would only stand between a refusal and its core.
	cores chan struct{}
	wait  time.Duration // how long a CSR waits for others at most; 0: it does not
	batch prometheus.Observer

	mu   sync.Mutex
	held []*heldCSR // fewer than p256x8.Width, the oldest first
}

// possessionDeps are what a possession knows of the gateway around it.
type possessionDeps struct {
	// underWay counts the requests in work, from their arrival to their answer.
	underWay func() int64
	// expect tells the dispatcher how many more requests are on their way to it, or, where
	// negative, fewer. A CSR that waits is none of them: nothing is to wait for it.
	expect func(n int)
}

// Requests under way beside a CSR, for which it waits as long as it may, and not at all:
// where few are, there is time for a check of its own.
const (
	many = 4 * p256x8.Width
	few  = p256x8.Width / 2
)

// heldCSR is a CSR whose check waits for company.
type heldCSR struct {
	unverified *csr.Unverified
	// wait is how long the batch waits that begins with this one.
	wait time.Duration
	// proven is what the check of the batch found; nil where it found nothing.
	proven *csr.Request
	done   chan struct{} // closed after the check of the batch
}

func newPossession(cores int, wait time.Duration, deps possessionDeps, r prometheus.Registerer) *possession {
	batch := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "certmill_gateway_csr_batch_requests", Help: "CSRs whose signatures were checked at one time. It stays empty where the processor has no AVX-512 IFMA, and while few come.",
		Buckets: prometheus.LinearBuckets(1, 1, p256x8.Width),
	})
	r.MustRegister(batch)
	return &possession{possessionDeps: deps, cores: make(chan struct{}, cores), wait: wait, batch: batch}
}

// of reads a CSR and checks its signature.
func (p *possession) of(ctx context.Context, der []byte) (*csr.Request, error) {
	c := &heldCSR{done: make(chan struct{})}
	var r *csr.Request
	var err error
	first, held := false, false
	if coreErr := p.onCore(ctx, func() {
		if c.unverified, err = csr.Read(der); err != nil {
			return
		}
		if first, held = p.hold(c); !held {
			r, err = c.unverified.Verify()
		}
	}); coreErr != nil {
		return nil, coreErr
	}
	if !held {
		return r, err
	}
	if first {
		p.await(c)
	}
	<-c.done
	if c.proven != nil {
		return c.proven, nil
	}
	// It is wrong, as a rule, or was alone.
	if coreErr := p.onCore(ctx, func() { r, err = c.unverified.Verify() }); coreErr != nil {
		return nil, coreErr
	}
	return r, err
}

// onCore does something when a core is free for it.
func (p *possession) onCore(ctx context.Context, do func()) error {
	select {
	case p.cores <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.cores }()
	do()
	return nil
}

// hold adds c to those that wait, if it gains by that and some do already or enough is
// under way, with signers too, for others to come. Who completes a batch checks it; the
// first of one is told so, for who is to do it when it has waited.
func (p *possession) hold(c *heldCSR) (first, held bool) {
	if p.wait == 0 || !c.unverified.Batchable() {
		return false, false
	}
	p.mu.Lock()
	if first = len(p.held) == 0; first {
		others := min(p.underWay()-1, many)
		if others < few {
			p.mu.Unlock()
			return false, false
		}
		c.wait = p.wait * time.Duration(others) / many
	}
	p.held = append(p.held, c)
	var batch []*heldCSR
	if len(p.held) == p256x8.Width {
		batch, p.held = p.held, nil
	}
	p.mu.Unlock()
	if batch == nil {
		p.expect(-1)
	} else {
		p.check(batch, len(batch)-1) // its last one has not waited
	}
	return first, true
}

// await lets c, the first of a batch, wait for others, and then checks what has come.
func (p *possession) await(c *heldCSR) {
	timer := time.NewTimer(c.wait)
	defer timer.Stop()
	select {
	case <-c.done:
		return
	case <-timer.C:
	}
	select {
	case <-c.done:
		return
	case p.cores <- struct{}{}:
	}
	defer func() { <-p.cores }()
	p.mu.Lock()
	var batch []*heldCSR
	if len(p.held) > 0 && p.held[0] == c {
		batch, p.held = p.held, nil
	}
	p.mu.Unlock()
	p.check(batch, len(batch))
}

// check checks a batch, of which so many have waited, on a core of the caller's. Should it
// fail by a defect, each is left to be checked alone.
func (p *possession) check(batch []*heldCSR, waited int) {
	if len(batch) == 0 {
		return
	}
	p.expect(waited)
	defer func() {
		for _, c := range batch {
			close(c.done)
		}
	}()
	p.batch.Observe(float64(len(batch)))
	unverified := make([]*csr.Unverified, len(batch))
	for i, c := range batch {
		unverified[i] = c.unverified
	}
	for i, r := range csr.Proven(unverified) {
		batch[i].proven = r
	}
}
