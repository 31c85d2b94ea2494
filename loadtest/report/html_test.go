package report

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/observe"
)

// sample makes a result with something in every part of the report: two minutes at
// 2,000/s with a stall, errors, phases, roles and gauges.
func sample() *Result {
	random := rand.New(rand.NewPCG(7, 7))
	near := func(v, share float64) float64 { return v * (1 + share*(2*random.Float64()-1)) }
	pointer := func(v float64) *float64 { return &v }
	run := Run{Summary: engine.Summary{
		Seconds: 115, Asked: 230_112, OK: 229_650, Failed: 462, RateAsked: 2001, RateReached: 1996.9, HeldBack: 812,
		Latency: engine.Quantiles{Count: 230_112, Mean: 7.91, P50: 4.1, P90: 9.7, P99: 61, P999: 910, Max: 1210},
		Service: engine.Quantiles{Count: 230_112, Mean: 5.6, P50: 4, P90: 8.2, P99: 19, P999: 240, Max: 1020},
		Late:    engine.Quantiles{Count: 229_300, Mean: 0.09, P50: 0.06, P90: 0.2, P99: 0.44, P999: 1.9, Max: 7},
		Errors: []engine.Failure{{Kind: "overloaded", Count: 420, Example: "the gateway is full <in flight>; try again"},
			{Kind: "timeout", Count: 42, Example: "i/o timeout"}},
		Phases: []engine.PhaseSummary{
			{Name: "commit", Quantiles: engine.Quantiles{Mean: 1.4, P99: 6}}, {Name: "hsm", Quantiles: engine.Quantiles{Mean: 0.9, P99: 3}},
			{Name: "prepare", Quantiles: engine.Quantiles{Mean: 0.06, P99: 0.4}}, {Name: "queue", Quantiles: engine.Quantiles{Mean: 1.1, P99: 9}},
			{Name: "total", Quantiles: engine.Quantiles{Mean: 4.2, P99: 17}}},
	}}
	for i := range 60 {
		q := float64(i) * 0.1
		run.Curve = append(run.Curve, engine.CurvePoint{Q: 1 - math.Pow(10, -q), Ms: 3 + math.Pow(1.12*q, 4)})
		run.ServiceCurve = append(run.ServiceCurve, engine.CurvePoint{Q: 1 - math.Pow(10, -q), Ms: 2.9 + math.Pow(0.82*q, 3.4)})
	}
	for i := range 120 {
		stall := 1.0
		if i >= 70 && i < 74 {
			stall = 12
		}
		p := engine.Point{At: float64(i), Seconds: 1, Warmup: i < 5, Asked: int64(near(2000, 0.03)),
			Latency: engine.Quantiles{Count: 1, P50: near(4, 0.1) * stall, P90: near(9, 0.1) * stall, P99: near(21, 0.3) * stall, P999: near(60, 0.3) * stall, Max: near(90, 0.4) * stall},
			Phases:  map[string]float64{"queue": near(1.1, 0.2) * stall, "prepare": 0.06, "hsm": near(0.9, 0.1), "commit": near(1.4, 0.1) * stall, "total": near(4.2, 0.05) * stall}}
		p.OK = p.Asked
		if stall > 1 {
			p.OK, p.Failed, p.Errors = p.Asked/2, 115, map[string]int64{"overloaded": 105, "timeout": 10}
		}
		run.Series = append(run.Series, p)
		run.Samples = append(run.Samples, Sample{At: float64(i + 1), Own: near(0.3, 0.1), Machine: near(1.8, 0.08),
			Cores:   map[string]float64{"gateway": near(0.4, 0.1), "signer": near(0.55, 0.1), "postgres": near(0.3, 0.2), "dev": near(0.12, 0.2), "ocsp presigner": near(0.06, 0.2), "redis-server": 0.01, "ocsp responder": 0.004},
			Waiting: pointer(near(9, 0.6) * stall), Queued: pointer(near(3, 0.8) * stall), Busy: pointer(near(5, 0.3)), Sessions: pointer(8)})
	}
	run.Use = observe.Use{Seconds: 115, Own: 0.3, Machine: 1.8, Cores: 2, Roles: []observe.RoleUse{
		{Name: "gateway", Cores: 0.4, CPUSeconds: 46, RSS: 61e6}, {Name: "postgres", Cores: 0.3, CPUSeconds: 34, RSS: 240e6}, {Name: "signer", Cores: 0.55, CPUSeconds: 63, RSS: 88e6}}}
	run.Checks = check.Summary{Seen: 229_650, Checked: 11_482, Share: 0.05, What: []string{"key", "names", "chain", "lifetime"}, Serials: "229650, each compared with all others"}
	run.Generator, run.Reuse = Generator{Cores: 0.3}, 10.4
	return &Result{
		Format: Format, Started: time.Date(2026, 11, 20, 18, 0, 0, 0, time.UTC), Runs: []Run{run},
		Machine: observe.Machine{Cores: 2, CPU: "AMD EPYC", Memory: "24 GiB", Kernel: "6.1", OS: "linux/amd64", Go: "go1.26"},
		Plan: Plan{Target: "rest", Summary: "certmill POST /v1/certificates", URL: "https://127.0.0.1:8443", Unit: "certificates", Loop: "open", Schedule: "poisson:rate=2000",
			Seconds: 120, Warmup: 5, Timeout: 10, InFlight: 1024, Connections: 64, Keys: "1024 CSRs of 256 keys (p256), each used at most 1000 times"},
		Objective: "p99 < 25ms, errors < 0.1%", Missed: []string{"p99 is 61 ms, bound 25 ms", "errors is 0.201%, bound 0.1%"},
	}
}

