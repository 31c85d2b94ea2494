package presign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/certmill/certmill/ocsp"
)

// Presigner signs OCSP answers ahead of time. Make it with New and start it with Run,
// once.
type Presigner struct {
	cfg     Config
	deps    Deps
	name    string
	metrics *metrics
	store   *ocsp.Store

	slots   chan struct{} // one for each signature at a time
	limiter *rate.Limiter // of the sweep
	kick    chan struct{} // starts a sweep at once

	shared   atomic.Pointer[sharedView]
	sharedMu sync.Mutex // one reader of the shared entries at a time
	keys     keyring    // used under sharedMu
	leases   leases
	checked  checked

	// When the records in Redis were counted, and in which slices; the sweep's.
	counted     time.Time
	countedMask uint64
}

// New checks cfg and makes a Presigner; it opens nothing.
func New(cfg Config, deps Deps) (*Presigner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Ledger == nil {
		return nil, errors.New("presigner: no ledger")
	}
	deps = deps.withDefaults()
	p := &Presigner{
		cfg: cfg, deps: deps, name: cfg.Name,
		slots:   make(chan struct{}, cfg.Concurrency),
		limiter: rate.NewLimiter(rate.Limit(cfg.SweepRate), max(cfg.SweepRate/10, putChunk)),
		kick:    make(chan struct{}, 1),
		keys:    keyring{find: deps.Key, known: map[string]ContextSigner{}},
	}
	if p.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("presigner: the host has no name; set name: %w", err)
		}
		p.name = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	p.metrics = newMetrics(deps.Registry)
	p.watch(deps.Registry)
	return p, nil
}

// Run works until ctx ends and returns nil then, after what is under way has ended.
// Redis, NATS, the ledger and the keys may be away at any time, and at the start.
func (p *Presigner) Run(ctx context.Context) error {
	store, err := ocsp.OpenStore(p.cfg.Redis, p.cfg.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	p.store = store

	group, ctx := errgroup.WithContext(ctx)
	for _, loop := range []func(context.Context){
		p.keepShared, p.keepLeases, p.keepSwept, p.pollRevocations, p.watchRedis,
	} {
		group.Go(func() error { loop(ctx); return nil })
	}
	if p.deps.CRLs != nil {
		group.Go(func() error { p.keepCRLs(ctx); return nil })
	}
	if p.deps.Queue != nil {
		group.Go(func() error { p.report(ctx); return nil })
		group.Go(func() error { p.consume(ctx, issuedConsumer(p.cfg), p.handleIssued); return nil })
		group.Go(func() error { p.consume(ctx, revokedConsumer(p.cfg), p.handleRevoked); return nil })
	}
	return group.Wait()
}

// Ready reports why nothing can be signed now, or nil.
func (p *Presigner) Ready() error {
	view := p.shared.Load()
	if view == nil {
		return errors.New("presigner: the ledger and Redis were not read yet")
	}
	if len(view.delegates) == 0 {
		return errors.New("presigner: no OCSP signer with a usable key; make one with 'certmill ca init'")
	}
	return nil
}

// every calls fn at once and then at each interval until ctx ends. A failure is
// logged when it begins and when it ends, and tried again at the next interval.
func (p *Presigner) every(ctx context.Context, interval time.Duration, what string, fn func(context.Context) error) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	failing := false
	for {
		err := fn(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil && !failing:
			p.deps.Log.Warn(what+" does not work; it is tried again", "error", err)
		case err == nil && failing:
			p.deps.Log.Info(what + " works again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// redis bounds one call to Redis.
func (p *Presigner) redis(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, p.cfg.RedisTimeout)
}
