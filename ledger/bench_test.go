package ledger_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/url"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/ledgertest"
)

// durable switches the test server to what a real one does, for the rest of the binary.
func durable(b *testing.B, url string) {
	b.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, sql := range []string{
		`ALTER SYSTEM SET fsync = on`, `ALTER SYSTEM SET full_page_writes = on`, `ALTER SYSTEM SET synchronous_commit = on`,
		`SELECT pg_reload_conf()`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			b.Fatal(err)
		}
	}
}

// meshEntries returns a maker of certificates as a service mesh asks for them: the caller
// is the only name, a day without revocation, of the size of a P-256 certificate.
func meshEntries(b *testing.B) func() ledger.Entry {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Issuer: pkix.Name{CommonName: "issuing"}, NotAfter: time.Now().Add(24 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: "certmill.test", Path: "/ns/fleet-000/sa/workload-000000000"}}, AuthorityKeyId: make([]byte, 20), SubjectKeyId: make([]byte, 20),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	return func() ledger.Entry {
		e := ledgertest.Entry(b, time.Now(), 24*time.Hour)
		id := fmt.Sprintf("spiffe://certmill.test/ns/fleet-%03d/sa/workload-%09d", rand.N(512), rand.N(100_000))
		e.Names, e.Caller = []string{"uri:" + id}, "mtls:"+id
		e.Profile, e.Owner, e.Service, e.Environment, e.Revocation = "workload", "", "", "", 0
		e.DER, e.SPKI = slices.Concat(der[:len(der)-60], e.DER[:60]), sha256.Sum256(spki)
		return e
	}
}

// BenchmarkCommitBatch is one connection. ns/row is the time of a certificate, db-ns/row
// and own-ns/row the CPU that it takes in PostgreSQL's processes and in ours, wal-B/row
// what PostgreSQL logs for it.
func BenchmarkCommitBatch(b *testing.B) {
	for _, size := range []int{1, 8, 32, 64, 256} {
		b.Run(fmt.Sprintf("rows=%d", size), func(b *testing.B) {
			where := testenv.PostgreSQL(b)
			l := ledgertest.Open(b, where, ledger.Deps{})
			durable(b, where)
			ctx := context.Background()
			commit := func(batch []ledger.Entry) {
				for _, r := range l.CommitBatch(ctx, batch) {
					if r.Err != nil || r.Duplicate {
						b.Fatal(r)
					}
				}
			}
			meshEntry := meshEntries(b)
			commit([]ledger.Entry{meshEntry()}) // the connection and the plan
			batches := make([][]ledger.Entry, b.N)
			for n := range batches {
				batches[n] = make([]ledger.Entry, size)
				for i := range batches[n] {
					batches[n][i] = meshEntry()
				}
			}
			runtime.GC() // the batches are not the ledger's garbage
			m := newMeter(b, where)
			b.ResetTimer()
			for _, batch := range batches {
				commit(batch)
			}
			b.StopTimer()
			m.report(b, b.N*size)
		})
	}
}

// BenchmarkCommitter is the group commit with 64 and 256 callers at once.
func BenchmarkCommitter(b *testing.B) {
	for _, callers := range []int{64, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			url := testenv.PostgreSQL(b)
			l := ledgertest.Open(b, url, ledger.Deps{})
			durable(b, url)
			c, err := ledger.NewCommitter(l, ledger.DefaultCommitterConfig(), ledger.Deps{})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- c.Run(ctx) }()
			entries := make([]ledger.Entry, b.N)
			for i := range entries {
				entries[i] = ledgertest.Entry(b, time.Now(), 24*time.Hour)
			}
			var next atomic.Int64
			b.SetParallelism(callers / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := c.Commit(ctx, entries[next.Add(1)-1]); err != nil {
						b.Error(err)
					}
				}
			})
			b.StopTimer()
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
}

// BenchmarkLookup is a signer's question about 32 requests that it may have signed before.
func BenchmarkLookup(b *testing.B) {
	l := ledgertest.Open(b, testenv.PostgreSQL(b), ledger.Deps{})
	ctx := context.Background()
	batch := make([]ledger.Entry, 32)
	keys := make([]ledger.RequestKey, len(batch))
	for i := range batch {
		batch[i] = ledgertest.Entry(b, time.Now(), 24*time.Hour)
		keys[i] = batch[i].RequestKey
	}
	l.CommitBatch(ctx, batch)
	for b.Loop() {
		if found, err := l.Lookup(ctx, keys); err != nil || len(found) != len(keys) {
			b.Fatal(len(found), err)
		}
	}
}

// BenchmarkSweepStatuses is a page of 1,000 in the middle of a partition of 25,600.
func BenchmarkSweepStatuses(b *testing.B) {
	l := ledgertest.Open(b, testenv.PostgreSQL(b), ledger.Deps{})
	ctx := context.Background()
	var middle ledger.Entry
	for range 100 {
		batch := make([]ledger.Entry, ledger.MaxBatch)
		for i := range batch {
			batch[i] = ledgertest.Entry(b, time.Now(), 24*time.Hour)
			if batch[i].Serial[6] == 0x40 {
				middle = batch[i]
			}
		}
		l.CommitBatch(ctx, batch)
	}
	for b.Loop() {
		if page, err := l.SweepStatuses(ctx, middle.Serial, 1000); err != nil || len(page) != 1000 {
			b.Fatal(len(page), err)
		}
	}
}