// written writes the report and returns its text; with -artifacts the file stays.
func written(t *testing.T, name string, r *Result) string {
	t.Helper()
	path := filepath.Join(t.ArtifactDir(), name)
	if err := r.WriteHTML(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTheReportIsOneWellFormedFileThatLoadsNothing(t *testing.T) {
	text := written(t, "run.html", sample())
	for _, outside := range []string{"http://", "https://", "src=", "url(", "<script", "@import", "<link"} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, outside) && !strings.Contains(line, "https://127.0.0.1:8443") {
				t.Errorf("it holds %q: %s", outside, strings.TrimSpace(line))
			}
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!", "<in flight>", "&lt;no value"} {
		if strings.Contains(text, bad) {
			t.Errorf("it holds %q", bad)
		}
	}
	for _, want := range []string{"objective not held", "p99 is 61 ms, bound 25 ms", "2\u202f001/s", "61 ms", "Latency distribution", "Where the time goes", "Errors", "HSM sessions",
		"the gateway is full &lt;in flight&gt;", "11\u202f482", "0.626 ms"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	svgs := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(text, -1)
	if len(svgs) != 8 {
		t.Errorf("%d plots, want 8", len(svgs))
	}
	for i, svg := range svgs {
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("plot %d is not well-formed: %v", i, err)
			}
		}
	}
	if len(text) > 1<<20 {
		t.Errorf("%d bytes", len(text))
	}
}

func TestWrongAnswersAreTheFirstThingInAReport(t *testing.T) {
	r := sample()
	r.Runs[0].Checks.Wrong = 3
	r.Runs[0].Checks.Examples = []check.Wrong{{Request: "lt-1", Why: "the key is not the one of the CSR", Evidence: "-----BEGIN CERTIFICATE-----"}}
	text := written(t, "wrong.html", r)
	if at, tiles := strings.Index(text, "3 wrong answers"), strings.Index(text, `class="tiles"`); at < 0 || at > tiles {
		t.Error("wrong answers are not told before the figures")
	}
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil || !strings.Contains(table.String(), "*** WRONG ANSWERS: 3 of 229650 ***") {
		t.Errorf("%v\n%s", err, table.String())
	}
}

func TestTheTableSaysWhatCounts(t *testing.T) {
	var b strings.Builder
	if err := sample().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1997 certificates/s (asked 2001/s)", "p50 4.1  p90 9.7  p99 61  p99.9 910  max 1210 ms (from due)", "462 (0.201%)", "420, the first: the gateway is full", "42, the first: i/o timeout",
		"hsm", "network and client", "0.626 ms for each", "NOT HELD: p99 is 61 ms, bound 25 ms"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
}

