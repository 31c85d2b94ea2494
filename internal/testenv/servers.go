package testenv

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/certmill/certmill/deploy/local"
)

// PostgreSQL returns the URL of a new, empty database on a server shared by the test
// binary. No password is needed. The database is dropped after the test, its
// connections cut.
func PostgreSQL(t testing.TB) (url string) {
	t.Helper()
	server, err := env.sharedPostgres()
	require(t, err)
	name := "test_" + strconv.FormatInt(env.next(), 10)
	require(t, server.CreateDatabase(t.Context(), name))
	t.Cleanup(func() {
		ctx, cancel := startContext()
		defer cancel()
		if err := server.DropDatabase(ctx, name); err != nil {
			t.Errorf("dropping the test's database: %v", err)
		}
	})
	return server.URL(name)
}

func (e *environment) sharedPostgres() (*local.PostgreSQL, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.failed["postgresql"]; err != nil || e.postgres != nil {
		return e.postgres, err
	}
	dir, err := e.folder()
	if err == nil {
		ctx, cancel := startContext()
		defer cancel()
		e.postgres, err = local.StartPostgreSQL(ctx, dir, local.PostgreSQLOptions{Throwaway: true})
	}
	e.failed["postgresql"] = err
	return e.postgres, err
}

// Redis returns host:port of a Redis server that is the test's own, without a
// password. It is stopped after the test.
func Redis(t testing.TB) (addr string) {
	t.Helper()
	ctx, cancel := startContext()
	defer cancel()
	server, err := local.StartRedis(ctx, subfolder(t, "redis"), local.RedisOptions{Throwaway: true})
	require(t, err)
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server.Addr()
}

// NATS returns the URL of a NATS server with JetStream that is the test's own and
// runs inside the test binary. It is stopped after the test.
func NATS(t testing.TB) (url string) {
	t.Helper()
	server, err := local.StartNATS(subfolder(t, "nats"), local.NATSOptions{Throwaway: true})
	require(t, err)
	t.Cleanup(server.Stop)
	return server.URL()
}

// subfolder makes a data directory inside the binary's. Its lock is freed after what
// the test registers later has been cleaned up.
func subfolder(t testing.TB, kind string) *local.Dir {
	t.Helper()
	env.mu.Lock()
	defer env.mu.Unlock()
	parent, err := env.folder()
	require(t, err)
	dir, err := local.OpenDir(filepath.Join(parent.Path(), fmt.Sprintf("%s-%d", kind, env.next())))
	require(t, err)
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}
