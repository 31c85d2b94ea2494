package ocsp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/intake"
	"github.com/certmill/certmill/internal/telemetry"
)

// Deps are the parts that a Responder works with; all may be nil.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	// Tracer is not used: a span would cost more than the answer.
	Tracer trace.Tracer
	Now    func() time.Time
}

func (d Deps) withDefaults() Deps {
	telemetry.Fill(&d.Log, &d.Registry, nil, &d.Now)
	return d
}

// Responder is the OCSP responder. Make it with New and start it with Run, once.
type Responder struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	cache   *cache
	fetch   *fetcher
	store   *Store
	crls    *crlServer

	directory atomic.Pointer[Directory]
	shared    *Shared // what directory was made of; sharedMu guards it
	sharedMu  sync.Mutex
	reloaded  time.Time // when reloadOnce last read; sharedMu guards it

	started  time.Time
	stopping atomic.Bool
	heard    atomic.Int64 // when changes were last heard, nanoseconds after started
	addr     chan net.Addr
	intake   atomic.Pointer[intake.Listener] // from when Run listens
}

// New checks cfg and makes a Responder; it opens nothing.
func New(cfg Config, deps Deps) (*Responder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	deps = deps.withDefaults()
	r := &Responder{
		cfg: cfg, deps: deps, metrics: newMetrics(deps.Registry), cache: newCache(cfg.CacheBytes),
		started: time.Now(), addr: make(chan net.Addr, 1),
	}
	r.heard.Store(-int64(time.Hour)) // nothing was heard yet
	r.fetch = newFetcher(nil, cfg.RedisWaiting, cfg.RedisTimeout, r.metrics)
	r.crls = newCRLServer(cfg, deps.Registry)
	r.watch(deps.Registry)
	return r, nil
}

// Run serves until ctx ends and returns nil then, after running requests have ended
// or the shutdown timeout has passed.
func (r *Responder) Run(ctx context.Context) error {
	store, err := OpenStore(r.cfg.Redis, r.cfg.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	reports, err := OpenStore(r.cfg.reports(), r.cfg.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = reports.Close() }()
	r.store, r.fetch.store, r.crls.store = store, store, store

	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.cfg.Listen)
	if err != nil {
		return fmt.Errorf("ocsp responder: %w", err)
	}
	bounded := intake.New(listener, r.cfg.MaxConnections, r.cfg.MaxConnectionsPerAddress)
	r.intake.Store(bounded)
	r.addr <- listener.Addr()
	// What serves requests ends after the requests have ended.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var helpers errgroup.Group
	for range r.cfg.RedisPipelines {
		helpers.Go(func() error { r.fetch.run(background); return nil })
	}
	helpers.Go(func() error { (&follower{r: r}).run(background); return nil })
	helpers.Go(func() error { r.report(background, reports); return nil })
	r.deps.Log.Info("ocsp responder listens", "address", listener.Addr().String())

	err = r.serve(ctx, bounded)
	stop()
	_ = helpers.Wait() // they return no errors
	r.fetch.stop()
	return err
}

// httpServer is the part of the front that is net/http's.
func (r *Responder) httpServer() *http.Server {
	server := &http.Server{
		Handler:           r,
		ReadTimeout:       r.cfg.ReadTimeout,
		ReadHeaderTimeout: r.cfg.ReadTimeout,
		WriteTimeout:      r.cfg.WriteTimeout,
		IdleTimeout:       r.cfg.IdleTimeout,
		MaxHeaderBytes:    MaxPathBytes + 4<<10,
		ErrorLog:          slog.NewLogLogger(r.deps.Log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}

func (r *Responder) serve(ctx context.Context, listener net.Listener) error {
	f := newFront(r, listener, r.httpServer())
	done := make(chan error, 1)
	go func() { done <- f.serve() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		r.stopping.Store(true)
		time.Sleep(r.cfg.ShutdownDelay) // requests are answered as before
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.ShutdownTimeout)
	defer cancel()
	f.stop(shutdown)
	if err != nil {
		return fmt.Errorf("ocsp responder: %w", err)
	}
	<-done // the listener is closed
	return nil
}

// Addr returns the address that Run listens on; it waits for Run until ctx ends.
func (r *Responder) Addr(ctx context.Context) (net.Addr, error) {
	select {
	case a := <-r.addr:
		r.addr <- a
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Ready reports why requests cannot be answered now, or nil: the issuers are known,
// and Redis is heard. What the cache holds is answered even when it is not ready.
func (r *Responder) Ready() error {
	if r.stopping.Load() {
		return errors.New("ocsp responder: shutting down")
	}
	if d := r.directory.Load(); d == nil || len(d.templates) == 0 {
		return errors.New("ocsp responder: no issuer with an OCSP signer was read from Redis yet")
	}
	if s := r.silence(); s > 10*time.Second {
		return fmt.Errorf("ocsp responder: Redis was not heard for %s", s.Round(time.Second))
	}
	return nil
}

// silence is how long nothing was heard of changes.
func (r *Responder) silence() time.Duration {
	return time.Since(r.started) - time.Duration(r.heard.Load())
}

func (r *Responder) hear(at time.Time) { r.heard.Store(int64(at.Sub(r.started))) }
