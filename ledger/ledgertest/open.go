// Package ledgertest is the contract of the ledger as a test suite, with what other
// packages need to test against a real ledger.
package ledgertest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// Open migrates the database at url and opens it. It is closed when the test ends.
func Open(t testing.TB, url string, deps ledger.Deps) *ledger.Ledger {
	t.Helper()
	cfg := config.Ledger{URL: url, MaxConnections: 24}
	if err := ledger.Migrate(context.Background(), cfg); err != nil {
		t.Fatalf("migrating: %v", err)
	}
	return Reopen(t, url, deps)
}

// Reopen opens a database that Open has migrated, as another process would.
func Reopen(t testing.TB, url string, deps ledger.Deps) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(context.Background(), config.Ledger{URL: url, MaxConnections: 24}, deps)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	t.Cleanup(l.Close)
	return l
}

// Entry returns an entry as a signer makes it, valid from a minute before now for
// lifetime, with a random serial, key and CSR. Its DER is 600 random octets.
func Entry(t testing.TB, now time.Time, lifetime time.Duration, names ...string) ledger.Entry {
	t.Helper()
	now = now.UTC().Truncate(time.Second)
	notBefore, notAfter := now.Add(-time.Minute), now.Add(lifetime)
	n, err := serial.New(rand.Reader, 1, notBefore, notAfter)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		names = []string{fmt.Sprintf("dns:%s.example.test", n.String()[16:])}
	}
	der := make([]byte, 600)
	_, _ = rand.Read(der)
	return ledger.Entry{
		Certificate: ledger.Certificate{
			Serial: n, Issuer: 1, Profile: "server", ProfileVersion: "0123456789ab",
			Names: names, SPKI: sha256.Sum256(der), Caller: "mtls:test", Owner: "team",
			Service: "web", Environment: "test", NotBefore: notBefore, NotAfter: notAfter,
			DER: der, Revocation: ledger.RevocationOCSP,
		},
		RequestKey: ledger.NewRequestKey("mtls:test", n.String()),
		CSR:        sha256.Sum256(n[:]),
		ReuseUntil: now.Add(time.Hour),
	}
}
