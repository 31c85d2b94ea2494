package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// built is the program with failpoints, built once.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// TestReliability shows, on one service of plain processes, what docs/reliability.md
// promises.
func TestReliability(t *testing.T) {
	r := newDrill(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *drill)
	}{
		{"nothing is lost wherever a process dies", nothingIsLostWhereverAProcessDies},
		{"a poisonous order is given up", aPoisonousOrderIsGivenUp},
		{"a rolling restart fails no call", aRollingRestartFailsNoCall},
		{"the ledger is restored by the runbook", theLedgerIsRestoredByTheRunbook},
		{"one sick token of two stops nobody", oneSickTokenOfTwoStopsNobody},
	} {
		// The part before may have left a process that is only just starting.
		if err := r.stack.await(t.Context(), "every role", func() error { return r.stack.ready(t.Context()) }); err != nil {
			t.Fatal(err)
		}
		if !t.Run(part.name, func(t *testing.T) { part.test(t, r) }) {
			return // what follows would fail for the same reason
		}
	}
}

// needServers skips where the servers are not installed, and fails there in CI.
func needServers(t *testing.T) {
	t.Helper()
	for _, program := range []string{"initdb", "redis-server", "softhsm2-util", "pg_dump"} {
		if _, err := local.Find(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// program returns the path of the program with failpoints.
func program(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "certmill-chaos-test-"); built.err != nil {
			return
		}
		// By the profile, as `make build` does: most packages are compiled already.
		out, err := exec.Command("go", "build", "-pgo=auto", "-tags", "failpoints", "-o", filepath.Join(built.dir, "certmill"), "github.com/certmill/certmill/cmd/certmill").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("building certmill: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "certmill")
}

// newDrill brings a stack of plain processes up, and ends it with the test.
func newDrill(t *testing.T) *drill {
	t.Helper()
	needServers(t)
	binary := program(t)
	path, err := os.MkdirTemp("", "certmill-chaos-test-")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := local.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	net := &network{prefix: fmt.Sprintf("127.%d.%d.", 128+os.Getpid()>>8&63, os.Getpid()&255), plain: true}
	s := newStack(dir, binary, net, t.Logf)
	t.Cleanup(func() {
		if err := errors.Join(s.down(), dir.Close(), os.RemoveAll(path)); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.up(ctx); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(path, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	r := &drill{Options: Options{Seed: 1, Rate: 20}, stack: s, rec: judge.NewRecorder(file), say: t.Logf}
	stallCtx, endStalls := context.WithCancel(context.WithoutCancel(t.Context()))
	var stalling sync.WaitGroup
	stalling.Go(func() { r.stalls(stallCtx) })
	t.Cleanup(func() {
		endStalls()
		stalling.Wait()
	})
	callers, err := s.callers()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range callers {
			c.close()
		}
	})
	issuer, err := readCertificate(dir.Path("issuing.pem"))
	if err != nil {
		t.Fatal(err)
	}
	r.watch = &watch{rec: r.rec, issuer: issuer, nodes: s.of("responder"), seed: 1}
	if r.load, err = newLoad(r.rec, callers, r.Rate, r.Seed, r.watch); err != nil {
		t.Fatal(err)
	}
	return r
}

// acquitted judges the run and fails the test for every promise that was broken.
func (r *drill) acquitted(t *testing.T) *Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := r.judge(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range out.Findings {
		t.Log(f)
		if f.Broken > 0 {
			t.Errorf("%s: %v", f, f.Evidence)
		}
	}
	if out.Failed > 0 {
		t.Errorf("%d of %d operations got nothing", out.Failed, out.Operations)
	}
	return out
}
