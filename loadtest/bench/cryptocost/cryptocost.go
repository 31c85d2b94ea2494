// Package cryptocost measures the mathematics that a P-256 certificate cannot do
// without: the check of the CSR's signature, the signature in the HSM, and the check of
// that signature, by the standard library. It is what all else is compared with. Beside it
// stands what the same takes as the service does it.
package cryptocost

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/fixedkey"
	"github.com/certmill/certmill/internal/p256x8"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/signer/hsm"
)

// Operation is one of the three.
type Operation struct {
	Name string
	// Do does it once, by the standard library or in the HSM; it is safe for concurrent use.
	Do func() error
	// Own does it Units times as the service does when it is busy; nil where that is no
	// other way. Likewise safe.
	Own   func() error
	Units int
}

// Bench holds what the operations need.
type Bench struct {
	token *hsm.Token
	// Operations are the three, in the order of a certificate's life.
	Operations []Operation
}

// Open makes a key in the token that cfg names, and a CSR. Close ends the token.
func Open(ctx context.Context, cfg hsm.Config) (*Bench, error) {
	pool, err := material.Make(ctx, material.Config{CSRs: 1, Name: "bench.test"}, nil)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(pool.Get(0).DER)
	if err != nil {
		return nil, err
	}
	b := &Bench{}
	if b.token, err = hsm.Open(ctx, cfg, hsm.Deps{}); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx, request); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

var errSignature = errors.New("the signature does not verify")

func (b *Bench) prepare(ctx context.Context, request *x509.CertificateRequest) error {
	key, err := b.token.GenerateKey(ctx, hsm.KeySpec{Label: "bench " + rand.Text(), Algorithm: hsm.ECDSAP256})
	if err != nil {
		return err
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("the token made a %T for P-256", key.Public())
	}
	known, err := fixedkey.NewP256(public)
	if err != nil {
		return err
	}
	requests := make([]*csr.Unverified, p256x8.Width)
	for i := range requests {
		if requests[i], err = csr.Read(request.Raw); err != nil {
			return err
		}
	}
	digest := sha256.Sum256([]byte("to be signed"))
	sign := func() ([]byte, error) { return key.SignContext(context.Background(), digest[:], crypto.SHA256) }
	signature, err := sign()
	if err != nil {
		return err
	}
	b.Operations = []Operation{
		{Name: "check of the CSR", Do: request.CheckSignature, Units: len(requests), Own: func() error {
			for i, r := range csr.Proven(requests) {
				if r != nil {
					continue
				}
				if _, err := requests[i].Verify(); err != nil {
					return err
				}
			}
			return nil
		}},
		{Name: "HSM signature", Do: func() error { _, err := sign(); return err }},
		{Name: "check of the signature", Do: func() error {
			if !ecdsa.VerifyASN1(public, digest[:], signature) {
				return errSignature
			}
			return nil
		}, Units: 1, Own: func() error {
			if !known.Verify(digest[:], signature) {
				return errSignature
			}
			return nil
		}},
	}
	return nil
}

// Close ends the token.
func (b *Bench) Close() error { return b.token.Close(context.Background()) }

// Cost is CPU time in microseconds.
type Cost struct {
	// Operations are in the order of Bench.Operations; Sum is all of them together.
	Operations []float64 `json:"operations_us"`
	Sum        float64   `json:"sum_us"`
	// Own and OwnSum are the same as the service does it when it is busy.
	Own    []float64 `json:"own_operations_us"`
	OwnSum float64   `json:"own_sum_us"`
}

// Measure does each operation for as long as each says on as many goroutines as there
// are cores, and returns the CPU time of one. All cores are busy, since they are when
// the service works at its limit: where two of them share one core's arithmetic, both
// are slower then. CPU time, not time, since a machine may have other things to do.
func (b *Bench) Measure(ctx context.Context, each time.Duration) (Cost, error) {
	var c Cost
	for _, op := range b.Operations {
		us, err := measure(ctx, op.Do, each)
		if err != nil {
			return c, fmt.Errorf("%s: %w", op.Name, err)
		}
		own := us
		if op.Own != nil {
			if own, err = measure(ctx, op.Own, each/2); err != nil {
				return c, fmt.Errorf("%s, as the service does it: %w", op.Name, err)
			}
			own /= float64(op.Units)
		}
		c.Operations, c.Own = append(c.Operations, us), append(c.Own, own)
		c.Sum += us
		c.OwnSum += own
	}
	return c, nil
}

func measure(ctx context.Context, do func() error, each time.Duration) (float64, error) {
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	before, err := cpu()
	if err != nil {
		return 0, err
	}
	end := time.Now().Add(each)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			const between = 16 // looks at the clock
			for time.Now().Before(end) && ctx.Err() == nil {
				for range between {
					if err := do(); err != nil {
						return err
					}
				}
				done.Add(between)
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	after, err := cpu()
	return float64((after - before).Nanoseconds()) / 1000 / float64(done.Load()), err
}

// cpu returns the CPU time that this process has taken.
func cpu() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
