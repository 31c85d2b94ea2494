package loadtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/target"
)

func TestAWrongAnswerIsLouderThanASlowOne(t *testing.T) {
	out, err := certmill(t, "text", "run", "--url", liar(t), "--rate", "50", "-d", "1s", "--warmup", "0s", "--objective", "p99<1ns")
	if code(err) != ExitWrong || !strings.Contains(out, "WRONG ANSWERS") {
		t.Errorf("exit code %d, error %v\n%s", code(err), err, out)
	}
}

func TestAMissedObjectiveHasItsExitCode(t *testing.T) {
	_, err := certmill(t, "text", "run", "--target", "floor", "--rate", "50", "-d", "1s", "--warmup", "0s", "--objective", "p50<1us")
	if code(err) != ExitObjective || !strings.Contains(err.Error(), "p50 is") {
		t.Errorf("exit code %d, error %v", code(err), err)
	}
}

// A run in which everything failed has measured nothing, and says why on the screen.
func TestARunWithoutAnAnswerFails(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"type":"urn:certmill:problem:denied","title":"denied","status":403,"detail":"not this\nname"}`)
	}))
	t.Cleanup(s.Close)
	for _, load := range [][]string{{"--rate", "50"}, {"--callers", "2"}} {
		out, err := certmill(t, "text", append([]string{"run", "--url", s.URL, "-d", "1s", "--warmup", "0s"}, load...)...)
		if code(err) != exitFailed || !strings.Contains(err.Error(), "requests failed") || !strings.Contains(out, "the first:") ||
			!strings.Contains(out, "not this name") || strings.Contains(out, "Inf") {
			t.Errorf("%v: exit code %d, error %v\n%s", load, code(err), err, out)
		}
	}
}

func TestWrongUsageHasItsExitCode(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "nowhere")
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"run --target floor", "--rate"},
		{"run --target floor --rate 100 --callers 5", "--callers"},
		{"run --target floor --rate foo", "foo"},
		{"run --target nosuch --rate 100", "nosuch"},
		{"run --target floor-nosuch --rate 100", "floor-nosuch"},
		{"run --target floor --rate 100 -d 1s --warmup 3s", "--warmup"},
		{"run --rate 100 --dev " + nowhere, nowhere},
		{"run --rate 100 --url https://127.0.0.1:1 --ca " + nowhere, nowhere},
		{"run --target floor --rate 100 --objective p99", "p99"},
		{"run --target floor --rate 100 --watch gateway", "--watch"},
		{"run --target floor --rate 100 --key-type p1", "p1"},
		{"run --target ocsp-get --rate 100 --url http://127.0.0.1:1", "--serials"},
		{"capacity --target floor --precision 2", "--precision"},
		{"scale --target floor", "--hook"},
		{"fill --dev " + nowhere, nowhere},
		{"floor --statuses -1", "--statuses"},
		{"compare " + nowhere + " " + broken, nowhere},
		{"report " + broken, broken},
		{"mesh --token-key k --target rest", "--target"},
		{"run --target floor --rate 1 --lifetime -1h", "--lifetime"},
		{"run --target floor --rate 1 --lifetime-less 3", "--lifetime-less"},
		{"run --target floor --rate 1 --check NaN", "--check"},
		{"run --target floor --rate 1 --max-reuse 0", "--max-reuse"},
		{"run --target floor --rate 1 --key-type=", "--key-type"},
		{"run --target floor --rate 1 --callers -3", "--callers"},
		{"run --target floor --rate 1 --timeout 0s", "--timeout"},
		{"run --target floor --rate 1 --watch-tree 99999999", "--watch-tree"},
		{"run --target floor --rate 1 --html " + nowhere + "/r.html", "--html"},
		{"run --target floor --rate 1 --url https://127.0.0.1:1", "--url"},
		{"run --target vault --rate 1 --dev " + nowhere, "--url"},
		{"capacity --target floor --start 100 --most 50", "--start"},
		// Flags that do nothing.
		{"run --url https://127.0.0.1:1 --rate 1 --mount m", "--mount does nothing for --target rest: it is for vault"},
		{"run --url https://127.0.0.1:1 --rate 1 --batch 8", "it is for batch"},
		{"capacity --target step --url https://127.0.0.1:1 --token-file t", "it is for batch, cfssl, grpc, istio, rest, stream, vault"},
		{"run --target floor --rate 1 --ca ca.pem", "--ca does nothing for --target floor, which is started here"},
		{"run --target floor --rate 1 --dev .", "--dev does nothing"},
		{"run --target floor-get --rate 1 --key-type p384", "it is for targets that issue"},
		{"run --target floor --rate 1 --serials s", "--serials does nothing"},
		{"run --url https://127.0.0.1:1 --rate 1 --serials s", "it is for ocsp-get, ocsp-post"},
		{"run --target floor --rate 1 --sha256", "without --check-ocsp"},
		{"run --target floor --rate 1 --save-most 5", "without --save"},
		{"run --target floor --rate 1 --check-ocsp-within 5s", "without --check-ocsp"},
		{"run --target floor --callers 1 --in-flight 5", "with --callers"},
		{"run --target floor --callers 1 --seed 5", "with --callers"},
		{"run --target floor --rate 1 --pause 1s", "--repeat"},
		{"run --target floor --rate 1 --lifetime-less 0.2", "without --lifetime"},
		{"run --url https://127.0.0.1:1 --rate 1 --check-row 127.0.0.1:2 --check 0", "--check-row does nothing with --check 0"},
		{"run --target floor --rate 1 --any-names --expect-name a.test", "with --any-names"},
	} {
		_, err := certmill(t, "text", strings.Fields(c.args)...)
		if code(err) != exitUsage || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("loadtest %s: exit code %d, error %v, want %d and %q", c.args, code(err), err, exitUsage, c.want)
		}
	}
}

// The lists of flags that are for some targets name flags that there are.
func TestFlagsForSomeTargetsAreFlags(t *testing.T) {
	f := runCommand().Flags()
	lists := [][]string{forIssuing, givenByFloor}
	for _, name := range target.Names() {
		k, err := target.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, k.Flags)
	}
	for _, c := range conditions {
		lists = append(lists, []string{c.flag})
	}
	for _, name := range slices.Concat(lists...) {
		if f.Lookup(name) == nil {
			t.Errorf("there is no --%s", name)
		}
	}
}

// A run in which nothing fell due, and one that a person ended, are no success for CI.
func TestARunThatMeasuredTooLittleFails(t *testing.T) {
	out, err := certmill(t, "text", "run", "--target", "floor", "--rate", "1e-9", "-d", "300ms", "--warmup", "100ms", "--objective", "p99<25ms")
	if code(err) != exitFailed || !strings.Contains(err.Error(), "no request was due") {
		t.Errorf("exit code %d, error %v\n%s", code(err), err, out)
	}
	for _, err := range []error{ended(nil, context.Canceled), nothingMeasured(context.Canceled)} {
		if code(err) != exitFailed || !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("exit code %d, error %v", code(err), err)
		}
	}
	if err := ended(&exitError{ExitWrong, "wrong"}, context.Canceled); code(err) != ExitWrong {
		t.Errorf("exit code %d, error %v", code(err), err)
	}
	if err := ended(nil, nil); err != nil {
		t.Error(err)
	}
}

// The table comes out although a file cannot be written.
func TestAResultSurvivesAFileThatCannotBeWritten(t *testing.T) {
	taken := t.TempDir() // no file can replace a folder
	if err := os.WriteFile(filepath.Join(taken, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := certmill(t, "text", "run", "--target", "floor", "--rate", "50", "-d", "500ms", "--warmup", "0s", "--json", taken)
	if code(err) != exitFailed || !strings.Contains(err.Error(), "--json") || !strings.Contains(out, "certificates/s") {
		t.Errorf("exit code %d, error %v\n%s", code(err), err, out)
	}
}

// A ledger that cannot be asked is no wrong answer, and a run in which no check could be
// made has not checked.
func TestARunWithoutAnyCheckFails(t *testing.T) {
	out, err := certmill(t, "text", "run", "--target", "floor", "--rate", "50", "-d", "600ms", "--warmup", "0s", "--check", "1", "--check-row", "127.0.0.1:1")
	if code(err) != exitFailed || !strings.Contains(err.Error(), "checks could be made") || !strings.Contains(out, "could not be checked in full") || strings.Contains(out, "WRONG") {
		t.Errorf("exit code %d, error %v\n%s", code(err), err, out)
	}
}

// A step that holds nothing fails the command, and no share of linear is made up.
func TestScaleFailsWhereNothingHolds(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	t.Cleanup(s.Close)
	out, err := certmill(t, "text", "scale", "--url", s.URL, "--signers", "1,2", "--signers-ready", "1ms", "--hook", "true",
		"-d", "300ms", "--warmup", "50ms", "--start", "40", "--precision", "0.5", "--settle", "1ms")
	if code(err) != ExitObjective || !strings.Contains(out, "unknown") || !strings.Contains(out, "http_500") {
		t.Errorf("exit code %d, error %v\n%s", code(err), err, out)
	}
}

// A signer that does not stay is no signer that was measured.
func TestScaleFailsWhereASignerEnds(t *testing.T) {
	out, err := certmill(t, "text", "scale", "--target", "floor", "--signers", "1,2", "--signers-ready", "300ms", "-d", "600ms", "--warmup", "100ms", "--start", "5", "--most", "5", "--settle", "1ms",
		"--objective", "errors<50%,reached>1%", "--", "sh", "-c", "test {n} = 1 && exec sleep 60; exit 3")
	if code(err) != exitFailed || !strings.Contains(fmt.Sprint(err), "signer 2 ended (exit status 3)") || !strings.Contains(out, "5/s") {
		t.Errorf("exit code %d, %v\n%s", code(err), err, out)
	}
}

// The wrong answer is in the result, and the steps before it would be.
func TestAWrongAnswerEndsScale(t *testing.T) {
	out, err := certmill(t, "json", "scale", "--url", liar(t), "--signers", "1,2", "--signers-ready", "1ms", "--hook", "true",
		"-d", "600ms", "--warmup", "100ms", "--settle", "1ms", "--start", "40")
	var r report.Result
	if code(err) != ExitWrong || json.Unmarshal([]byte(out), &r) != nil || len(r.Runs) != 1 || len(r.Runs[0].Checks.Examples) == 0 {
		t.Errorf("exit code %d, %v\n%s", code(err), err, out)
	}
}
