// Command bench reads the output of `go test -bench`, passes it on, and ends with one
// table: what a certificate costs step by step, and what the whole path costs beside
// the sum of its cryptography. `make bench` runs it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
)

// step is one line of the table: a metric of a benchmark.
type step struct {
	label string
	// pkg is the end of the package's path, name the benchmark's without the number of
	// processors.
	pkg, name string
	// unit is the metric's.
	unit string
}

var steps = []step{
	{"CSR: parse and check its signature", "/gateway", "BenchmarkCSRCheck", "ns/op"},
	{"prepare: profile, serial, TBS", "/signer", "BenchmarkPrepare/unlinted", "ns/op"},
	{"prepare with lint", "/signer", "BenchmarkPrepare/linted", "ns/op"},
	{"HSM signature (SoftHSM P-256, session copy of the key)", "/signer/hsm", "BenchmarkSign/session_copy", "ns/op"},
	{"HSM signature (stored key)", "/signer/hsm", "BenchmarkSign/stored_key", "ns/op"},
	{"check of the signature", "/loadtest/bench", "BenchmarkCrypto/check_of_the_signature", "ns/op"},
	{"commit, 1 row a statement", "/ledger", "BenchmarkCommitBatch/rows=1", "ns/row"},
	{"commit per row, 8 rows", "/ledger", "BenchmarkCommitBatch/rows=8", "ns/row"},
	{"commit per row, 32 rows", "/ledger", "BenchmarkCommitBatch/rows=32", "ns/row"},
	{"commit per row, 64 rows", "/ledger", "BenchmarkCommitBatch/rows=64", "ns/row"},
	{"commit per row, 256 rows", "/ledger", "BenchmarkCommitBatch/rows=256", "ns/row"},
	{"queue round trip, 1 outstanding", "/gateway", "BenchmarkRoundTrip/outstanding=1", "ns/op"},
	{"queue round trip, 64 outstanding", "/gateway", "BenchmarkRoundTrip/outstanding=64", "ns/op"},
}

// The whole path, by metrics of one benchmark.
const (
	pathPackage = "/loadtest/bench"
	pathName    = "BenchmarkWholePath"
)

func main() {
	results, err := read(os.Stdin, os.Stdout)
	if err == nil {
		err = write(os.Stdout, results)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// results are metrics by package, benchmark and unit.
type results map[[2]string]map[string]float64

// read collects the benchmarks and copies every line.
func read(in io.Reader, out io.Writer) (results, error) {
	all := results{}
	pkg := ""
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if _, err := fmt.Fprintln(out, line); err != nil {
			return nil, err
		}
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = p
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		metrics := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				metrics[fields[i+1]] = v
			}
		}
		all[[2]string{pkg, withoutProcessors(fields[0])}] = metrics
	}
	return all, lines.Err()
}

// withoutProcessors cuts the "-2" that go test adds on more than one processor.
func withoutProcessors(name string) string {
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		if _, err := strconv.Atoi(name[i+1:]); err == nil {
			return name[:i]
		}
	}
	return name
}

// find returns the metrics of a benchmark in the package whose path ends so.
func (r results) find(pkg, name string) map[string]float64 {
	for key, metrics := range r {
		if strings.HasSuffix(key[0], "certmill"+pkg) && key[1] == name {
			return metrics
		}
	}
	return nil
}

func write(w io.Writer, r results) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nWhat a certificate costs\tµs\n")
	for _, s := range steps {
		if v, ok := r.find(s.pkg, s.name)[s.unit]; ok {
			fmt.Fprintf(t, "  %s\t%.1f\n", s.label, v/1000)
		} else {
			fmt.Fprintf(t, "  %s\tnot measured\n", s.label)
		}
	}
	if p := r.find(pathPackage, pathName); p != nil {
		fmt.Fprintf(t, "\nThe whole path (HTTPS, 64 callers)\tCPU µs per certificate\n")
		fmt.Fprintf(t, "  all roles and servers, the generator left out\t%.0f\n", p["cpu-µs/cert"])
		fmt.Fprintf(t, "  its cryptography: CSR check + HSM signature + check of it\t%.0f\n", p["crypto-µs/cert"])
		fmt.Fprintf(t, "  ratio\t%.2f\n", p["cpu/crypto"])
		fmt.Fprintf(t, "  certificates per second\t%.0f\n", p["certs/s"])
	} else {
		fmt.Fprintf(t, "\nThe whole path\tnot measured\n")
	}
	return t.Flush()
}
