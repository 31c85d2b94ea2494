package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/p256x8"
	"github.com/certmill/certmill/internal/problem"
)

func csrFor(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// surrounded returns a possession in a gateway with so many requests in work beside any that
// it reads, and what it tells the dispatcher.
func surrounded(cores, others int) (*possession, *prometheus.Registry, *atomic.Int64) {
	registry, expected := prometheus.NewRegistry(), new(atomic.Int64)
	return newPossession(cores, 4*time.Millisecond, possessionDeps{
		underWay: func() int64 { return int64(others + 1) },
		expect:   func(n int) { expected.Add(int64(n)) },
	}, registry), registry, expected
}

// batches returns how many batches were checked, and how many CSRs were in them.
func batches(t *testing.T, r *prometheus.Registry) (n uint64, csrs float64) {
	t.Helper()
	seen, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	h := seen[0].Metric[0].Histogram
	return h.GetSampleCount(), h.GetSampleSum()
}

// A batch goes at the moment when it is full; one that stays small when its first has waited.
func TestCSRsWaitForCompany(t *testing.T) {
	for _, n := range []int{1, 2, p256x8.Width - 1, p256x8.Width, p256x8.Width + 1, 3 * p256x8.Width} {
		var ders [][]byte
		for i := range n {
			ders = append(ders, csrFor(t, fmt.Sprintf("w%d.test", i)))
		}
		synctest.Test(t, func(t *testing.T) {
			p, registry, expected := surrounded(2, many)
			began := time.Now()
			var wait sync.WaitGroup
			for i, der := range ders {
				wait.Go(func() {
					r, err := p.of(t.Context(), der)
					if err != nil || r.DNSNames[0] != fmt.Sprintf("w%d.test", i) {
						t.Errorf("%d of %d: %v, %v", i, n, r, err)
					}
				})
			}
			wait.Wait()
			count, csrs := batches(t, registry)
			waited, wantCount, wantWait := time.Since(began), uint64((n+p256x8.Width-1)/p256x8.Width), time.Duration(0)
			if n%p256x8.Width > 0 {
				wantWait = p.wait
			}
			if !p256x8.Supported() {
				n, wantCount, wantWait = 0, 0, 0
			}
			if n := expected.Load(); n != 0 {
				t.Errorf("%d more are expected than before", n)
			}
			if waited != wantWait || count != wantCount || csrs != float64(n) {
				t.Errorf("%d CSRs waited %s, in %d batches with %v", len(ders), waited, count, csrs)
			}
		})
	}
}

// Where few are under way, or waiting is switched off, a CSR is checked at once and alone;
// from there on it waits the longer the more there are.
func TestTheFewerAreUnderWayTheShorterACSRWaits(t *testing.T) {
	der := csrFor(t, "a.test")
	for _, tc := range []struct {
		others          int
		most, wantWaits time.Duration
	}{
		{0, 4 * time.Millisecond, 0}, {few - 1, 4 * time.Millisecond, 0}, {many, 0, 0},
		{few, 4 * time.Millisecond, 500 * time.Microsecond}, {many - 8, 4 * time.Millisecond, 3 * time.Millisecond},
		{many, 4 * time.Millisecond, 4 * time.Millisecond}, {1000, 4 * time.Millisecond, 4 * time.Millisecond},
	} {
		if !p256x8.Supported() { // each is checked alone
			tc.wantWaits = 0
		}
		synctest.Test(t, func(t *testing.T) {
			p, registry, expected := surrounded(2, tc.others)
			p.wait = tc.most
			var meanwhile atomic.Int64
			time.AfterFunc(tc.wantWaits/2, func() { meanwhile.Store(expected.Load()) })
			began := time.Now()
			if _, err := p.of(t.Context(), der); err != nil || time.Since(began) != tc.wantWaits {
				t.Errorf("%d others, %s at most: %v after %s", tc.others, tc.most, err, time.Since(began))
			}
			synctest.Wait()
			n, _ := batches(t, registry)
			if waits := tc.wantWaits > 0; waits != (n == 1) || waits != (meanwhile.Load() == -1) || expected.Load() != 0 {
				t.Errorf("%d others, %s at most: %d batches, %d expected while it waited, %d at the end", tc.others, tc.most, n, meanwhile.Load(), expected.Load())
			}
		})
	}
}

// Good and bad CSRs in one batch: each gets the answer that it gets alone.
func TestABadCSRDoesNotSpoilItsCompany(t *testing.T) {
	p, registry, expected := surrounded(2, many)
	var wait sync.WaitGroup
	for i := range 40 {
		der := csrFor(t, fmt.Sprintf("w%d.test", i))
		want := ""
		switch i % 4 {
		case 1:
			der[len(der)-1] ^= 1
			want = "signature"
		case 2:
			der = der[:len(der)-1]
			want = "der"
		}
		wait.Go(func() {
			r, err := p.of(t.Context(), der)
			var refused *problem.Error
			switch {
			case want == "" && (err != nil || r.DNSNames[0] != fmt.Sprintf("w%d.test", i)):
				t.Errorf("%d: %v, %v", i, r, err)
			case want != "" && (r != nil || !errors.As(err, &refused) || refused.Rule != want):
				t.Errorf("%d: %v, %v; wanted %s", i, r, err, want)
			}
		})
	}
	wait.Wait()
	if n := expected.Load(); n != 0 {
		t.Errorf("%d more are expected than before", n)
	}
	if _, csrs := batches(t, registry); p256x8.Supported() && csrs < p256x8.Width {
		t.Errorf("%v CSRs were checked with others", csrs)
	}
}

// A defect in the check of a batch leaves nobody waiting, and nobody taken as checked.
func TestADefectInTheCheckLeavesNobodyWaiting(t *testing.T) {
	p, _, expected := surrounded(1, many)
	u, err := csr.Read(csrFor(t, "a.test"))
	if err != nil {
		t.Fatal(err)
	}
	batch := []*heldCSR{{unverified: u, done: make(chan struct{})}, {unverified: &csr.Unverified{}, done: make(chan struct{})}}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no defect")
			}
		}()
		p.check(batch, len(batch))
	}()
	for i, c := range batch {
		<-c.done
		if c.proven != nil {
			t.Errorf("%d is proven", i)
		}
	}
	if n := expected.Load(); n != int64(len(batch)) {
		t.Errorf("%d are expected, not %d", n, len(batch)) // they were taken off before
	}
	if r, err := p.of(t.Context(), csrFor(t, "b.test")); err != nil || r == nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestWhoHasGoneIsNotChecked(t *testing.T) {
	p, _, _ := surrounded(1, many)
	p.cores <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.of(ctx, csrFor(t, "a.test")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
