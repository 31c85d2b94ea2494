package ledgertest

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

// Run is the contract of the ledger. database returns the URL of a new, empty
// database for each test, without TLS, for a user who may create tables.
func Run(t *testing.T, database func(testing.TB) string) {
	for _, group := range []struct {
		name  string
		tests map[string]func(*testing.T, *env)
	}{
		{"Commit", commitTests}, {"Generations", generationTests}, {"Faults", faultTests},
		{"Committer", committerTests}, {"Read", readTests}, {"Short", shortTests}, {"Revoke", revokeTests}, {"Audit", auditTests},
		{"Issuers", issuerTests}, {"Orders", orderTests}, {"Tokens", tokenTests}, {"CRLs", crlTests}, {"Renewals", renewalTests}, {"Maintain", maintainTests},
		{"Open", openTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for name, test := range group.tests {
				t.Run(name, func(t *testing.T) { test(t, newEnv(t, database(t))) })
			}
		})
	}
}

// env is what one test has: a database of its own and a clock that it moves.
type env struct {
	*ledger.Ledger
	url      string
	clock    *clock
	registry *prometheus.Registry
}

func newEnv(t *testing.T, url string) *env {
	c := &clock{}
	r := prometheus.NewRegistry()
	l := Open(t, url, ledger.Deps{Now: c.Now, Registry: r})
	return &env{Ledger: l, url: url, clock: c, registry: r}
}

// another opens the database once more, as a second process would.
func (e *env) another(t *testing.T, url string) *ledger.Ledger {
	return Reopen(t, url, ledger.Deps{Now: e.clock.Now})
}

// entry is Entry at the test's time.
func (e *env) entry(t *testing.T, lifetime time.Duration, names ...string) ledger.Entry {
	return Entry(t, e.clock.Now(), lifetime, names...)
}

// connect opens a connection beside the ledger's, to look and to meddle.
func (e *env) connect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), e.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// count returns the one number that a query yields.
func (e *env) count(t *testing.T, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := e.connect(t).QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// onPostgreSQL skips a test of what only PostgreSQL has.
func (e *env) onPostgreSQL(t *testing.T) {
	t.Helper()
	var version string
	if err := e.connect(t).QueryRow(t.Context(), `SELECT version()`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(version, "PostgreSQL") {
		t.Skip("PostgreSQL only")
	}
}

// retries returns how often the ledger has repeated a statement for a cause.
func (e *env) retries(t *testing.T, cause string) float64 {
	t.Helper()
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "certmill_ledger_retries_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == cause {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// commitOne commits one entry that must succeed.
func commitOne(t *testing.T, l *ledger.Ledger, e ledger.Entry) ledger.Outcome {
	t.Helper()
	r := l.CommitBatch(t.Context(), []ledger.Entry{e})[0]
	if r.Err != nil {
		t.Fatalf("committing: %v", r.Err)
	}
	return r.Outcome
}

func wantKind(t *testing.T, err error, kind problem.Kind) {
	t.Helper()
	if problem.KindOf(err) != kind {
		t.Fatalf("error is %v (%s), want kind %s", err, problem.KindOf(err), kind)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is the time of day, moved on by as much as the test says.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }
