package ledger_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger/ledgertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestPostgreSQL(t *testing.T) { ledgertest.Run(t, testenv.PostgreSQL) }

// TestGivenServer runs the contract on a server that the developer names, such as
// CockroachDB: LEDGER_TEST_URL=postgres://root@127.0.0.1:26257/defaultdb?sslmode=disable.
// The user must be able to create databases.
func TestGivenServer(t *testing.T) {
	server := os.Getenv("LEDGER_TEST_URL")
	if server == "" {
		t.Skip("set LEDGER_TEST_URL to run the contract on another server")
	}
	ledgertest.Run(t, func(t testing.TB) string { return database(t, server) })
}

// database makes a database on a server for one test.
func database(t testing.TB, server string) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Fatal(err)
	}
	name := "ledger_test_" + strings.ToLower(rand.Text()[:10])
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, `DROP DATABASE `+name); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}