func TestCapacityAndScaleAreDrawn(t *testing.T) {
	r := sample()
	r.Missed = nil
	r.Capacity = &Capacity{Rate: 2000, GaveWay: []string{"overloaded: 900 of 20000 requests", "CPU of this machine: 1.98 of 2 cores"}}
	for i, rate := range []float64{1500, 2250, 1875, 2062, 2000} {
		held := rate <= 2000
		p99 := 12 + float64(i)
		if !held {
			p99 = 300
		}
		x := Trial{Rate: rate, Held: held, Reached: rate, Latency: engine.Quantiles{P50: 4, P99: p99}}
		if !held {
			x.Missed = []string{"p99 is 300 ms, bound 25 ms"}
		}
		r.Capacity.Trials = append(r.Capacity.Trials, x)
	}
	if text := written(t, "capacity.html", r); !strings.Contains(text, "2\u202f000/s") || !strings.Contains(text, "What gave way") || strings.Contains(text, "NaN") {
		t.Error("the capacity is not in the report")
	}
	r.Capacity, r.Runs = nil, nil
	for i, n := range []int{1, 2, 4, 8, 16} {
		r.Scale = append(r.Scale, Step{Signers: n, Linear: 1 - 0.02*float64(i), Capacity: Capacity{Rate: 800 * float64(n) * (1 - 0.02*float64(i)), GaveWay: []string{"HSM sessions: 3.9 of 4 busy on average"}}})
	}
	if text := written(t, "scale.html", r); !strings.Contains(text, "Capacity by signers") || strings.Contains(text, "NaN") {
		t.Error("the scaling is not in the report")
	}
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil || !strings.Contains(b.String(), "0.92") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestAnEmptyRunIsReportedToo(t *testing.T) {
	r := sample()
	r.Runs = []Run{{Summary: engine.Summary{Asked: 10, Failed: 10, Errors: []engine.Failure{{Kind: "connect", Count: 10}}, Series: []engine.Point{{Seconds: 1, Asked: 10, Failed: 10, Errors: map[string]int64{"connect": 10}}}}}}
	if text := written(t, "empty.html", r); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") || !strings.Contains(text, "no data") {
		t.Error("a run without an answer breaks the report")
	}
}

// drawn returns the plot of a title.
func drawn(t *testing.T, charts []*chart, title string) string {
	t.Helper()
	for _, c := range charts {
		if c.title == title {
			return string(c.HTML())
		}
	}
	t.Fatalf("no plot %q", title)
	return ""
}

var xTick = regexp.MustCompile(`<text class="tick" x="([0-9.]+)" y="231" text-anchor="middle">([^<]*)<`)

func TestAllPlotsOverTimeHaveOneXAxisAndAnOutageIsSeen(t *testing.T) {
	r := sample()
	run := &r.Runs[0]
	for i := range run.Series {
		p := &run.Series[i]
		if i >= 40 && i < 50 || i >= 80 { // nothing is answered, for a while and at the end
			p.Failed, p.OK, p.Latency, p.Phases, p.Errors = p.Asked, 0, engine.Quantiles{}, nil, map[string]int64{"timeout": p.Asked}
		}
	}
	written(t, "outage.html", r)
	want := ""
	for _, c := range run.charts(r.Plan) {
		if c.quantiles {
			continue
		}
		ticks := fmt.Sprint(xTick.FindAllString(string(c.HTML()), -1))
		if want == "" {
			want = ticks
		}
		if ticks != want || !strings.Contains(ticks, ">120<") {
			t.Errorf("%s: %s", c.title, ticks)
		}
	}
	latency := drawn(t, run.charts(r.Plan), "Latency over time")
	for _, path := range regexp.MustCompile(`<path class="plot [^"]*" d="([^"]*)"`).FindAllStringSubmatch(latency, -1) {
		if n := strings.Count(path[1], "M"); n != 2 {
			t.Errorf("a line of %d pieces where an outage is in the middle", n)
		}
	}
}

