package roles

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// LedgerConfig is the configuration of the tools that work on the ledger alone.
type LedgerConfig struct {
	// Ledger is the database.
	Ledger config.Ledger `yaml:"ledger"`
	// MaintainInterval is how often `ledger maintain --every` works where the flag
	// gives no time of its own.
	MaintainInterval time.Duration `yaml:"maintain_interval"`
	// Telemetry is what the maintenance tells of itself.
	Telemetry config.Telemetry `yaml:"telemetry"`
}

// DefaultLedger returns the defaults.
func DefaultLedger() LedgerConfig {
	return LedgerConfig{Ledger: config.Ledger{MaxConnections: 2}, MaintainInterval: time.Hour, Telemetry: config.DefaultTelemetry()}
}

// Validate reports everything that is wrong.
func (c LedgerConfig) Validate() error {
	var errs []error
	if c.Ledger.URL == "" {
		errs = append(errs, errors.New("ledger.url is missing"))
	}
	if c.MaintainInterval < time.Minute {
		errs = append(errs, errors.New("maintain_interval must be at least 1m"))
	}
	return errors.Join(errs...)
}

func ledgerRole() Role {
	return Role{
		Name: "ledger", Command: "certmill ledger", Summary: "Schema and upkeep of the ledger.",
		Defaults: DefaultLedger(),
		Check: func(s Source) error {
			_, err := LoadLedger(s)
			return err
		},
	}
}

// LoadLedger reads the configuration of the ledger's tools.
func LoadLedger(s Source) (LedgerConfig, error) {
	cfg, err := load("ledger", DefaultLedger(), nil, s)
	if s.File != "" && errors.Is(err, config.ErrUnknownKey) {
		err = fmt.Errorf("%w\nthis command takes a configuration of the role ledger, which has the sections ledger and telemetry and maintain_interval, and no section of another role; that of `certmill dev` is config/maintenance.yaml in its folder", err)
	}
	return cfg, err
}

// openLedger opens the ledger, waiting for a database that is away.
func openLedger(ctx context.Context, cfg config.Ledger, tel *telemetry.Telemetry) (*ledger.Ledger, error) {
	return keepTrying(ctx, tel, "the ledger", func(ctx context.Context) (*ledger.Ledger, error) {
		return ledger.Open(ctx, cfg, ledger.Deps{Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer})
	}, ledgerMayCome)
}

// Maintain keeps the ledger in order until ctx ends.
func Maintain(ctx context.Context, cfg LedgerConfig) error {
	return serve(ctx, "maintenance", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		book, err := openLedger(ctx, cfg.Ledger, tel)
		if err != nil {
			return err
		}
		defer book.Close()
		m := &maintenance{book: book, tel: tel, every: cfg.MaintainInterval, metrics: newMaintenanceMetrics(tel.Registry)}
		running(m)
		return inOrder(ctx, m.report, m.Run)
	})
}

// maintenance is the upkeep as a part.
type maintenance struct {
	book    *ledger.Ledger
	tel     *telemetry.Telemetry
	every   time.Duration
	metrics *maintenanceMetrics
	last    atomic.Pointer[error] // of the last run
}

// Run maintains at once and then every interval. A run that fails is logged and the
// next one tries again: what it makes is needed days from now.
func (m *maintenance) Run(ctx context.Context) error {
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	for {
		done, err := m.book.Maintain(ctx)
		m.last.Store(&err)
		if err != nil && ctx.Err() == nil {
			m.tel.Log.Error("the ledger's upkeep failed", "error", err)
		} else if err == nil {
			m.tel.Log.Info("the ledger is in order", "done", done)
		}
		if err := m.metrics.measure(ctx, m.book); err != nil && ctx.Err() == nil {
			m.tel.Log.Warn("what expires could not be counted", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// report leaves word of this process in the ledger until ctx ends: it has no broker.
func (m *maintenance) report(ctx context.Context) error {
	reporter := presence.NewReporter(presence.Maintenance, "", func(r *certmillv1.RoleStatus) { presence.State(r, m.Ready()) })
	send := func(ctx context.Context, r *certmillv1.RoleStatus) error {
		data, err := proto.Marshal(r)
		if err != nil {
			return err
		}
		return m.book.PutReport(ctx, r.GetRole()+" "+r.GetName(), data)
	}
	reporter.Run(ctx, send, func(err error) { m.tel.Log.Debug("this process cannot report", "error", err) })
	return nil
}

// Ready returns how the last run ended.
func (m *maintenance) Ready() error {
	if last := m.last.Load(); last != nil {
		return *last
	}
	return errStarting
}
