package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/loadtest/bench/cryptocost"
	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/signer/hsm"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// crypto3 returns the three operations that every certificate needs.
func crypto3(b *testing.B) *cryptocost.Bench {
	where := testenv.SoftHSM(b)
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = where.Module, where.TokenLabel, where.PINFile
	c, err := cryptocost.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	return c
}

// BenchmarkCrypto is the mathematics of a certificate, operation by operation.
func BenchmarkCrypto(b *testing.B) {
	for _, op := range crypto3(b).Operations {
		b.Run(op.Name, func(b *testing.B) {
			for b.Loop() {
				if err := op.Do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWholePath runs the whole service as `certmill dev` does, with real servers
// and processes of its own, puts it under load for some seconds, and states the CPU that
// all of them together spent on a certificate. It measures once, however large b.N is.
func BenchmarkWholePath(b *testing.B) {
	if testing.Short() {
		b.Skip("it runs for half a minute")
	}
	testenv.PostgreSQL(b) // skips, with an install line, where the servers are missing
	testenv.Redis(b)
	binary := build(b)
	service, err := stack.Start(b.Context(), binary, b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := service.Stop(); err != nil {
			b.Error(err)
		}
	}()
	cost, err := crypto3(b).Measure(b.Context(), time.Second)
	if err != nil {
		b.Fatal(err)
	}
	run, err := service.Load(b.Context(), "--profile", "short", "--callers", "64", "--duration", "12s", "--warmup", "4s", "--check", "0.01")
	if err != nil {
		b.Fatal(err)
	}
	perCert := 1000 * run.CPUPerUnit()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(perCert, "cpu-µs/cert")
	b.ReportMetric(cost.Sum, "crypto-µs/cert")
	b.ReportMetric(perCert/cost.Sum, "cpu/crypto")
	b.ReportMetric(run.RateReached, "certs/s")
}

func build(b *testing.B) string {
	if binary := os.Getenv("CERTMILL_BIN"); binary != "" {
		return binary
	}
	binary := filepath.Join(b.TempDir(), "certmill")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/certmill/certmill/cmd/certmill").CombinedOutput(); err != nil {
		b.Fatalf("building certmill: %v\n%s", err, out)
	}
	return binary
}

func TestTheTableHoldsWhatTheBenchmarksSay(t *testing.T) {
	in := `goos: linux
pkg: github.com/certmill/certmill/gateway
BenchmarkCSRCheck-2   	   10000	    102400 ns/op	    2100 B/op	      31 allocs/op
BenchmarkRoundTrip/outstanding=64-2 	 5000	 33000 ns/op
pkg: github.com/certmill/certmill/ledger
BenchmarkCommitBatch/rows=256-2 	     100	   9000000 ns/op	     48500 ns/row
pkg: github.com/certmill/certmill/loadtest/bench
BenchmarkWholePath-2 	       1	         0 ns/op	       301.0 certs/s	         2.000 cpu/crypto	       480.0 cpu-µs/cert	       240.0 crypto-µs/cert
PASS
`
	var copied, table strings.Builder
	r, err := read(strings.NewReader(in), &copied)
	if err != nil || copied.String() != in {
		t.Fatalf("%v\n%s", err, copied.String())
	}
	if err := write(&table, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"check its signature 102.4", "64 outstanding 33.0", "256 rows 48.5", "the generator left out 480", "ratio 2.00"} {
		if !strings.Contains(strings.Join(strings.Fields(table.String()), " "), want) {
			t.Errorf("%q is missing in\n%s", want, table.String())
		}
	}
	if !strings.Contains(table.String(), "not measured") {
		t.Error("a step that was not measured is not told")
	}
}
