package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// meter tells what PostgreSQL's processes and log, and our own process, take from its
// making to its report.
type meter struct {
	conn   *pgx.Conn
	server int // process id of PostgreSQL's parent
	from   reading
}

// reading is nanoseconds of CPU and octets of the log.
type reading struct{ server, own, wal int64 }

func newMeter(b *testing.B, url string) *meter {
	b.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(ctx) })
	m := &meter{conn: conn}
	var backend int
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
		b.Fatal(err)
	}
	if m.server, err = parentOf(strconv.Itoa(backend)); err != nil {
		b.Skipf("the server's processes cannot be seen: %v", err)
	}
	m.from = m.read(b)
	return m
}

func (m *meter) report(b *testing.B, rows int) {
	b.Helper()
	now := m.read(b)
	each := func(to, from int64) float64 { return float64(to-from) / float64(rows) }
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/row")
	b.ReportMetric(each(now.server, m.from.server), "db-ns/row")
	b.ReportMetric(each(now.own, m.from.own), "own-ns/row")
	b.ReportMetric(each(now.wal, m.from.wal), "wal-B/row")
}

func (m *meter) read(b *testing.B) reading {
	b.Helper()
	var r reading
	if err := m.conn.QueryRow(context.Background(), `SELECT (pg_current_wal_insert_lsn() - '0/0')::int8`).Scan(&r.wal); err != nil {
		b.Fatal(err)
	}
	children, err := filepath.Glob("/proc/[0-9]*/schedstat")
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range children {
		if parent, err := parentOf(filepath.Base(filepath.Dir(path))); err != nil || parent != m.server {
			continue // another's, or one that has ended meanwhile
		}
		if data, err := os.ReadFile(path); err == nil {
			onCPU, _, _ := strings.Cut(string(data), " ")
			ns, err := strconv.ParseInt(onCPU, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			r.server += ns
		}
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	r.own = u.Utime.Nano() + u.Stime.Nano()
	return r
}

// parentOf reads the parent of a process out of proc(5).
func parentOf(pid string) (int, error) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return 0, err
	}
	_, fields, ok := bytes.Cut(data, []byte(") ")) // a name may hold spaces
	if !ok {
		return 0, fmt.Errorf("process %s has no name", pid)
	}
	return strconv.Atoi(strings.Fields(string(fields))[1])
}
