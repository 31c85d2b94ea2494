package observe

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func metrics(t *testing.T, text string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }))
	t.Cleanup(s.Close)
	return s.URL
}

func TestMetricsOfRolesAreAddedUp(t *testing.T) {
	gateway := metrics(t, "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 12.5\ncertmill_gateway_dispatch_pending 7\ncertmill_queue_depth_messages{stream=\"a\"} 30\n")
	signer := metrics(t, "# TYPE certmill_hsm_sessions gauge\ncertmill_hsm_sessions{token=\"a\"} 4\ncertmill_hsm_sessions{token=\"b\"} 4\n# TYPE certmill_hsm_sessions_busy gauge\ncertmill_hsm_sessions_busy 3\nprocess_cpu_seconds_total 1\nprocess_resident_memory_bytes 1e6\n")
	o := New(Config{Roles: []Role{{"gateway", gateway}, {"gateway", gateway}, {"signer", signer}, {"gone", "http://127.0.0.1:1/"}}})
	defer o.Close()
	s := o.Sample(t.Context())
	if want := (Gauges{Waiting: 14, Queued: 30, Busy: 3, Sessions: 8}); s.Gauges != want {
		t.Errorf("gauges %+v, want %+v", s.Gauges, want)
	}
	if _, there := s.CPU["gateway"]; !there || s.RSS["signer"] != 1e6 {
		t.Errorf("%v %v", s.CPU, s.RSS)
	}
	if _, there := s.CPU["gone"]; there {
		t.Error("a role that does not answer has CPU")
	}
	if err := o.Check(t.Context()); err == nil {
		t.Error("a role that does not answer was not told")
	}
	none := New(Config{})
	if g := none.Sample(t.Context()).Gauges; !math.IsNaN(g.Waiting) {
		t.Errorf("gauges of nothing: %+v", g)
	}
}

// Beside a process tree only those roles are asked again that have something to tell, in
// turn; each look has what they said last.
func TestWatchAsksInTurnWhoHasSomethingToTell(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	role := func(name, text string) Role {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, name)
			fmt.Fprint(w, text)
		}))
		t.Cleanup(s.Close)
		return Role{Name: name, Metrics: s.URL}
	}
	o := New(Config{Tree: os.Getpid(), Roles: []Role{
		role("gateway", "certmill_gateway_dispatch_pending 3\n"), role("responder", "process_cpu_seconds_total 9\n"),
		role("signer", "certmill_hsm_sessions 4\ncertmill_hsm_sessions_busy 1\n"),
	}})
	defer o.Close()
	if g := o.Glance(t.Context()).Gauges; !math.IsNaN(g.Waiting) {
		t.Errorf("before anybody was asked: %+v", g)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { o.Watch(ctx, 30*time.Millisecond); close(ended) }()
	want := []string{"gateway", "responder", "signer", "gateway", "signer", "gateway", "signer"}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		n := len(asked)
		mu.Unlock()
		if n > len(want) { // so that the answers before the last one are read
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("only %d were asked", n)
		}
	}
	cancel()
	<-ended
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(asked[:len(want)], want) {
		t.Errorf("asked %v", asked)
	}
	s := o.Sample(t.Context())
	if g := s.Gauges; g.Waiting != 3 || g.Busy != 1 || g.Sessions != 4 || !math.IsNaN(g.Queued) {
		t.Errorf("%+v", g)
	}
	if _, there := s.CPU["responder"]; there {
		t.Error("CPU of a role beside that of the processes")
	}
}

func TestUseBetweenSamples(t *testing.T) {
	at := time.Now()
	a := Sample{At: at, CPU: map[string]float64{"x": 10, "ended": 50, "ended before": 7}, Own: 1, Machine: 100}
	b := Sample{At: at.Add(4 * time.Second), CPU: map[string]float64{"x": 12, "ended": 52, "ended before": 7, "idle": 0, "new": 4}, RSS: map[string]float64{"x": 9, "idle": 1, "new": 2}, Own: 3, Machine: 107}
	u := Between(a, b)
	if u.Own != 0.5 || u.Machine != 1.75 || len(u.Roles) != 4 {
		t.Fatalf("%+v", u)
	}
	for i, want := range []RoleUse{{"ended", 0.5, 2, 0}, {"idle", 0, 0, 1}, {"new", 1, 4, 2}, {"x", 0.5, 2, 9}} {
		if u.Roles[i] != want {
			t.Errorf("%+v, want %+v", u.Roles[i], want)
		}
	}
}

