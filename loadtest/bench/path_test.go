package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/signer/hsm"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// cpu returns the CPU time of this process. A benchmark's own clock counts what other
// programs take too, on a machine that is not idle.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// crypto3 returns the three operations that every certificate needs.
func crypto3(b *testing.B) map[string]func() error {
	pool, err := material.Make(b.Context(), material.Config{CSRs: 1, Name: "bench.test"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(pool.Get(0).DER)
	if err != nil {
		b.Fatal(err)
	}
	where := testenv.SoftHSM(b)
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = where.Module, where.TokenLabel, where.PINFile
	token, err := hsm.Open(b.Context(), cfg, hsm.Deps{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := token.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	key, err := token.GenerateKey(b.Context(), hsm.KeySpec{Label: "bench " + rand.Text(), Algorithm: hsm.ECDSAP256})
	if err != nil {
		b.Fatal(err)
	}
	local, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("to be signed"))
	signature, err := ecdsa.SignASN1(rand.Reader, local, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	return map[string]func() error{
		"check of the CSR": csr.CheckSignature,
		"HSM signature": func() error {
			_, err := key.SignContext(context.Background(), digest[:], crypto.SHA256)
			return err
		},
		"check of the signature": func() error {
			if !ecdsa.VerifyASN1(&local.PublicKey, digest[:], signature) {
				return errors.New("the signature does not verify")
			}
			return nil
		},
	}
}

// BenchmarkCrypto is the mathematics of a certificate, operation by operation.
func BenchmarkCrypto(b *testing.B) {
	for name, do := range crypto3(b) {
		b.Run(name, func(b *testing.B) {
			before := cpu(b)
			for b.Loop() {
				if err := do(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
		})
	}
}

// cryptoSum returns the CPU microseconds of the three together.
func cryptoSum(b *testing.B) float64 {
	all := crypto3(b)
	const rounds = 2000
	before := cpu(b)
	for range rounds {
		for _, do := range all {
			if err := do(); err != nil {
				b.Fatal(err)
			}
		}
	}
	return float64((cpu(b) - before).Microseconds()) / rounds
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
	sum := cryptoSum(b)
	binary := build(b)
	dir := b.TempDir()
	stop := start(b, binary, dir)
	defer stop()
	run := load(b, binary, dir)
	perCert := 1000 * run.CPUPerUnit()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(perCert, "cpu-µs/cert")
	b.ReportMetric(sum, "crypto-µs/cert")
	b.ReportMetric(perCert/sum, "cpu/crypto")
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

// start runs `certmill dev` until it is up, and returns how to stop it.
func start(b *testing.B, binary, dir string) (stop func()) {
	cmd := exec.Command(binary, "dev", "--dir", dir, "--quiet")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	up, said := make(chan bool, 1), make(chan string, 1)
	go func() {
		var text strings.Builder
		for lines := bufio.NewScanner(out); lines.Scan(); {
			fmt.Fprintln(&text, lines.Text())
			if strings.Contains(lines.Text(), "certmill is up") {
				up <- true
			}
		}
		close(up)
		said <- text.String()
	}()
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		text := <-said
		if err := cmd.Wait(); err != nil {
			b.Errorf("certmill dev: %v\n%s%s", err, text, stderr.String())
		}
	}
	select {
	case ok := <-up:
		if ok {
			return stop
		}
	case <-time.After(2 * time.Minute):
	}
	stop()
	b.Fatal("certmill dev did not come up")
	return nil
}

// load is one run of the load test.
func load(b *testing.B, binary, dir string) *report.Run {
	cmd := exec.Command(binary, "-o", "json", "loadtest", "run", "--dev", dir, "--callers", "64", "--duration", "12s", "--warmup", "4s", "--check", "0.01")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("loadtest: %v\n%s", err, stderr.String())
	}
	var r report.Result
	if err := json.Unmarshal(out, &r); err != nil || len(r.Runs) != 1 || r.Runs[0].OK == 0 {
		b.Fatalf("loadtest gave no run: %v\n%s", err, out)
	}
	return &r.Runs[0]
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
