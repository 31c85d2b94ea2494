// Package mesh plays a service mesh that restarts: many agents that all ask for their
// first certificate at once and then renew at half of its lifetime, by the rules of
// Istio's agent. It shows whether everybody is served, whether nobody is served twice,
// and whether the herd dissolves.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/certmill/certmill/loadtest/target"
)

// Config says what mesh there is.
type Config struct {
	// Agents is how many; each is an identity of its own.
	Agents int
	// Within is the time after the restart in which all of them ask.
	Within time.Duration
	// For is how long they renew after that.
	For time.Duration
	// TryTimeout bounds one try.
	TryTimeout time.Duration
	// Target signs; it is given the agents' tokens.
	Target target.Target
	// Material holds the agents' tokens and CSRs.
	Material *Material
	// Watch is told every second how it goes, and may be nil.
	Watch func(elapsed time.Duration, r Rates)
}

// Istio's rules: when an agent renews (security/pkg/nodeagent/cache/secretcache.go:
// SECRET_GRACE_PERIOD_RATIO and its jitter, counted from notBefore), and how it repeats
// a request (pkg/security/retry.go). When the tries are used up the agent begins again,
// with a new key, as often as Envoy asks for its secret: with a pause that grows.
const (
	renewAtShare  = 0.5
	renewAtJitter = 0.01
	tries         = 5
	firstBackoff  = 100 * time.Millisecond
	backoffJitter = 0.1
	firstPause    = 500 * time.Millisecond
	mostPause     = 30 * time.Second
)

// Run plays the mesh until its time is over and every request under way has ended.
func Run(ctx context.Context, c Config) (*Outcome, error) {
	switch {
	case c.Agents < 1 || c.Agents != c.Material.Agents():
		return nil, fmt.Errorf("there is material for %d agents, not for %d", c.Material.Agents(), c.Agents)
	case c.Within <= 0 || c.For <= 0 || c.TryTimeout <= 0:
		return nil, errors.New("all times must be positive")
	}
	started := time.Now()
	end := started.Add(c.Within + c.For)
	book := newBook(started, end.Add(2*time.Minute))
	agents := make([]agent, c.Agents)
	var wait sync.WaitGroup
	for n := range agents {
		a := &agents[n]
		*a = agent{n: n, c: &c, book: book, end: end}
		wait.Go(func() { a.live(ctx, started.Add(rand.N(c.Within))) })
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		book.watch(end, c.Watch)
	}()
	wait.Wait()
	book.stop()
	<-watched
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return newOutcome(&c, book, agents, time.Now()), nil
}

// agent is one of them. Its goroutine owns it.
type agent struct {
	n    int
	c    *Config
	book *book
	end  time.Time

	issued   int // certificates obtained
	used     int // CSRs of its own used
	notAfter time.Time
	wrong    error // the first wrong answer
}

// live asks at due, and then renews as long as there is time.
func (a *agent) live(ctx context.Context, due time.Time) {
	for due.Before(a.end) {
		if !until(ctx, due) {
			return
		}
		a.book.due(time.Now(), a.issued > 0)
		cert := a.obtain(ctx)
		if cert == nil {
			return // ctx has ended, or an answer was wrong
		}
		life := cert.NotAfter.Sub(cert.NotBefore)
		share := renewAtShare + renewAtJitter*(2*rand.Float64()-1)
		now := time.Now()
		due = cert.NotBefore.Add(time.Duration(share * float64(life)))
		a.issued, a.notAfter = a.issued+1, cert.NotAfter
		a.book.renewal(due.Sub(now))
	}
}

// obtain gets a certificate, however often it must ask.
func (a *agent) obtain(ctx context.Context) *leaf {
	asked := time.Now()
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		csr, err := a.c.Material.CSR(a.n, a.used)
		if err != nil {
			a.wrong = err
			return nil
		}
		a.used++
		cert, err := a.fiveTries(ctx, csr)
		if err == nil {
			a.book.served(time.Now(), time.Since(asked))
			return cert
		}
		if ctx.Err() != nil || a.wrong != nil || !until(ctx, time.Now().Add(rand.N(pause))) {
			return nil
		}
	}
}

// fiveTries sends one CSR as Istio's client does.
func (a *agent) fiveTries(ctx context.Context, csr *CSR) (*leaf, error) {
	backoff := firstBackoff
	for try := 1; ; try++ {
		began := time.Now()
		a.book.tried(began)
		answer, err := a.c.Target.Do(ctx, &target.Request{CSR: csr.Material(a.c.Material.name(a.n)), Token: a.c.Material.tokens[a.n], Deadline: began.Add(a.c.TryTimeout)})
		if err == nil {
			cert, err := csr.check(&answer, a.c.Material.name(a.n))
			if err != nil {
				a.wrong = err
			}
			return cert, err
		}
		if ctx.Err() != nil {
			return nil, err
		}
		kind := kindOf(err)
		a.book.refused(time.Now(), kind, err, time.Since(began))
		if try == tries || !retried(kind) {
			a.book.gaveUp()
			return nil, err
		}
		wait := time.Duration(float64(backoff) * (1 + backoffJitter*(2*rand.Float64()-1)))
		if !until(ctx, time.Now().Add(wait)) {
			return nil, ctx.Err()
		}
		backoff *= 2
	}
}

// retried reports whether Istio's client repeats after a failure of this kind: on
// Canceled, DeadlineExceeded, ResourceExhausted, Aborted, Internal and Unavailable.
func retried(kind string) bool {
	switch kind {
	case "invalid", "unauthenticated", "denied", "not_found", "conflict", "answer":
		return false
	}
	return true
}

func kindOf(err error) string {
	var f *target.Failure
	if errors.As(err, &f) {
		return f.Kind
	}
	return target.Classify(err).Kind
}

// until sleeps and reports whether ctx lasted.
func until(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