// A role of several processes does not fall when one of them ends.
func TestCPUIsThatOfEachProcessSinceTheLookBefore(t *testing.T) {
	o := New(Config{})
	o.first = moment{boot: 1000}
	at := time.Now()
	look := func(second float64, processes ...process) Sample {
		s := Sample{At: at.Add(time.Duration(second) * time.Second), RSS: map[string]float64{}}
		for i := range processes {
			processes[i].name = "postgres"
		}
		o.addProcesses(&s, processes)
		s.CPU = maps.Clone(o.ledger.used)
		return s
	}
	samples := []Sample{
		look(0, process{pid: 1, started: 10, cpu: 300}, process{pid: 2, started: 20, cpu: 500}),
		look(1, process{pid: 1, started: 10, cpu: 300.5}, process{pid: 2, started: 20, cpu: 500.25}),
		look(2, process{pid: 1, started: 10, cpu: 301}),                                                                                     // the second has ended
		look(3, process{pid: 1, started: 10, cpu: 301}, process{pid: 2, started: 1002.5, cpu: 0.25}),                                        // another one with its pid
		look(4, process{pid: 1, started: 10, cpu: 301}, process{pid: 2, started: 1002.5, cpu: 0.5}, process{pid: 3, started: 900, cpu: 80}), // seen late
		look(5, process{pid: 1, started: 10, cpu: 301}, process{pid: 3, started: 900, cpu: 81}),
		look(6), // none is left
	}
	total := 0.0
	for i, want := range []float64{0.75, 0.5, 0.25, 0.25, 1, 0} {
		got := 0.0
		for _, r := range Between(samples[i], samples[i+1]).Roles {
			got += r.Cores
		}
		if got != want {
			t.Errorf("second %d: %g cores, want %g", i+1, got, want)
		}
		total += want
	}
	if all := Between(samples[0], samples[6]).Roles; len(all) != 1 || all[0].CPUSeconds != total {
		t.Errorf("over all: %+v, want %g s", all, total)
	}
}

func TestMemoryThatProcessesShareCountsOnce(t *testing.T) {
	s := Sample{RSS: map[string]float64{}}
	New(Config{}).addProcesses(&s, []process{{pid: 1, name: "postgres", rss: 140, shared: 130}, {pid: 2, name: "postgres", rss: 120, shared: 100}, {pid: 3, name: "signer", rss: 50, shared: 20}})
	if s.RSS["postgres"] != 160 || s.RSS["signer"] != 50 {
		t.Errorf("%v", s.RSS)
	}
}

func TestARoleThatMissesALookOrStartsAnew(t *testing.T) {
	var text atomic.Value
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text.Load()) }))
	defer role.Close()
	steady := metrics(t, "process_cpu_seconds_total 400\n")
	o := New(Config{Roles: []Role{{"gateway", role.URL}, {"gateway", steady}}})
	defer o.Close()
	look := func(metrics string) Sample {
		text.Store(metrics)
		return o.Sample(t.Context())
	}
	first := look("process_cpu_seconds_total 90\nprocess_start_time_seconds 5\n")
	before := first
	for i, c := range []struct {
		metrics string
		want    float64
	}{
		{"", 0}, // it does not answer
		{"process_cpu_seconds_total 92\nprocess_start_time_seconds 5\n", 2},
		{"process_cpu_seconds_total 95\nprocess_start_time_seconds 6\n", 3}, // the clock was set
		{"process_cpu_seconds_total 96\nprocess_start_time_seconds 5\n", 1},
		{fmt.Sprintf("process_cpu_seconds_total 0.5\nprocess_start_time_seconds %d\n", time.Now().Unix()+1), 0.5},
		{"process_cpu_seconds_total 30\n", 0}, // another one that runs for long
		{"process_cpu_seconds_total 1\n", 1},  // does not say when it started
	} {
		now := look(c.metrics)
		if used := now.CPU["gateway"] - before.CPU["gateway"]; used != c.want {
			t.Errorf("look %d: %g s, want %g", i+1, used, c.want)
		}
		before = now
	}
	if used := Between(first, before).Roles[0].CPUSeconds; used != 7.5 {
		t.Errorf("over all: %g s", used)
	}
}
