package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/certmill/certmill/internal/intake"
	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Gateway is one gateway. Make it with New and bring it to life with Run, once.
type Gateway struct {
	cfg      Config
	deps     Deps
	service  *service
	auth     *authenticator
	observer *observer
	tls      *tlsFiles
	reporter *presence.Reporter
	console  *console // nil where it is off

	listening       chan struct{} // closed when both listeners are open
	https           *intake.Listener
	grpc            *intake.Listener // nil where gRPC is off
	stopping        atomic.Bool
	consoleListener net.Listener // nil where it is off
}

// New makes a Gateway. It reads no file and listens nowhere; Run does.
func New(cfg Config, deps Deps) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("gateway configuration: %w", err)
	}
	if deps.Ledger == nil || deps.Signer == nil {
		return nil, errors.New("gateway: no ledger or no signer given")
	}
	deps = deps.withDefaults()
	g := &Gateway{cfg: cfg, deps: deps, listening: make(chan struct{})}
	g.reporter = presence.NewReporter(presence.Gateway, cfg.Name, g.describe)
	issuers := newIssuerCache(deps.Ledger, cfg.IssuerRefresh, deps.Log, deps.Now)
	g.tls = &tlsFiles{cfg: cfg.TLS, log: deps.Log, now: deps.Now}
	issuers.changed = func(set *issuerSet) { g.tls.setIssuers(set.certs) }
	g.service = &service{
		cfg: cfg, ledger: deps.Ledger, signer: deps.Signer, announcer: deps.Announcer, issuers: issuers,
		writable: newWritable(deps.Ledger, deps.Log, cfg.Limits.RetryAfter, deps.Now),
		early:    &earlyRenewals{source: deps.Ledger, log: deps.Log, every: cfg.IssuerRefresh},
		inFlight: newLimiter("in_flight", cfg.Limits.MaxInFlight, cfg.Limits.RetryAfter),
		renewing: newLimiter("renewals_in_flight", cfg.Limits.maxRenewals(), cfg.Limits.RetryAfter),
		waiting:  newLimiter("order_waiters", cfg.Orders.MaxWaiting, cfg.Limits.RetryAfter),
		streams:  newLimiter("streams", cfg.Limits.MaxStreams, cfg.Limits.RetryAfter),
		issuance: newIssuance(deps.Registry),
		log:      deps.Log, now: deps.Now,
	}
	g.service.admission = newAdmission(&g.cfg, g.service.inFlight, g.service.streams, g.service.waiting, deps.Log, deps.Now)
	g.service.window = newWindow(&cfg.Limits, g.service.admission.calls, g.service.renewing)
	g.service.possession = newPossession(runtime.GOMAXPROCS(0), cfg.Limits.CSRWait, possessionDeps{underWay: g.service.inFlight.used.Load, expect: deps.Signer.Expect}, deps.Registry)
	g.service.status = &statusBoard{service: g.service, roles: deps.Roles, queue: deps.Queue, self: g.reporter}
	g.auth = &authenticator{
		mtls: &mtlsAuth{
			issuers: issuers, ledger: deps.Ledger, operators: cfg.Operators, now: deps.Now, ttl: cfg.TLS.RevocationTTL,
			good: newLRU[serial.Number, time.Time](cfg.Auth.CacheEntries),
		},
		jwt:        newJWTAuth(cfg.Auth, cfg.Operators, deps.Now),
		kubernetes: newKubernetesAuth(&cfg, deps.Now),
		tokens: &enrollmentAuth{
			enabled: cfg.Auth.EnrollmentTokens, ledger: deps.Ledger, now: deps.Now,
			known: newLRU[[sha256.Size]byte, rememberedToken](cfg.Auth.CacheEntries),
		},
	}
	g.observer = &observer{log: deps.Log, tracer: deps.Tracer, metrics: newMetrics(deps.Registry, g.service, g.openListeners)}
	if cfg.Console.Listen != "" {
		if deps.Seals == nil {
			return nil, errors.New("gateway: a console without keys to seal its sessions")
		}
		g.service.tickets = newTicketOffice(deps.Seals, deps.Now)
		var err error
		if g.console, err = newConsole(g.service, g.auth, g.observer, g.service.tickets, deps.Log); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Ready returns nil when the gateway can serve: profiles and issuers are loaded, the
// ledger was reached lately and takes writes, signers can be reached, and it is not shutting down.
func (g *Gateway) Ready() error {
	select {
	case <-g.listening:
	default:
		return errors.New("the gateway has not started to listen")
	}
	if g.stopping.Load() {
		return errors.New("the gateway is shutting down")
	}
	set := g.service.issuers.current()
	if len(set.active) == 0 {
		return errors.New("no active issuer has been read from the ledger yet")
	}
	if age := g.deps.Now().Sub(set.loaded); age > 3*g.cfg.IssuerRefresh+10*time.Second {
		return fmt.Errorf("the ledger has not answered for %s", age.Truncate(time.Second))
	}
	if why := g.service.writable.why.Load(); why != nil {
		return fmt.Errorf("the ledger takes no writes: %w", *why)
	}
	return g.deps.Signer.Ready()
}

// Addresses waits until the gateway listens and returns where; grpc is empty where
// it is off. It is for callers who let the system choose a port.
func (g *Gateway) Addresses(ctx context.Context) (https, grpc string, err error) {
	select {
	case <-g.listening:
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
	if g.grpc != nil {
		grpc = g.grpc.Addr().String()
	}
	return g.https.Addr().String(), grpc, nil
}

// Run serves until ctx ends, then shuts down in order: it says that it is not ready,
// takes no new calls, lets the running ones end within shutdown_timeout, stops its
// own loops, and returns nil. It returns an error where it cannot serve: a file that
// is wrong, an address that is taken. A ledger or a queue that is away is waited for.
// The Signer must run until Run has returned.
func (g *Gateway) Run(ctx context.Context) error {
	profiles, err := profile.LoadDir(g.cfg.ProfilesDir)
	if err != nil {
		return fmt.Errorf("profiles_dir: %w", err)
	}
	g.service.profiles = profiles
	if g.cfg.DefaultProfile != "" {
		if _, err := profiles.Get(g.cfg.DefaultProfile); err != nil {
			return fmt.Errorf("default_profile: %w", err)
		}
	}
	if err := g.cfg.Istio.check(profiles); err != nil {
		return err
	}
	if g.service.bundles, err = newBundles(g.cfg.SPIFFE, profiles); err != nil {
		return err
	}
	if err := g.auth.kubernetes.load(); err != nil {
		return err
	}
	defer g.auth.kubernetes.close()
	if err := g.tls.load(); err != nil {
		return err
	}
	if err := g.service.issuers.refresh(ctx); err != nil {
		g.deps.Log.Warn("the issuers cannot be read yet", "error", err)
	}
	if err := g.listen(ctx); err != nil {
		return err
	}
	return g.serve(ctx)
}

// openListeners returns the listeners by name, none before Run has opened them.
func (g *Gateway) openListeners() map[string]*intake.Listener {
	select {
	case <-g.listening:
	default:
		return nil
	}
	open := map[string]*intake.Listener{"https": g.https}
	if g.grpc != nil {
		open["grpc"] = g.grpc
	}
	return open
}

func (g *Gateway) listen(ctx context.Context) error {
	var config net.ListenConfig
	https, err := config.Listen(ctx, "tcp", g.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l := &g.cfg.Limits
	g.https = intake.New(https, l.MaxConnections, l.MaxConnectionsPerAddress)
	if g.cfg.GRPCListen != "" {
		grpc, err := config.Listen(ctx, "tcp", g.cfg.GRPCListen)
		if err != nil {
			_ = https.Close()
			return fmt.Errorf("grpc_listen: %w", err)
		}
		g.grpc = intake.New(grpc, l.MaxConnections, l.MaxConnectionsPerAddress)
	}
	if g.console != nil {
		if g.consoleListener, err = config.Listen(ctx, "tcp", g.cfg.Console.Listen); err != nil {
			_ = https.Close()
			if g.grpc != nil {
				_ = g.grpc.Close()
			}
			return fmt.Errorf("console.listen: %w", err)
		}
		g.service.consoleURL = g.cfg.Console.url(g.consoleListener.Addr().String())
	}
	close(g.listening)
	return nil
}

// serve runs the servers and the loops. The loops end after the servers, since calls
// that are running out need what the loops keep fresh.
func (g *Gateway) serve(ctx context.Context) error {
	httpServer := g.newHTTPServer()
	grpcServer, grpcHealth := newGRPCServer(&grpcAPI{service: g.service, auth: g.auth, observer: g.observer}, credentials.NewTLS(g.tls.config()))

	loopCtx, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	loops := g.startLoops(loopCtx, grpcHealth)

	servers, failed := errgroup.WithContext(ctx)
	servers.Go(func() error {
		err := httpServer.ServeTLS(g.https, "", "")
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serving HTTPS: %w", err)
	})
	if g.grpc != nil {
		servers.Go(func() error {
			err := grpcServer.Serve(g.grpc)
			if err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
				return fmt.Errorf("serving gRPC: %w", err)
			}
			return nil
		})
	}
	if g.console != nil {
		servers.Go(func() error { return g.serveConsole(failed) })
	}
	g.deps.Log.Info("gateway serves", "https", g.https.Addr().String(), "grpc", g.cfg.GRPCListen)

	<-failed.Done() // ctx has ended, or a server has failed
	g.stopping.Store(true)
	grpcHealth.Shutdown()
	if ctx.Err() != nil {
		time.Sleep(g.cfg.Limits.ShutdownDelay) // calls go on as before
	}
	g.shutdown(httpServer, grpcServer)
	err := servers.Wait()
	stopLoops()
	return errors.Join(err, loops.Wait())
}

// shutdown lets running calls end, and cuts those that do not within the bound.
func (g *Gateway) shutdown(httpServer *http.Server, grpcServer *grpc.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.Limits.ShutdownTimeout)
	defer cancel()
	var both errgroup.Group
	both.Go(func() error {
		if err := httpServer.Shutdown(ctx); err != nil {
			g.deps.Log.Warn("HTTPS calls were cut at shutdown", "error", err)
			return httpServer.Close()
		}
		return nil
	})
	both.Go(func() error {
		stop := context.AfterFunc(ctx, grpcServer.Stop)
		defer stop()
		grpcServer.GracefulStop()
		return nil
	})
	if err := both.Wait(); err != nil {
		g.deps.Log.Warn("closing HTTPS connections", "error", err)
	}
}

func (g *Gateway) startLoops(ctx context.Context, h *health.Server) *errgroup.Group {
	var loops errgroup.Group
	run := func(loop func(context.Context)) {
		loops.Go(func() error { loop(ctx); return nil })
	}
	run(g.service.issuers.run)
	run(g.service.writable.run)
	run(g.service.early.run)
	run(g.service.sweep)
	run(g.tls.run)
	for _, i := range g.auth.jwt.issuers {
		run(i.keys.run)
	}
	for _, c := range g.auth.kubernetes.clusters {
		if c.keys != nil {
			run(c.keys.keys.run)
		}
	}
	run(func(ctx context.Context) { g.reportHealth(ctx, h) })
	return &loops
}

// reportHealth keeps the gRPC health service equal to Ready.
func (g *Gateway) reportHealth(ctx context.Context, h *health.Server) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		status := healthv1.HealthCheckResponse_SERVING
		if g.Ready() != nil {
			status = healthv1.HealthCheckResponse_NOT_SERVING
		}
		h.SetServingStatus("", status)
		h.SetServingStatus(certmillv1.CertificateAuthority_ServiceDesc.ServiceName, status)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (g *Gateway) newHTTPServer() *http.Server {
	l := &g.cfg.Limits
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           newHTTPAPI(g.service, g.auth, g.observer, g.Ready),
		TLSConfig:         g.tls.config(),
		Protocols:         protocols,
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ReadTimeout,
		// Above every deadline that a call can have, for those who read too slowly.
		WriteTimeout:   max(l.MaxCallTimeout, maxOrderWait) + 30*time.Second,
		IdleTimeout:    l.IdleTimeout,
		MaxHeaderBytes: l.MaxHeaderBytes,
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: l.MaxConcurrentStreams, SendPingTimeout: time.Minute, PingTimeout: 15 * time.Second},
		// Handshakes that fail and connections that break are the network's daily life.
		ErrorLog: slog.NewLogLogger(g.deps.Log.Handler(), slog.LevelDebug),
	}
}