func TestAxesAreLabelledSensibly(t *testing.T) {
	r := sample()
	zero := 0.0
	for i := range r.Runs[0].Samples {
		r.Runs[0].Samples[i].Waiting, r.Runs[0].Samples[i].Queued = &zero, &zero
	}
	r.Runs[0].Curve = r.Runs[0].Curve[:31] // up to 99.9 %
	r.Runs[0].ServiceCurve = r.Runs[0].ServiceCurve[:31]
	r.Capacity = &Capacity{Rate: 100, Trials: []Trial{
		{Rate: 1, Held: true, Latency: engine.Quantiles{P99: 3}}, {Rate: 2000, Latency: engine.Quantiles{P99: 300}}}}
	written(t, "axes.html", r)
	charts := r.Runs[0].charts(r.Plan)
	queue := drawn(t, charts, "Queue")
	if ticks := regexp.MustCompile(`text-anchor="end">([^<]*)<`).FindAllStringSubmatch(queue, -1); len(ticks) != 3 || ticks[0][1] != "0" || ticks[1][1] != "1" {
		t.Errorf("a queue that is empty: %q", ticks)
	}
	ticks := xTick.FindAllStringSubmatch(drawn(t, charts, "Latency distribution"), -1)
	last := ticks[len(ticks)-1]
	if at, err := strconv.ParseFloat(last[1], 64); err != nil || last[2] != "99.9 %" || at+3.5*float64(len(last[2])) > width {
		t.Errorf("%q is cut off", last)
	}
	trials := string(r.Capacity.chart().HTML())
	if strings.Contains(trials, ">-") || strings.Contains(trials, "warmup") {
		t.Errorf("below 0 or a warm-up:\n%s", trials)
	}
}

func TestJoinedErrorsAreSetApart(t *testing.T) {
	r := sample()
	run := &r.Runs[0]
	run.Checks.Wrong = 1
	run.Checks.Examples = []check.Wrong{{Request: "lt-1", Why: "the key is <another>\nthe name is missing"}}
	run.Errors[0].Example = "first try\nsecond try"
	r.Capacity = &Capacity{GaveWay: []string{"wrong: a\nb"}, Trials: []Trial{{Rate: 1, Missed: []string{"p99 is 300 ms, bound 25 ms", "errors is 2%, bound 1%"}}}}
	text := written(t, "joined.html", r)
	for _, want := range []string{"the key is &lt;another&gt;<br>the name is missing", "first try<br>second try", "wrong: a<br>b", "bound 25 ms<br>errors is 2%"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

// What was asked for, which checks were not made, and what ended early stands in the report
// and in the table.
func TestWhatWasNotDoneIsTold(t *testing.T) {
	r := sample()
	r.Plan.Name, r.Plan.KeyTypes, r.Plan.Profile, r.Plan.Lifetime, r.Plan.Seed = "w{n}.load.test", "p256", "short", 86400, 7
	r.Runs[0].Checks.Skipped, r.Runs[0].Checks.Unmade, r.Runs[0].Checks.UnmadeWhy = 651, 144, "no OCSP answer"
	both := map[string]string{}
	both["report"] = written(t, "told.html", r)
	var table strings.Builder
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	both["table"] = table.String()
	for where, text := range both {
		for _, want := range []string{"651", "144", "no OCSP answer"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing in the %s", want, where)
			}
		}
	}
	if want := "name w{n}.load.test, keys p256, profile short, lifetime 24h0m0s, arrivals from seed 7"; !strings.Contains(both["report"], want) {
		t.Errorf("%q is missing in the report", want)
	}
	r.Missed, r.Capacity = nil, &Capacity{Rate: 150, Ended: "interrupted"}
	if text := written(t, "ended.html", r); !strings.Contains(text, ">ended early<") || strings.Contains(text, ">objective held<") {
		t.Error("a search that ended early is not told from one that was made whole")
	}
	r.Capacity, r.Runs[0].OK = nil, 0
	if text := written(t, "nothing.html", r); !strings.Contains(text, ">nothing was answered<") {
		t.Error("a run without an answer has no verdict")
	}
	r.Scale = []Step{{Signers: 1, Capacity: Capacity{Rate: 60, Ceiling: true}}}
	if text := written(t, "scale.html", r); !strings.Contains(text, "at least 60/s (--most)") || !strings.Contains(text, "unknown") {
		t.Error("a ceiling is taken for the capacity")
	}
}
