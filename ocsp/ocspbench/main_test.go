package main

import (
	"os"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/testenv"
)

// TestMain lets the test's binary be the children that the benchmark starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-role" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A small run from end to end: the answers of all servers are checked, the figures are
// worth nothing.
func TestTheBenchmarkRuns(t *testing.T) {
	testenv.Program(t, "redis-server", "redis-server")
	if err := run(t.Context(), 2000, 4, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
}
