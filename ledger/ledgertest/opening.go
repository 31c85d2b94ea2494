package ledgertest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var openTests = map[string]func(*testing.T, *env){
	"commits are synchronous whatever the server says":        synchronousCommits,
	"a commit's statement is planned once, not for its rows":  commitIsPlannedOnce,
	"migrating again changes nothing, and the status says so": migrateAgain,
	"an old schema is refused with what to run":               oldSchema,
	"a server that is not there is Unavailable":               noServer,
	"a password file that is missing is named":                noPassword,
	"ping": ping,
}

func migrateAgain(t *testing.T, e *env) {
	cfg := config.Ledger{URL: e.url}
	entry := e.entry(t, 1000)
	commitOne(t, e.Ledger, entry)
	noError(t, ledger.Migrate(t.Context(), cfg))
	_, _, err := e.Certificate(t.Context(), entry.Serial)
	noError(t, err)
	steps, err := ledger.MigrationStatus(t.Context(), cfg)
	noError(t, err)
	for i, s := range steps {
		if s.Version != int64(i+1) || s.Applied.IsZero() || s.File == "" {
			t.Errorf("step %+v", s)
		}
	}
	if len(steps) == 0 {
		t.Error("no steps")
	}
}

func oldSchema(t *testing.T, e *env) {
	_, err := e.connect(t).Exec(t.Context(), `UPDATE goose_db_version SET version_id = 0`)
	noError(t, err)
	_, err = ledger.Open(t.Context(), config.Ledger{URL: e.url}, ledger.Deps{})
	if _, ok := errors.AsType[*ledger.SchemaError](err); !ok {
		t.Errorf("error is %v", err)
	}
	_, err = e.connect(t).Exec(t.Context(), `DROP TABLE goose_db_version`)
	noError(t, err)
	_, err = ledger.Open(t.Context(), config.Ledger{URL: e.url}, ledger.Deps{})
	if s, ok := errors.AsType[*ledger.SchemaError](err); !ok || s.Have != 0 {
		t.Errorf("error is %v", err)
	}
}

func noServer(t *testing.T, _ *env) {
	_, err := ledger.Open(t.Context(), config.Ledger{URL: "postgres://nobody@127.0.0.1:1/none?sslmode=disable"}, ledger.Deps{})
	wantKind(t, err, problem.Unavailable)
}

func noPassword(t *testing.T, e *env) {
	missing := filepath.Join(t.TempDir(), "none")
	if _, err := ledger.Open(t.Context(), config.Ledger{URL: e.url, PasswordFile: missing}, ledger.Deps{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	file := filepath.Join(t.TempDir(), "password")
	noError(t, os.WriteFile(file, []byte("unused where the server trusts\n"), 0o600))
	l, err := ledger.Open(t.Context(), config.Ledger{URL: e.url, PasswordFile: file}, ledger.Deps{})
	noError(t, err)
	l.Close()
}

func ping(t *testing.T, e *env) { noError(t, e.Ping(t.Context())) }

func synchronousCommits(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	conn := e.connect(t)
	var database string
	noError(t, conn.QueryRow(t.Context(), `SELECT current_database()`).Scan(&database))
	_, err := conn.Exec(t.Context(), `ALTER DATABASE `+pgx.Identifier{database}.Sanitize()+` SET synchronous_commit = off`)
	noError(t, err)
	l := Reopen(t, e.url, ledger.Deps{})
	// What the ledger's own sessions work with shows in what one of their triggers sees.
	_, err = conn.Exec(t.Context(), `CREATE TABLE seen (mode text);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$;
		CREATE TRIGGER note AFTER INSERT ON signer_epochs FOR EACH ROW EXECUTE FUNCTION note()`)
	noError(t, err)
	_, err = l.StartEpoch(t.Context(), ledger.Epoch{Signer: "s", Issuer: 1, Token: "t"})
	noError(t, err)
	var mode string
	noError(t, conn.QueryRow(t.Context(), `SELECT mode FROM seen`).Scan(&mode))
	if mode != "on" {
		t.Errorf("the ledger commits with synchronous_commit %s", mode)
	}
}

// A commit's statements are planned once on each connection, whatever the sizes of batches.
func commitIsPlannedOnce(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	conn := e.connect(t)
	_, err := conn.Exec(t.Context(), `CREATE TABLE seen (planned bigint);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO seen SELECT max(custom_plans) FROM pg_prepared_statements WHERE name LIKE 'certmill_commit%'; RETURN NEW; END $$;
		CREATE TRIGGER note AFTER INSERT ON requests FOR EACH ROW EXECUTE FUNCTION note()`)
	noError(t, err)
	const commits = 10
	for range commits / 2 {
		noError(t, e.CommitBatch(t.Context(), []ledger.Entry{e.entry(t, time.Hour)})[0].Err)
		noError(t, e.CommitBatch(t.Context(), []ledger.Entry{e.entry(t, time.Hour, "dns:a", "dns:b")})[0].Err)
	}
	var seen, planned int
	noError(t, conn.QueryRow(t.Context(), `SELECT count(*), max(planned) FROM seen`).Scan(&seen, &planned))
	if seen != commits || planned != 0 {
		t.Errorf("a connection planned the statement %d times for its rows; %d of %d commits seen", planned, seen, commits)
	}
}
