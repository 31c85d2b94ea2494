// Package ledger keeps every certificate that was ever issued, in CockroachDB or
// PostgreSQL. It decides what a retry gets, hands out signer epochs, and is the
// only memory of the system: whatever else holds can be made again from it.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger/migrations"
)

// How long things are kept, and how far ahead the ledger prepares.
const (
	// MaxReuse is the longest time for which a request key may stand.
	MaxReuse = 24 * time.Hour
	// Grace is how long the row of an expired certificate stays. The TTL in
	// migrations/cockroach says the same.
	Grace = 72 * time.Hour
	// OrderRetention is how long a settled order can be read.
	OrderRetention = 7 * 24 * time.Hour
)

const (
	// callTimeout ends every call whose caller has set no deadline.
	callTimeout = 30 * time.Second
	// statementTimeout ends a statement in the database whose client is lost.
	statementTimeout = 20 * time.Second
	connectTimeout   = 5 * time.Second
	// defaultConnections is MaxConnections where the configuration has none.
	defaultConnections = 8
)

// Deps is what the ledger takes from its process. Every field may be nil.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	Tracer   trace.Tracer
	// Now is the clock by which keys, tokens and partitions expire.
	Now func() time.Time
}

func (d Deps) withDefaults() Deps {
	telemetry.Fill(&d.Log, nil, &d.Tracer, &d.Now)
	return d
}

// Ledger is an open ledger. All its methods are safe for concurrent use, obey their
// context, repeat what the database asks to repeat, and return errors that have a
// kind of internal/problem: Unavailable while the database is out of reach.
type Ledger struct {
	// write holds SERIALIZABLE sessions; read holds READ COMMITTED ones that cannot
	// write. A read is one statement, so it sees one snapshot at either level, and
	// at this one it leaves no predicate locks behind on PostgreSQL.
	write, read *pgxpool.Pool
	dialect     dialect
	log         *slog.Logger
	now         func() time.Time
	metrics     *metrics
	// short is whether rows are written without what their other columns say (shorten).
	short bool
}

// Open connects to the ledger and checks that its schema is new enough. It never
// changes the schema: a *SchemaError says what to run. The caller closes the ledger.
func Open(ctx context.Context, cfg config.Ledger, deps Deps) (*Ledger, error) {
	deps = deps.withDefaults()
	base, err := poolConfig(cfg)
	if err != nil {
		return nil, err
	}
	d, version, durable, err := probe(ctx, base.ConnConfig)
	if err != nil {
		return nil, err
	}
	if durable.lazy {
		// A row whose commit was acknowledged must outlive the machine: see invariant 1 in
		// docs/architecture.md. Any user may set this, so we do, for our sessions.
		deps.Log.Warn("the database has synchronous_commit off; this program's sessions switch it on")
		base.ConnConfig.RuntimeParams["synchronous_commit"] = "on"
	}
	if len(durable.off) > 0 {
		deps.Log.Error("the database does not keep what it has acknowledged: a crash of its machine loses certificates that were released", "off", durable.off)
	}
	l := &Ledger{dialect: d, log: deps.Log, now: deps.Now, short: d == postgres && version >= migrations.ShortRows}
	total := cfg.MaxConnections
	if total <= 0 {
		total = defaultConnections
	}
	if l.write, err = pgxpool.NewWithConfig(ctx, sessions(base, d, "serializable", false, max(2, total/2))); err != nil {
		return nil, fmt.Errorf("opening the ledger's writing sessions: %w", err)
	}
	if l.read, err = pgxpool.NewWithConfig(ctx, sessions(base, d, "read committed", true, max(2, total-total/2))); err != nil {
		l.write.Close()
		return nil, fmt.Errorf("opening the ledger's reading sessions: %w", err)
	}
	l.metrics = newMetrics(deps.Registry, l)
	l.metrics.volatile.Set(float64(len(durable.off)))
	return l, nil
}

// Close ends all sessions. It waits for calls that are under way.
func (l *Ledger) Close() {
	l.read.Close()
	l.write.Close()
}

