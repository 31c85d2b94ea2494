package main

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// flooded is what callers get of a service that keeps its promise: a second of calm is
// 20 ms, 400 of 2,000 a second are served, the rest is refused in a millisecond.
func flooded(began, end time.Time) (all []result) {
	for due := began; due.Before(end); due = due.Add(500 * time.Microsecond) {
		r := result{Due: due, Sent: due, Done: due.Add(time.Millisecond), Status: http.StatusTooManyRequests, Hinted: true, Served: 0.1}
		if len(all)%5 == 0 {
			r = result{Due: due, Sent: due, Done: due.Add(900 * time.Millisecond), Status: http.StatusOK, Served: -1}
		}
		all = append(all, r)
	}
	return all
}

func polite(began, end time.Time) (all []result) {
	for due := began; due.Before(end.Add(after)); due = due.Add(25 * time.Millisecond) {
		took := 20 * time.Millisecond
		if due.Before(end.Add(time.Second)) {
			took = 900 * time.Millisecond
		}
		all = append(all, result{Due: due, Sent: due, Done: due.Add(took), Status: http.StatusOK, Served: -1})
	}
	return all
}

func TestWhatIsNotHeldIsSaid(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := began.Add(30 * time.Second)
	slow := func(all []result) {
		for i := range all {
			if all[i].refused() && i%20 == 1 {
				all[i].Done, all[i].Served = all[i].Sent.Add(8*time.Millisecond), 7
			}
		}
	}
	for name, c := range map[string]struct {
		spoil func(f *figures, flood, polite, probe []result)
		want  string
	}{
		"all is well":            {func(*figures, []result, []result, []result) {}, ""},
		"goodput":                {func(f *figures, _, _, _ []result) { f.Capacity = 600 }, "goodput"},
		"slow refusals":          {func(_ *figures, flood, _, probe []result) { slow(flood); slow(probe) }, "takes the service less|reaches the prober"},
		"no Retry-After":         {func(_ *figures, flood, _, _ []result) { flood[1].Hinted = false }, "Retry-After"},
		"no answer":              {func(_ *figures, flood, _, _ []result) { flood[7].Status = 0 }, "a certificate or a refusal"},
		"the others are starved": {func(_ *figures, _, p, _ []result) { starve(p, end) }, "polite"},
		"late recovery": {func(_ *figures, _, p, _ []result) {
			for i := range p {
				if p[i].Due.Before(end.Add(3 * time.Second)) {
					p[i].Done = p[i].Due.Add(time.Second)
				}
			}
		}, "back to normal"},
		"memory": {func(f *figures, _, _, _ []result) { f.Roles["gateway"] = memory{Before: 100, Peak: 900} }, "gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &figures{Capacity: 400, Calm: calm{P50: 20, P90: 22, P99: 30}, Roles: map[string]memory{"gateway": {100, 150}}}
			flood, p, probe := flooded(began, end), polite(began, end), probed(flooded(began, end))
			c.spoil(f, flood, p, probe)
			f.judge(began, end, flood, p, probe)
			missed := strings.Join(f.missed(), "; ")
			if c.want == "" && missed != "" {
				t.Errorf("missed: %s", missed)
			}
			for want := range strings.SplitSeq(c.want, "|") {
				if !strings.Contains(missed, want) {
					t.Errorf("missed is %q, without %q", missed, want)
				}
			}
		})
	}
}

// probed is what one gets who asks as the flood does, a fortieth as often, and is refused.
func probed(flood []result) (few []result) {
	for i := 1; i < len(flood); i += 40 {
		few = append(few, flood[i])
	}
	return few
}

func starve(polite []result, end time.Time) {
	for i := range polite {
		if i%8 == 0 && polite[i].Due.Before(end) {
			polite[i].Status, polite[i].Hinted = http.StatusTooManyRequests, true
		}
	}
}

func TestServerTimingIsRead(t *testing.T) {
	for header, want := range map[string]float64{
		"total;dur=0.051": 0.051, "queue;dur=1.000, total;dur=20.500": 20.5, "": -1, "total;dur=x": -1, "queue;dur=3": -1,
	} {
		if got := served(header); got != want {
			t.Errorf("%q is read as %v", header, got)
		}
	}
}
