package report

import (
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/certmill/certmill/loadtest/engine"
)

func TestStudentQuantilesAgreeWithTheTable(t *testing.T) {
	for _, c := range []struct{ p, df, want float64 }{{0.975, 1, 12.706}, {0.975, 4, 2.776}, {0.975, 10, 2.228}, {0.995, 8, 3.355}, {0.95, 30, 1.697}, {0.975, 1e6, 1.960}} {
		if got := studentQuantile(c.p, c.df); math.Abs(got-c.want) > 0.001 {
			t.Errorf("t(%g, %g) = %.4f, want %.3f", c.p, c.df, got, c.want)
		}
	}
}

// result makes n runs whose measures vary by noise around the given ones.
func result(random *rand.Rand, n int, rate, p99, noise float64) *Result {
	r := &Result{Format: Format}
	for range n {
		near := func(v float64) float64 { return v * (1 + noise*random.NormFloat64()) }
		r.Runs = append(r.Runs, Run{Summary: engine.Summary{Asked: 1001, OK: 1000, Failed: 1, RateReached: near(rate), RateAsked: rate, Seconds: 10,
			Latency: engine.Quantiles{P50: near(p99 / 4), P90: near(p99 / 2), P99: near(p99), P999: near(2 * p99), Mean: near(p99 / 3)}}})
	}
	return r
}

func TestCompareFindsWhatDiffersAndNothingElse(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	alarms := 0
	for range 400 {
		c, err := Compare(result(random, 5, 1000, 20, 0.05), result(random, 5, 1000, 20, 0.05))
		if err != nil {
			t.Fatal(err)
		}
		if c.Any(Better) || c.Any(Worse) {
			alarms++
		}
	}
	if alarms > 36 { // 5 % of 400 is 20, and 36 is 3.7 standard deviations above
		t.Errorf("%d of 400 comparisons of the same thing found a difference; 20 are to be expected", alarms)
	}
	found := 0
	for range 100 {
		c, err := Compare(result(random, 5, 1000, 20, 0.03), result(random, 5, 1300, 30, 0.03))
		if err != nil {
			t.Fatal(err)
		}
		verdicts := map[string]Verdict{}
		for _, d := range c.Metrics {
			verdicts[d.Name] = d.Verdict
		}
		if verdicts["rate reached"] == Better && verdicts["p99"] == Worse && verdicts["errors"] == Noise {
			found++
		}
	}
	if found < 95 {
		t.Errorf("30 %% more rate and 50 %% more p99 were seen in %d of 100 comparisons", found)
	}
}

func TestCompareSaysWhenItCannotTell(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	if _, err := Compare(result(random, 1, 1000, 20, 0), result(random, 5, 1000, 20, 0)); err == nil {
		t.Error("one run was compared")
	}
	a, b := result(random, 3, 1000, 20, 0.01), result(random, 3, 1000, 20, 0.01)
	b.Machine.Cores, b.Plan.Connections, b.Runs[0].Checks.Wrong, a.Runs[1].Generator.Limit = 64, 8, 1, true
	c, err := Compare(a, b)
	if err != nil || len(c.Warnings) != 4 {
		t.Errorf("%v, warnings %q", err, c.Warnings)
	}
	var out strings.Builder
	if err := c.Write(&out); err != nil || !strings.Contains(out.String(), "warning: the machines differ") {
		t.Errorf("%v\n%s", err, out.String())
	}
	// Equal to the last digit: no variance, no difference.
	same := result(random, 2, 1000, 20, 0)
	if c, err := Compare(same, same); err != nil || c.Any(Better) || c.Any(Worse) {
		t.Errorf("%v %+v", err, c)
	}
}

