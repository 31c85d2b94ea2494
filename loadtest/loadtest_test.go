package loadtest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/loadtest/floor"
	"github.com/certmill/certmill/loadtest/report"
)

// The test binary serves as the floor's program, so that it runs in a process of its
// own as it does for users.
func TestMain(m *testing.M) {
	if os.Getenv("CERTMILL_TEST_FLOOR") != "" {
		c := floorCommand()
		c.SetArgs(os.Args[1:])
		if err := c.ExecuteContext(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	floorStatuses = 300
	floorProgram = func() ([]string, error) {
		path, err := os.Executable()
		return []string{"env", "CERTMILL_TEST_FLOOR=1", path}, err
	}
	goleak.VerifyTestMain(m)
}

// certmill runs `certmill -o <form> loadtest args`.
func certmill(t *testing.T, form string, args ...string) (stdout string, err error) {
	t.Helper()
	root := &cobra.Command{Use: "certmill", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringP("output", "o", "text", "")
	root.AddCommand(Command())
	var out strings.Builder
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SetArgs(append([]string{"-o", form, "loadtest"}, args...))
	err = root.ExecuteContext(t.Context())
	return out.String(), err
}

func code(err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.ExitCode()
	default:
		return 1
	}
}

func TestRunAgainstTheFloor(t *testing.T) {
	dir := t.TempDir()
	jsonFile, htmlFile, saved := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.html"), filepath.Join(dir, "certs.pem")
	out, err := certmill(t, "text", "run", "--target", "floor", "--rate", "150", "-d", "2500ms", "--warmup", "500ms", "--check", "0.5", "--repeat", "2", "--pause", "10ms",
		"--objective", "errors<1%", "--json", jsonFile, "--html", htmlFile, "--save", saved, "--save-most", "50", "--csrs", "50", "--lifetime", "24h")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r, err := report.ReadFile(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Runs) != 2 {
		t.Fatalf("%d runs", len(r.Runs))
	}
	for _, run := range r.Runs {
		// Poisson arrivals: 300 in two seconds, five standard deviations either way.
		if run.Asked < 210 || run.Asked > 390 || run.OK+run.Failed != run.Asked || run.Failed > 0 {
			t.Errorf("asked %d, answered %d, failed %d (%+v)", run.Asked, run.OK, run.Failed, run.Errors)
		}
		if c := run.Checks; c.Wrong != 0 || c.Checked < c.Seen/2-1 || c.Seen < run.OK || len(c.What) != 4 {
			t.Errorf("checks %+v", c)
		}
		if run.CPUPerUnit() <= 0 || run.Use.Own <= 0 || run.Latency.P50 <= 0 {
			t.Errorf("CPU %g, own %g, p50 %g", run.CPUPerUnit(), run.Use.Own, run.Latency.P50)
		}
	}
	for _, want := range []string{"run 2 of 2", "held: errors < 1%", "loadtest_test", "generator"} {
		if !strings.Contains(strings.ReplaceAll(out, "loadtest.test", "loadtest_test"), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if page, err := os.ReadFile(htmlFile); err != nil || !strings.Contains(string(page), "objective held") {
		t.Errorf("the report: %v", err)
	}
	if text, err := certmill(t, "text", "report", jsonFile); err != nil || text != out {
		t.Errorf("report says something else: %v\n%s", err, text)
	}
	data, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	leaves, cas := 0, 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if c.IsCA {
			cas++
		} else {
			leaves++
		}
	}
	if leaves != 50 || cas != 1 {
		t.Errorf("%d certificates and %d issuers saved", leaves, cas)
	}
	if text, err := certmill(t, "text", "compare", jsonFile, jsonFile); err != nil || !strings.Contains(text, "Nothing differs") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestOCSPAgainstTheFloor(t *testing.T) {
	for _, target := range []string{"floor-get", "floor-post"} {
		out, err := certmill(t, "json", "run", "--target", target, "--callers", "4", "-d", "800ms", "--warmup", "100ms", "--check", "0.1")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var r report.Result
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		run := r.Runs[0]
		if run.OK < 50 || run.Failed != 0 || run.Checks.Wrong != 0 || run.Checks.Checked == 0 || r.Plan.Loop != "closed" {
			t.Errorf("%s: %d answered, %d failed, %+v", target, run.OK, run.Failed, run.Checks)
		}
	}
}

// liar answers every request with one and the same certificate, of another key.
func liar(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"w0.load.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	answer := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(answer)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A trial that missed only a percentile, or in which the generator was the limit, may have
// met a bad moment of the machine; one that did not reach its rate has not.
func TestWhichTrialsAreDoubtful(t *testing.T) {
	find := &search{precision: 0.05, most: 1000}
	if err := find.prepare(&options{duration: 2, timeout: 1, inFlight: 1, every: 1, repeat: 1, maxReuse: 1, keyTypes: []string{"p256"}, objective: "p99<10ms"}); err != nil {
		t.Fatal(err)
	}
	run := func(reached float64, failed int64, limit bool) *report.Run {
		r := &report.Run{}
		r.RateAsked, r.RateReached, r.OK, r.Failed, r.Latency.P99 = 100, reached, 100-failed, failed, 20
		r.Generator.Limit = limit
		return r
	}
	for _, c := range []struct {
		name string
		run  *report.Run
		want bool
	}{
		{"slow", run(100, 0, false), true},
		{"not reached", run(50, 0, false), false},
		{"not reached, by the generator's doing", run(50, 0, true), true},
		{"errors", run(100, 20, false), false},
	} {
		if find.objective.Missed(&c.run.Summary) == nil {
			t.Fatalf("%s: it holds", c.name)
		}
		if got := find.doubtful(c.run); got != c.want {
			t.Errorf("%s: doubtful is %t", c.name, got)
		}
	}
}

func TestReuseEndsAClosedLoop(t *testing.T) {
	out, err := certmill(t, "json", "run", "--target", "floor", "--callers", "2", "-d", "30s", "--warmup", "0s", "--csrs", "10", "--max-reuse", "3")
	var r report.Result
	if err != nil || json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if run := r.Runs[0]; run.OK != 30 || run.Reuse != 3 || !strings.Contains(run.Ended, "max-reuse") {
		t.Errorf("%d answered, reuse %g, ended %q", run.OK, run.Reuse, run.Ended)
	}
	if _, err := certmill(t, "text", "run", "--target", "floor", "--rate", "1000", "-d", "30s", "--csrs", "10", "--max-reuse", "3"); err == nil || !strings.Contains(err.Error(), "more than 3") {
		t.Errorf("a run that needs more reuse than allowed began: %v", err)
	}
}

func TestWrongUsageIsToldBeforeAnythingStarts(t *testing.T) {
	for want, args := range map[string][]string{
		"say how much load":  {"run", "--url", "https://a.test"},
		"give one of them":   {"run", "--url", "https://a.test", "--rate", "5", "--callers", "5"},
		"is not a target":    {"run", "--target", "x", "--rate", "5"},
		"must be longer":     {"run", "--rate", "5", "-d", "1s"},
		"--check is a share": {"run", "--rate", "5", "--check", "2"},
		"neither < nor >":    {"run", "--rate", "5", "--objective", "p99"},
		"needs --url":        {"run", "--rate", "5"},
		"not a kind":         {"run", "--url", "https://a.test", "--rate", "burst:x=1"},
		"no `certmill dev`":  {"run", "--dev", t.TempDir(), "--rate", "5"},
		"by --hook, or":      {"scale", "--url", "https://a.test"},
		"rising numbers":     {"scale", "--url", "https://a.test", "--hook", "true", "--signers", "2,1"},
		"--precision":        {"capacity", "--url", "https://a.test", "--precision", "3"},
		"--dev is missing":   {"fill", "--rows", "5"},
		"at least one row":   {"fill", "--dev", stackWithALedger(t), "--rows", "0"},
		"needs --serials":    {"run", "--target", "ocsp-get", "--url", "http://a.test", "--rate", "5"},
	} {
		if _, err := certmill(t, "text", args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one about %q", args, err, want)
		}
	}
}

// stackWithALedger is the folder of a dev stack as far as `fill` looks at it before it
// connects.
func stackWithALedger(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config", "signer-1.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("ledger:\n  url: postgres://127.0.0.1:1/none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTheEdgeIsFound(t *testing.T) {
	for _, c := range []struct{ start, capacity float64 }{{100, 1000}, {5000, 1000}, {1000, 1000}, {1, 37}, {50, 1e6}} {
		f := &search{most: 200_000, precision: 0.05}
		trials := 0
		got, err := f.edge(c.start, func(rate float64) (bool, error) {
			trials++
			return rate <= c.capacity, nil
		})
		want := min(c.capacity, f.most)
		if err != nil || got > want || got < want*0.94-1 || trials > 40 {
			t.Errorf("start %g, capacity %g: found %g in %d trials, %v", c.start, c.capacity, got, trials, err)
		}
	}
	// A rate that held once by luck does not count.
	f, lucky := &search{most: 10_000, precision: 0.05}, true
	got, err := f.edge(1000, func(rate float64) (bool, error) {
		if rate > 800 && rate <= 1200 && lucky {
			lucky = false
			return true, nil
		}
		return rate <= 800, nil
	})
	if err != nil || got > 800 || got < 700 {
		t.Errorf("found %g, %v; the capacity is 800", got, err)
	}
	// One that was found and did not hold again is no reason to begin anew: what held below
	// it is tried next.
	tried := map[float64]int{}
	got, err = f.edge(1000, func(rate float64) (bool, error) {
		tried[rate]++
		return rate <= 2000 && (rate != 1500 || tried[rate] == 1) && (rate <= 1500 || tried[rate] == 1), nil
	})
	if err != nil || got < 1000 || got > 1500 {
		t.Errorf("found %g, %v; 1000 had held", got, err)
	}
	// A search that is ended knows what has held.
	got, err = f.edge(1000, func(rate float64) (bool, error) {
		if rate > 2000 {
			return false, context.Canceled
		}
		return true, nil
	})
	if got != 1500 || !errors.Is(err, context.Canceled) {
		t.Errorf("found %g, %v when it was ended", got, err)
	}
	nothing, err := f.edge(1000, func(float64) (bool, error) { return false, nil })
	if err != nil || nothing != 0 {
		t.Errorf("found %g, %v where nothing holds", nothing, err)
	}
}

// limited serves one request at a time and takes so long for each, as an HSM of one
// core does.
func limited(t *testing.T, each time.Duration) string {
	t.Helper()
	yardstick, err := floor.Open(t.Context(), floor.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), Lifetime: time.Hour, Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- yardstick.Run(ctx) }()
	base, err := url.Parse(yardstick.URL())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	proxy := httputil.NewSingleHostReverseProxy(base)
	proxy.Transport, proxy.ErrorLog = transport, log.New(io.Discard, "", 0)
	core := make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		core <- struct{}{}
		time.Sleep(each)
		<-core
		w.Header().Set("Server-Timing", fmt.Sprintf("queue;dur=0.1, hsm;dur=%d", each.Milliseconds()))
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.Close()
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.URL
}

func TestCapacityFindsWhereAServerGivesWay(t *testing.T) {
	out, err := certmill(t, "json", "capacity", "--url", limited(t, 20*time.Millisecond), "-d", "1500ms", "--warmup", "300ms", "--settle", "300ms",
		"--objective", "p90<300ms,errors<10%", "--start", "10", "--precision", "0.3")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var r report.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	c := r.Capacity
	// 20 ms each are 50/s at the very most, and Poisson arrivals need some room.
	twice := 0
	for _, trial := range c.Trials {
		if trial.Held && trial.Rate == c.Rate {
			twice++
		}
	}
	if c.Rate < 10 || c.Rate > 62 || len(c.Trials) < 3 || twice < 2 {
		t.Errorf("capacity %g of a server of 50/s, held %d times: %+v", c.Rate, twice, c.Trials)
	}
	if why := strings.Join(c.GaveWay, "; "); !strings.Contains(why, "p90 is") && !strings.Contains(why, "reached is") {
		t.Errorf("gave way: %q", why)
	}
	if why := strings.Join(c.GaveWay, "; "); !strings.Contains(why, `"hsm" (99 %)`) && !strings.Contains(why, `"hsm" (100 %)`) {
		t.Errorf("the slowest phase is not named: %q", why)
	}
	if len(r.Runs) != 1 {
		t.Errorf("%d runs at capacity", len(r.Runs))
	}
}

func TestWrongAnswersEndASearch(t *testing.T) {
	out, err := certmill(t, "json", "capacity", "--url", liar(t), "-d", "600ms", "--warmup", "100ms", "--settle", "1ms", "--start", "40")
	var r report.Result
	if code(err) != ExitWrong || json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("exit code %d, %v\n%s", code(err), err, out)
	}
	if c := r.Capacity; c.Rate != 0 || len(c.Trials) != 1 || !strings.Contains(c.GaveWay[0], "wrong answers") {
		t.Errorf("%+v", c)
	}
}

func TestScaleRunsItsHook(t *testing.T) {
	dir := t.TempDir()
	out, err := certmill(t, "json", "scale", "--target", "floor", "--signers", "1,2", "--signers-ready", "1ms", "--hook", `printf '%s ' "$SIGNERS" >> `+filepath.Join(dir, "hook"),
		"-d", "600ms", "--warmup", "100ms", "--start", "5", "--most", "5", "--settle", "1ms", "--objective", "errors<50%,reached>1%")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var r report.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if hook, err := os.ReadFile(filepath.Join(dir, "hook")); err != nil || string(hook) != "1 2 " {
		t.Errorf("the hook saw %q, %v", hook, err)
	}
	if len(r.Scale) != 2 || r.Scale[1].Capacity.Rate != 5 || !r.Scale[1].Capacity.Ceiling || r.Scale[1].Linear != 0 {
		t.Errorf("%+v", r.Scale)
	}
}

// A floor ends with the load test that started it, even one that was killed, and leaves
// nothing behind.
func TestTheFloorEndsWithWhoeverStartedIt(t *testing.T) {
	args, err := floorProgram()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], append(args[1:], "--listen", "127.0.0.1:0", "--end-with-input")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var ready floorReady
	if err = errors.Join(err, json.Unmarshal(line, &ready)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(ready.Dir, "ca.pem")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(ready.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder stays: %v", err)
	}
}

func TestLinear(t *testing.T) {
	step := func(signers int, rate float64, ceiling bool) report.Step {
		return report.Step{Signers: signers, Capacity: report.Capacity{Rate: rate, Ceiling: ceiling}}
	}
	for _, c := range []struct {
		last report.Step
		want float64
	}{{step(4, 360, false), 0.9}, {step(4, 0, false), 0}, {step(4, 400, true), 0}} {
		if got := linear([]report.Step{step(1, 100, false), step(2, 200, false), c.last}); got != c.want {
			t.Errorf("%+v: %g, want %g", c.last, got, c.want)
		}
	}
	if got := linear([]report.Step{step(2, 100, false)}); got != 1 {
		t.Errorf("the first step is %g of itself", got)
	}
}

// The floor is called that, so that two reports can be told apart.
func TestTheFloorIsNotCalledByWhatItStandsFor(t *testing.T) {
	out, err := certmill(t, "json", "run", "--target", "floor", "--rate", "50", "-d", "500ms", "--warmup", "0s", "--profile", "short", "--seed", "7", "--repeat", "2", "--pause", "1ms")
	var r report.Result
	if err != nil || json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Each run has arrivals of its own, or runs would vary less than the service does.
	if r.Runs[0].Asked == r.Runs[1].Asked {
		t.Errorf("two runs asked %d times each", r.Runs[0].Asked)
	}
	if p := r.Plan; p.Target != "floor" || !strings.HasPrefix(p.Summary, "the floor's") || p.Profile != "short" || p.Seed != 7 || p.KeyTypes != "p256" {
		t.Errorf("%+v", p)
	}
}

func TestScaleStartsAndEndsSigners(t *testing.T) {
	dir := t.TempDir()
	_, err := certmill(t, "json", "scale", "--target", "floor", "--signers", "1,3", "--signers-ready", "300ms", "-d", "600ms", "--warmup", "100ms", "--start", "5", "--most", "5", "--settle", "1ms",
		"--objective", "errors<50%,reached>1%", "--", "sh", "-c", `trap 'echo ended > `+dir+`/end-{n}; exit' TERM; echo "$SIGNER" > `+dir+`/begin-{n}; while :; do sleep 0.02; done`)
	if err != nil {
		t.Fatal(err)
	}
	begun, _ := filepath.Glob(filepath.Join(dir, "begin-[123]"))
	ended, _ := filepath.Glob(filepath.Join(dir, "end-[123]"))
	if len(begun) != 3 || len(ended) != 3 {
		t.Errorf("%d signers were started and %d ended, want 3", len(begun), len(ended))
	}
}

// A signer that ends while it is measured spoils the measurement, and a shell's child ends
// with the shell.
func TestScaleSeesASignerEndAndEndsWhatAShellStarted(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	out, err := certmill(t, "text", "scale", "--target", "floor", "--signers", "1,2", "--signers-ready", "1ms", "-d", "3s", "--warmup", "100ms", "--start", "5", "--most", "5", "--settle", "1ms",
		"--objective", "errors<50%,reached>1%", "--", "sh", "-c", "if test {n} = 1; then sleep 600 & echo $! > "+pid+"; wait; else sleep 1; exit 3; fi")
	if code(err) != exitFailed || !strings.Contains(fmt.Sprint(err), "signer 2 ended (exit status 3)") || strings.Count(out, "at least 5/s") != 1 {
		t.Errorf("exit code %d, %v\n%s", code(err), err, out)
	}
	child, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	if state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat"); err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("the shell's child runs: %s", state)
	}
}

func TestADevStackFillsInTheFlags(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config/gateway.yaml":   "listen: 127.0.0.1:8443\ngrpc_listen: 127.0.0.1:8444\ntelemetry:\n  listen: 127.0.0.1:9001\nlimits: {}\n",
		"config/signer-1.yaml":  "telemetry:\n  listen: 127.0.0.1:9002\n",
		"config/signer-12.yaml": "telemetry:\n  listen: 127.0.0.1:9003\n",
		"config/responder.yaml": "listen: 127.0.0.1:8080\n",
		"config/signer-3.yaml":  "telemetry:\n  listen: 127.0.0.1:9004\n", // of an earlier start
		"run/gateway.pid":       fmt.Sprintln(os.Getpid()),
		"run/signer-1.pid":      fmt.Sprintln(os.Getpid()),
		"run/signer-12.pid":     fmt.Sprintln(os.Getpid()),
		"run/signer-3.pid":      "1\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for target, url := range map[string]string{"rest": "https://127.0.0.1:8443", "stream": "127.0.0.1:8444", "ocsp-get": "http://127.0.0.1:8080/"} {
		o := &options{dev: dir, target: target, row: "dev", status: "dev"}
		o.server.KeyFile = "mine.key"
		roles, err := o.fillFromDev()
		if err != nil {
			t.Fatal(err)
		}
		if o.server.URL != url || o.server.KeyFile != "mine.key" || o.roots != filepath.Join(dir, "root.pem") || o.row != "127.0.0.1:8444" || o.status != "http://127.0.0.1:8080/" || o.tree != os.Getppid() {
			t.Errorf("%s: %+v", target, o)
		}
		if len(roles) != 3 || roles[1].Name != "signer" || roles[2].Name != "signer" || roles[0].Metrics != "http://127.0.0.1:9001/metrics" {
			t.Errorf("%+v", roles)
		}
	}
}

func TestAGeneratorThatWasTheLimitIsTold(t *testing.T) {
	run := &report.Run{}
	run.OK, run.Latency.P99, run.Late.P99 = 1000, 30, 12
	run.Use.Own, run.Use.Machine, run.Use.Cores = 0.4, 1.98, 2
	if g := judge(run, false); !g.Limit || !strings.Contains(g.Why, "CPU was full") {
		t.Errorf("%+v", g)
	}
	run.Late.P99 = 0.5
	if g := judge(run, false); g.Limit {
		t.Errorf("%+v", g)
	}
	run.Use.Own = 1e6
	if g := judge(run, true); !g.Limit {
		t.Errorf("%+v", g)
	}
}
