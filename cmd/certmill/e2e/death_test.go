package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// TestSignerKilledDuringIssuance kills signers with SIGKILL while 500 certificates are
// issued: every request succeeds or gets a stated error within its deadline, every
// certificate that was returned is in the ledger once, and no serial comes twice.
func TestSignerKilledDuringIssuance(t *testing.T) {
	const requests, callers = 500, 16
	const deadline = 20 * time.Second
	run, name := unique("killed")
	s := dev(t)
	g := s.gateway(t)
	csrs := make([][]byte, requests)
	for i := range csrs {
		csrs[i] = newCSR(t, name)
	}

	var done, failed atomic.Int64
	var mu sync.Mutex
	returned := map[string]int{}
	work := make(chan int)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := range work {
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				began := time.Now()
				res, err := g.Issue(ctx, &certmillv1.IssueRequest{Csr: csrs[i], Profile: "server", RequestId: fmt.Sprintf("%s-%d", run, i)})
				cancel()
				if took := time.Since(began); took > deadline+time.Second {
					t.Errorf("request %d took %s, beyond its deadline", i, took)
				}
				done.Add(1)
				if err != nil {
					// The only excuses for losing a signer.
					if k := problem.FromStatus(err).Kind; k != problem.Unavailable && k != problem.Overloaded {
						t.Errorf("request %d: %v", i, err)
					}
					failed.Add(1)
					continue
				}
				if _, err := x509.ParseCertificate(res.Certificate.Der); err != nil {
					t.Errorf("request %d: %v", i, err)
				}
				mu.Lock()
				returned[res.Certificate.Serial]++
				mu.Unlock()
			}
		})
	}
	for i := range requests {
		switch i {
		case requests / 5:
			s.kill(t, "signer-1")
		case requests / 2:
			s.kill(t, "signer-2")
		}
		work <- i
	}
	close(work)
	wg.Wait()

	ledger := inLedger(t, g, name)
	for serial, n := range returned {
		if n != 1 {
			t.Errorf("serial %s was returned for %d requests", serial, n)
		}
		if ledger[serial] != 1 {
			t.Errorf("certificate %s was returned and stands in the ledger %d times", serial, ledger[serial])
		}
	}
	t.Logf("%d requests, %d certificates, %d stated errors, %d rows in the ledger", requests, len(returned), failed.Load(), len(ledger))
	if len(returned)+int(failed.Load()) != requests || done.Load() != requests {
		t.Errorf("%d certificates and %d errors do not make %d requests", len(returned), failed.Load(), requests)
	}
	if len(returned) < requests*9/10 {
		t.Errorf("only %d of %d requests got a certificate although a signer was alive or restarting", len(returned), requests)
	}
	// Repeating all of it makes nothing new: each key finds its certificate.
	for i := 0; i < requests; i += 25 {
		var res *certmillv1.IssueResponse
		err := g.Retry(t.Context(), func(ctx context.Context) (err error) {
			res, err = g.Issue(ctx, &certmillv1.IssueRequest{Csr: csrs[i], Profile: "server", RequestId: fmt.Sprintf("%s-%d", run, i)})
			return err
		})
		if err != nil {
			t.Fatalf("repeating request %d: %v", i, err)
		}
		if returned[res.Certificate.Serial] == 0 && !res.Certificate.Duplicate && ledger[res.Certificate.Serial] != 0 {
			t.Errorf("repeating request %d returned %s as new", i, res.Certificate.Serial)
		}
	}
	if after := inLedger(t, g, name); len(after) > requests {
		t.Errorf("the ledger has %d certificates for %d requests", len(after), requests)
	}
}

// TestOneKeyOneCertificate asks 1,000 times with one idempotency key from 50 goroutines.
func TestOneKeyOneCertificate(t *testing.T) {
	run, name := unique("one-key")
	s := dev(t)
	g := s.gateway(t)
	csr := newCSR(t, name)
	var mu sync.Mutex
	serials := map[string]int{}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				res, err := g.Issue(t.Context(), &certmillv1.IssueRequest{Csr: csr, Profile: "server", RequestId: run})
				if err != nil {
					t.Errorf("%v", err)
					continue
				}
				mu.Lock()
				serials[res.Certificate.Serial]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(serials) != 1 {
		t.Errorf("%d certificates for one key: %v", len(serials), serials)
	}
	if rows := inLedger(t, g, name); len(rows) != 1 {
		t.Errorf("%d rows in the ledger: %v", len(rows), rows)
	}
	_, err := g.Issue(t.Context(), &certmillv1.IssueRequest{Csr: newCSR(t, name), Profile: "server", RequestId: run})
	if k := problem.FromStatus(err).Kind; k != problem.Conflict {
		t.Errorf("the key with another CSR: %v", err)
	}
}

// TestOneKeyOneCertificateByTheCommandLine runs `certmill issue` 1,000 times with one
// idempotency key from 50 goroutines.
func TestOneKeyOneCertificateByTheCommandLine(t *testing.T) {
	const goroutines, each = 50, 20
	run, name := unique("cli-key")
	s := dev(t)
	csr := t.TempDir() + "/csr.der"
	writeFile(t, csr, newCSR(t, name))
	var mu sync.Mutex
	printed := map[string]int{}
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range each {
				out, err := s.run(t, "issue", "--profile", "server", "--csr", csr, "--out", "-", "--request-id", run)
				if err != nil {
					t.Errorf("%v\n%s", err, out)
					return
				}
				mu.Lock()
				printed[out]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(printed) != 1 {
		t.Errorf("%d different certificates were printed", len(printed))
	}
	if rows := inLedger(t, s.gateway(t), name); len(rows) != 1 {
		t.Errorf("%d rows in the ledger: %v", len(rows), rows)
	}
}