// Ping reports whether the ledger answers and can be written to, as far as the server
// says so: a full disk shows only in a write. While it cannot the rule is ReadOnly.
func (l *Ledger) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var readOnly string
	if err := l.write.QueryRow(ctx, `SHOW transaction_read_only`).Scan(&readOnly); err != nil {
		return problem.Down("ledger", time.Second, err)
	}
	if readOnly != "off" {
		l.write.Reset() // the next sessions may find another server
		return errReadOnly(errors.New("the database is read-only"))
	}
	return nil
}

// poolConfig reads the connection string and arranges for the password.
func poolConfig(cfg config.Ledger) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// The parser's error quotes the URL without its password.
		return nil, fmt.Errorf("ledger.url: %w", err)
	}
	pc.ConnConfig.ConnectTimeout = connectTimeout
	if cfg.PasswordFile != "" {
		// Read for each connection, so that a changed password needs no restart.
		pc.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
			secret, err := os.ReadFile(cfg.PasswordFile)
			if err != nil {
				return fmt.Errorf("ledger.password_file: %w", err)
			}
			cc.Password = strings.TrimRight(string(secret), "\r\n")
			return nil
		}
		if err := pc.BeforeConnect(context.Background(), pc.ConnConfig); err != nil {
			return nil, err
		}
	}
	return pc, nil
}

// sessions returns base for a pool of n sessions at an isolation level.
func sessions(base *pgxpool.Config, d dialect, isolation string, readOnly bool, n int) *pgxpool.Config {
	pc := base.Copy()
	pc.MaxConns, pc.MinConns = int32(n), 0
	// pgx checks a connection that has been idle for a second before it is used.
	p := pc.ConnConfig.RuntimeParams
	p["application_name"] = "certmill"
	p["default_transaction_isolation"] = isolation
	if readOnly {
		p["default_transaction_read_only"] = "on"
	} // else as the server says: an operator, or a provider whose disk runs full, may stop writes by it
	p["statement_timeout"] = fmt.Sprint(statementTimeout.Milliseconds())
	p["idle_in_transaction_session_timeout"] = fmt.Sprint(statementTimeout.Milliseconds())
	if d == postgres {
		// Every statement on a table that grows goes by an index and in its order. A
		// plan that was made while the table was small, or not yet analysed, must not
		// scan or sort it when it is large.
		p["enable_seqscan"], p["enable_bitmapscan"] = "off", "off"
	}
	switch {
	case d == postgres && readOnly:
		// A plan for the serials at hand touches their partitions alone; a generic
		// plan would lock every partition.
		p["plan_cache_mode"] = "force_custom_plan"
	case d == postgres:
		// The commit's plan need not depend on its rows, but their number makes a plan for
		// few of them look cheap enough to be made again each time, which costs more than
		// the statement.
		p["plan_cache_mode"] = "force_generic_plan"
	}
	return pc
}

// durability is how far the database keeps what it has acknowledged.
type durability struct {
	lazy bool     // synchronous_commit is off
	off  []string // fsync, full_page_writes
}

// probe asks the database what it is, which schema it has, and whether commits last.
func probe(ctx context.Context, cc *pgx.ConnConfig) (d dialect, schema int64, kept durability, err error) {
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return "", 0, kept, problem.Down("ledger", time.Second, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	d, err = dialectOf(ctx, conn)
	if err != nil {
		return "", 0, kept, problem.Down("ledger", time.Second, err)
	}
	schema, err = schemaVersion(ctx, conn)
	if err != nil {
		return "", 0, kept, problem.Down("ledger", time.Second, err)
	}
	if schema < migrations.Version {
		return "", 0, kept, &SchemaError{Have: schema, Want: migrations.Version}
	}
	if d != postgres {
		return d, schema, kept, nil
	}
	if kept.lazy, err = lazyCommit(ctx, conn); err == nil {
		kept.off, err = volatile(ctx, conn)
	}
	if err != nil {
		return "", 0, kept, problem.Down("ledger", time.Second, err)
	}
	return d, schema, kept, nil
}
