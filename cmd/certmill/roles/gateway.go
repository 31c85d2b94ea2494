package roles

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/gateway"
	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// GatewayConfig is the gateway's whole configuration.
type GatewayConfig struct {
	gateway.Config `yaml:",inline"`
	// Dispatch is the way from this gateway to the signers.
	Dispatch gateway.DispatcherConfig `yaml:"dispatch"`
}

// gatewayElements are the defaults of what stands in lists: a trusted token issuer, a
// Kubernetes cluster.
var gatewayElements = []any{gateway.DefaultJWTIssuer(), gateway.DefaultCluster()}

// DefaultGateway returns the defaults.
func DefaultGateway() GatewayConfig {
	return GatewayConfig{Config: gateway.DefaultConfig(), Dispatch: gateway.DefaultDispatcherConfig()}
}

// Validate reports everything that is wrong.
func (c GatewayConfig) Validate() error {
	err := c.Config.Validate()
	if derr := c.Dispatch.Validate(); derr != nil {
		err = errors.Join(err, fmt.Errorf("dispatch: %w", derr))
	}
	return err
}

func gatewayRole() Role {
	return Role{
		Name: "gateway", Command: "certmill gateway", Summary: "The public API: it authenticates, checks, queues and answers.",
		Defaults: DefaultGateway(), Elements: gatewayElements,
		Check: func(s Source) error {
			_, err := load("gateway", DefaultGateway(), gatewayElements, s)
			return err
		},
	}
}

// Gateway runs a gateway until ctx ends.
func Gateway(ctx context.Context, s Source) error {
	cfg, err := load("gateway", DefaultGateway(), gatewayElements, s)
	if err != nil {
		return err
	}
	return serve(ctx, "gateway", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		return runGateway(ctx, cfg, tel, running)
	})
}

func runGateway(ctx context.Context, cfg GatewayConfig, tel *telemetry.Telemetry, running func(part)) error {
	book, err := openLedger(ctx, cfg.Ledger, tel)
	if err != nil {
		return err
	}
	defer book.Close()
	conn, err := queue.Connect(cfg.NATS, "certmill gateway", tel.Log)
	if err != nil {
		return err
	}
	defer closeQueue(ctx, conn)
	roll := presence.NewRoll(time.Now)
	dispatcher, err := gateway.NewDispatcher(cfg.Dispatch, gateway.DispatcherDeps{Conn: conn, Log: tel.Log, Registry: tel.Registry, Signing: roll.Signing})
	if err != nil {
		return err
	}
	g, err := gateway.New(cfg.Config, gateway.Deps{
		Ledger: book, Signer: dispatcher, Announcer: gateway.NewEvents(conn), Roles: roll, Queue: dispatcher, Seals: conn.Keys,
		Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer,
	})
	if err != nil {
		return err
	}
	running(g)
	return inOrder(ctx, dispatcher.Run, hearRoles(conn, roll, tel), reportGateway(g, conn, tel), g.Run)
}

// hearRoles keeps what the processes of the service report.
func hearRoles(conn *queue.Conn, roll *presence.Roll, tel *telemetry.Telemetry) func(context.Context) error {
	refused := newReportsRefused()
	tel.Registry.MustRegister(refused)
	return func(ctx context.Context) error {
		return conn.HearReports(ctx, func(m *certmillv1.RoleStatus) {
			roll.Hear(m) // one that another presigner has passed on already is no mistake
		}, refused.Inc)
	}
}

func newReportsRefused() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: "certmill_gateway_reports_refused_total",
		Help: "Reports of processes that no holder of the queue key has made."})
}

// reportGateway tells the other gateways how this one is.
func reportGateway(g *gateway.Gateway, conn *queue.Conn, tel *telemetry.Telemetry) func(context.Context) error {
	return func(ctx context.Context) error {
		g.Reporter().Run(ctx, conn.Report, func(err error) { tel.Log.Debug("this gateway cannot report", "error", err) })
		return nil
	}
}

// closeQueue gives what is on its way to the broker a moment to leave.
func closeQueue(ctx context.Context, conn *queue.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	conn.Close(ctx)
}

// ledgerMayCome reports whether an error of opening the ledger passes by itself: the
// database is away. A schema that is too old does not.
func ledgerMayCome(err error) bool {
	var schema *ledger.SchemaError
	return !errors.As(err, &schema) && problem.KindOf(err) == problem.Unavailable
}
