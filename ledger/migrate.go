package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger/migrations"
)

// SchemaError says that the database's schema is older than this program.
type SchemaError struct {
	Have, Want int64
}

// Error names the command that helps.
func (e *SchemaError) Error() string {
	return fmt.Sprintf("the ledger's schema is at version %d and this program needs %d: run `certmill ledger migrate`", e.Have, e.Want)
}

// Migration is one step of the schema.
type Migration struct {
	Version int64
	File    string
	// Applied is zero while the step is pending.
	Applied time.Time
	// SQL is the step's file, with its comments.
	SQL string
	// Finish is true for a pending step that Migrate leaves to FinishMigration: programs
	// of the version before would miss what it takes away.
	Finish bool
}

// Migrate brings the schema up to this program's version, gives the ledger's users
// their rights (ApplyGrants) and makes the first partitions. It is a step of its own in
// a deployment: programs of this version and the one before both run on the schema
// between, and commits go on meanwhile. An empty database gets the whole schema. Running
// it again, or twice at once, does no harm.
func Migrate(ctx context.Context, cfg config.Ledger) error { return migrate(ctx, cfg, false) }

// FinishMigration is Migrate with the steps that wait until no program of the version
// before runs any more. After it there is no way back to such a program.
func FinishMigration(ctx context.Context, cfg config.Ledger) error { return migrate(ctx, cfg, true) }

func migrate(ctx context.Context, cfg config.Ledger, finish bool) error {
	err := withProvider(ctx, cfg, func(p *goose.Provider, _ fs.FS) error {
		have, err := p.GetDBVersion(ctx)
		if err != nil {
			return err
		}
		if _, err := p.UpTo(ctx, migrations.Version); err != nil {
			return err
		}
		if err := completeIndexes(ctx, cfg); err != nil {
			return err
		}
		if have == 0 || finish {
			_, err = p.Up(ctx)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("migrating the ledger: %w", err)
	}
	if _, err := ApplyGrants(ctx, cfg); err != nil {
		return err
	}
	l, err := Open(ctx, cfg, Deps{})
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = l.Maintain(ctx)
	return err
}

// MigrationStatus returns every step of the schema, oldest first.
func MigrationStatus(ctx context.Context, cfg config.Ledger) ([]Migration, error) {
	var out []Migration
	err := withProvider(ctx, cfg, func(p *goose.Provider, files fs.FS) error {
		all, err := p.Status(ctx)
		if err != nil {
			return err
		}
		started := len(all) > 0 && !all[0].AppliedAt.IsZero()
		for _, m := range all {
			text, err := fs.ReadFile(files, m.Source.Path)
			if err != nil {
				return err
			}
			out = append(out, Migration{Version: m.Source.Version, File: m.Source.Path, Applied: m.AppliedAt, SQL: string(text),
				Finish: started && m.AppliedAt.IsZero() && m.Source.Version > migrations.Version})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the ledger's schema version: %w", err)
	}
	return out, nil
}

func withProvider(ctx context.Context, cfg config.Ledger, do func(*goose.Provider, fs.FS) error) error {
	pc, err := poolConfig(cfg)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, pc.ConnConfig)
	if err != nil {
		return problem.Down("ledger", time.Second, err)
	}
	d, err := dialectOf(ctx, conn)
	conn.Close(ctx)
	if err != nil {
		return problem.Down("ledger", time.Second, err)
	}
	files, err := fs.Sub(migrations.FS, string(d))
	if err != nil {
		return err
	}
	opts := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if d == postgres { // CockroachDB has no advisory locks; its steps may run twice.
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return err
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	}
	db := stdlib.OpenDB(*pc.ConnConfig)
	defer db.Close()
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, opts...)
	if err != nil {
		return err
	}
	return do(p, files)
}

// schemaVersion returns the last step applied, 0 for an empty database.
func schemaVersion(ctx context.Context, conn *pgx.Conn) (int64, error) {
	var v int64
	err := conn.QueryRow(ctx, `SELECT COALESCE(max(version_id), 0) FROM goose_db_version WHERE is_applied`).Scan(&v)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == codeUndefinedTable {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the schema's version: %w", err)
	}
	return v, nil
}
