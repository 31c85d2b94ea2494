package ledger

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/testenv"
)

// TestConflictsInsideATransactionAreRepeated runs inTx as each dialect does it: a 40001
// from inside fn repeats fn, and any other failure of the database does not.
func TestConflictsInsideATransactionAreRepeated(t *testing.T) {
	cfg := config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 4}
	if err := Migrate(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, d := range []dialect{postgres, cockroach} {
		t.Run(string(d), func(t *testing.T) {
			l.dialect = d
			runs := 0
			err := l.inTx(t.Context(), pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
				if runs++; runs < 3 {
					_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`)
					return err
				}
				_, err := tx.Exec(ctx, "SELECT 1")
				return err
			})
			if err != nil || runs != 3 {
				t.Errorf("%d runs, %v", runs, err)
			}
			runs = 0
			err = l.inTx(t.Context(), pgx.TxOptions{}, func(ctx context.Context, tx pgx.Tx) error {
				runs++
				_, err := tx.Exec(ctx, "SELECT 1/0")
				return err
			})
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); runs != 1 || !ok || pgErr.Code != "22012" {
				t.Errorf("a division by zero: %d runs, %v", runs, err)
			}
		})
	}
}
