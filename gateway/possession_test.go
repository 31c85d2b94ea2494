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

// startled returns a possession that has seen two CSRs a moment ago.
func startled(cores int) (*possession, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	p := newPossession(cores, 2*time.Millisecond, registry)
	p.latest = [2]time.Time{time.Now(), time.Now()}
	return p, registry
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
			p, registry := startled(2)
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
			if waited != wantWait || count != wantCount || csrs != float64(n) {
				t.Errorf("%d CSRs waited %s, in %d batches with %v", len(ders), waited, count, csrs)
			}
		})
	}
}

// Where few come, or waiting is switched off, a CSR is checked at once and alone.
func TestACSRWithoutCompanyDoesNotWait(t *testing.T) {
	ders := [][]byte{csrFor(t, "a.test"), csrFor(t, "b.test"), csrFor(t, "c.test"), csrFor(t, "d.test")}
	for name, tc := range map[string]struct {
		wait, apart time.Duration
	}{"few come": {2 * time.Millisecond, time.Millisecond}, "off": {0, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				registry := prometheus.NewRegistry()
				p := newPossession(2, tc.wait, registry)
				for _, der := range ders {
					began := time.Now()
					if _, err := p.of(t.Context(), der); err != nil || time.Since(began) != 0 {
						t.Errorf("%v after %s", err, time.Since(began))
					}
					time.Sleep(tc.apart)
				}
				if n, _ := batches(t, registry); n != 0 {
					t.Errorf("%d batches", n)
				}
			})
		})
	}
}

// Good and bad CSRs in one batch: each gets the answer that it gets alone.
func TestABadCSRDoesNotSpoilItsCompany(t *testing.T) {
	p, registry := startled(2)
	p.latest = [2]time.Time{time.Now().Add(time.Minute), time.Now().Add(time.Minute)} // however slow the machine is
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
	if _, csrs := batches(t, registry); p256x8.Supported() && csrs < p256x8.Width {
		t.Errorf("%v CSRs were checked with others", csrs)
	}
}

// A defect in the check of a batch leaves nobody waiting, and nobody taken as checked.
func TestADefectInTheCheckLeavesNobodyWaiting(t *testing.T) {
	p, _ := startled(1)
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
		p.check(batch)
	}()
	for i, c := range batch {
		<-c.done
		if c.proven != nil {
			t.Errorf("%d is proven", i)
		}
	}
	if r, err := p.of(t.Context(), csrFor(t, "b.test")); err != nil || r == nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestWhoHasGoneIsNotChecked(t *testing.T) {
	p, _ := startled(1)
	p.cores <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.of(ctx, csrFor(t, "a.test")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