func TestObjectives(t *testing.T) {
	s := &engine.Summary{OK: 990, Failed: 10, RateAsked: 100, RateReached: 99, Latency: engine.Quantiles{P50: 5, P99: 24, P999: 80, Max: 100}}
	for text, missed := range map[string]int{
		"p99<25ms": 0, "p99<24ms": 1, "p99 < 25ms, errors < 2%": 0, "errors<1%": 1, "errors<0.02": 0,
		"p50<6ms,p99.9<50ms,max<1s": 1, "reached>98%": 0, "rate>99": 1, "": 0,
	} {
		o, err := ParseObjective(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Missed(s); len(got) != missed {
			t.Errorf("%q: missed %q, want %d", text, got, missed)
		}
	}
	for _, bad := range []string{"p99", "p99>5ms", "p42<5ms", "errors<x", "rate<5", "p99<-1s", "p99<25", "errors<5", "errors<0", "reached>100%", "errors<NaN", "reached>200%"} {
		if o, err := ParseObjective(bad); err == nil {
			t.Errorf("%q was taken for %q", bad, o)
		}
	}
	o, _ := ParseObjective("p99<25ms,errors<2%")
	more, _ := ParseObjective("errors<0.1%,reached>98%")
	if got := o.With(more).String(); got != "p99 < 25ms, errors < 2%, reached > 98%" {
		t.Errorf("together: %q", got)
	}
	if got := o.Missed(&engine.Summary{}); len(got) != 1 || got[0] != "nothing was answered" {
		t.Errorf("a run without an answer missed %q", got)
	}
}

// What makes two results those of different work is named, with both values.
func TestCompareNamesWhatDiffersInThePlans(t *testing.T) {
	a := Plan{Target: "rest", URL: "https://a", Profile: "short", KeyTypes: "p256", Check: 0.05, Seed: 1}
	b := a
	b.Target, b.URL, b.Seed, b.Keys = "grpc", "b:1", 2, "9 CSRs"
	if got := planDiffers(a, b); len(got) != 0 {
		t.Errorf("%q differ", got)
	}
	a.Loop, b.Loop, a.Connections, b.Connections = "open", "open", 64, 4
	if got := planDiffers(a, b); len(got) != 0 {
		t.Errorf("%q differ between two targets", got)
	}
	if got := planDiffers(Plan{Unit: "certificates"}, Plan{Unit: "certificates", KeyTypes: "p256", Check: 0.05, Name: "n"}); len(got) != 0 {
		t.Errorf("an older result differs in %q", got)
	}
	b.KeyTypes, b.Profile, b.CheckRow = "rsa2048", "server", true
	if got := planDiffers(a, b); !slices.Equal(got, []string{"profile short and server", "key_types p256 and rsa2048", "check_row false and true"}) {
		t.Errorf("%q", got)
	}
}

func TestACapacityThatWasNotLookedForToTheEndSaysSo(t *testing.T) {
	for _, c := range []struct {
		capacity Capacity
		want     string
		never    string
	}{
		{Capacity{Rate: 60, Ceiling: true}, "at least 60/s (--most)", "ended early"},
		{Capacity{Rate: 150, Ended: "interrupted"}, "ended early", "held: "},
		{Capacity{Rate: 150}, "held: p99 < 25ms", "ended early"},
	} {
		var out strings.Builder
		r := &Result{Capacity: &c.capacity, Objective: "p99 < 25ms"}
		if err := r.WriteTable(&out); err != nil || !strings.Contains(out.String(), c.want) || strings.Contains(out.String(), c.never) {
			t.Errorf("%v: %q is missing, or %q is there, in\n%s", err, c.want, c.never, out.String())
		}
	}
}

func TestFewAnswersAreTold(t *testing.T) {
	for n, want := range map[int64]bool{0: false, 990: true, 1000: false} { // in batches of ten
		r := &Result{Plan: Plan{Batch: 10}, Runs: []Run{{Summary: engine.Summary{Asked: 100, OK: n, Latency: engine.Quantiles{Count: n}}}}}
		var out strings.Builder
		if err := r.WriteTable(&out); err != nil || strings.Contains(out.String(), "run longer") != want {
			t.Errorf("%d answers, %v:\n%s", n, err, out.String())
		}
	}
}

// What a hostile server says cannot reach the terminal's controls.
func TestTheTableIsOfPrintableText(t *testing.T) {
	r := &Result{Runs: []Run{{}}}
	r.Runs[0].Errors = []engine.Failure{{Kind: "http_500", Count: 1, Example: "a\x1b[31m\x07\nb" + strings.Repeat("é", 300)}}
	var out strings.Builder
	if err := r.WriteTable(&out); err != nil || strings.ContainsAny(out.String(), "\x1b\x07") || !strings.Contains(out.String(), `the first: a\x1b[31m\a b`) || !strings.Contains(out.String(), "é…") {
		t.Errorf("%v\n%q", err, out.String())
	}
}

// Nor can what somebody has written into a result file.
func TestTextsOfAFileCannotControlTheTerminal(t *testing.T) {
	hostile := "a\x1b[2J\u009b2J\rb\xff"
	r := &Result{Objective: hostile, Missed: []string{hostile}, Runs: []Run{{Ended: hostile}}, Capacity: &Capacity{GaveWay: []string{hostile}}}
	r.Runs[0].Errors = []engine.Failure{{Kind: hostile, Count: 1}}
	c := &Comparison{A: hostile, B: hostile, Warnings: []string{hostile}}
	var out strings.Builder
	if err := errors.Join(r.WriteTable(&out), c.Write(&out)); err != nil || strings.ContainsAny(out.String(), "\x1b\u009b\r") || !utf8.ValidString(out.String()) || strings.Count(out.String(), "[2J") < 7 {
		t.Errorf("%v\n%q", err, out.String())
	}
}

func TestResultsAreReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	r := result(rand.New(rand.NewPCG(5, 6)), 2, 10, 20, 0.1)
	if err := r.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	again, err := ReadFile(path)
	if err != nil || again.Runs[1].Latency != r.Runs[1].Latency {
		t.Errorf("%v", err)
	}
	r.Runs = append(r.Runs, Run{})
	if err := r.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), "runs[2]") {
		t.Errorf("a file with an empty run: %v", err)
	}
	r.Format = 99
	if err := r.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path); err == nil {
		t.Error("another version's file was read")
	}
}
