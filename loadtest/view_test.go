package loadtest

import (
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/report"
)

// shown is a moment of a run.
func shown() (load, func() engine.Progress, report.Sample) {
	waiting, queued, busy, sessions := 12.0, 3.0, 7.0, 8.0
	s := engine.Progress{
		OK: 4200, Failed: 9, Latency: engine.Quantiles{P50: 4.2, P90: 8, P99: 19.5, P999: 40, Max: 61},
		Errors: []engine.Failure{{Kind: "overloaded", Count: 7}, {Kind: "timeout", Count: 2}},
		Last:   engine.Point{Seconds: 1, Asked: 500, OK: 480, Latency: engine.Quantiles{P50: 5, P90: 9, P99: 21, P999: 44, Max: 70}},
	}
	sample := report.Sample{Waiting: &waiting, Queued: &queued, Busy: &busy, Sessions: &sessions, Own: 0.31,
		Cores: map[string]float64{"gateway": 0.42, "signer": 0.63, "idle": 0.001}}
	return load{duration: 30 * time.Second, warmup: 3 * time.Second}, func() engine.Progress { return s }, sample
}

func TestALineOnAPlainOutputEverySoOften(t *testing.T) {
	var out strings.Builder
	v := newView(&out, 5*time.Second)
	l, s, sample := shown()
	for second := range 12 {
		v.show(l, time.Duration(second)*time.Second, s, sample, 0)
	}
	v.clear()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || strings.Contains(out.String(), "\x1b") {
		t.Fatalf("%d lines in 12 seconds:\n%q", len(lines), out.String())
	}
	for _, want := range []string{"5s", "asked 500/s", "reached 480/s", "p50 5 ms", "p99 21 ms", "errors 9 (overloaded 7, timeout 2)", "waiting 12", "queued 3", "HSM 7/8 busy", "cores: generator 0.31 signer 0.63 gateway 0.42"} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("%q is missing in %q", want, lines[0])
		}
	}
	if strings.Contains(lines[0], "idle") {
		t.Errorf("a role that does nothing takes room: %q", lines[0])
	}
}

func TestTheViewOnATerminalStaysInPlace(t *testing.T) {
	var out strings.Builder
	v := newView(&out, time.Second)
	v.terminal = true
	l, s, sample := shown()
	v.show(l, 2*time.Second, s, sample, 0)
	first := out.String()
	for _, want := range []string{"warming up", "2 of 30 s", "so far 4200", "overloaded 7  timeout 2", "p99.9", "HSM 7/8 busy", "waiting 12"} {
		if !strings.Contains(first, want) {
			t.Errorf("%q is missing in\n%s", want, first)
		}
	}
	out.Reset()
	v.show(l, 20*time.Second, s, sample, 2)
	second := out.String()
	// As many lines are taken back as were drawn, whatever their number is now.
	if lines := strings.Count(first, "\n"); !strings.HasPrefix(second, "\x1b["+string(rune('0'+lines))+"A\x1b[J") {
		t.Errorf("%d lines were drawn, and then %q", lines, second[:10])
	}
	if strings.Contains(second, "warming up") || !strings.Contains(second, "WRONG ANSWERS: 2") {
		t.Errorf("after the warm-up, with wrong answers:\n%s", second)
	}
	for line := range strings.Lines(second) {
		if n := len([]rune(strings.TrimSpace(line))); n > 140 { // 120 and an escape
			t.Errorf("a line of %d characters wraps and cannot be taken back: %q", n, line)
		}
	}
	out.Reset()
	v.clear()
	if out.Len() == 0 {
		t.Error("the view stays when the run is over")
	}
}

func TestTheCPUOfAllFitsIntoTheView(t *testing.T) {
	var out strings.Builder
	v := newView(&out, time.Second)
	v.terminal = true
	l, s, sample := shown()
	sample.Cores = map[string]float64{"certmill-dev": 0.12, "gateway": 0.42, "nats-server": 0.21, "ocsp presigner": 0.06, "ocsp responder": 0.02, "postgres": 0.35, "redis-server": 0.01, "signer": 0.63, "worker": 0.07}
	v.show(l, 20*time.Second, s, sample, 0)
	for _, want := range []string{"waiting 12", "queued 3", "HSM 7/8 busy", "generator 0.31  signer 0.63  gateway 0.42  postgres 0.35"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}
