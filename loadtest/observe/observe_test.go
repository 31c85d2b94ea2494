package observe

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
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
	if s.CPU["gateway"] != 25 || s.CPU["signer"] != 1 || s.RSS["signer"] != 1e6 {
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
	a := Sample{At: at, CPU: map[string]float64{"x": 10, "restarted": 50}, Own: 1, Machine: 100}
	b := Sample{At: at.Add(4 * time.Second), CPU: map[string]float64{"x": 12, "restarted": 2, "new": 4}, RSS: map[string]float64{"x": 9}, Own: 3, Machine: 107}
	u := Between(a, b)
	if u.Own != 0.5 || u.Machine != 1.75 || len(u.Roles) != 3 {
		t.Fatalf("%+v", u)
	}
	for i, want := range []RoleUse{{"new", 1, 4, 0}, {"restarted", 0.5, 2, 0}, {"x", 0.5, 2, 9}} {
		if u.Roles[i] != want {
			t.Errorf("%+v, want %+v", u.Roles[i], want)
		}
	}
}
