package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// The signers of this test have so many sessions, each of which takes so long: their
// capacity is a matter of the HSM, as it is in life, and not of this machine's CPU.
const (
	overloadSessions = 8
	overloadSign     = 20 * time.Millisecond
	overloadFactor   = 5
)

// outcomes are what one caller's requests came to.
type outcomes struct {
	mu       sync.Mutex
	ok       []time.Duration
	refused  []time.Duration
	unhinted int // refusals without Retry-After
	other    map[int]int
}

func (o *outcomes) note(status int, header http.Header, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch status {
	case http.StatusOK:
		o.ok = append(o.ok, took)
	case http.StatusTooManyRequests:
		o.refused = append(o.refused, took)
		if header.Get("Retry-After") == "" {
			o.unhinted++
		}
	default:
		if o.other == nil {
			o.other = map[int]int{}
		}
		o.other[status]++
	}
}

// quantile returns the q-th of the times; 0 where there are none.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// flooding is a gateway before slow signers, with callers.
type flooding struct {
	w       *world
	clients []*http.Client
	csrs    [][]byte
	asked   atomic.Int64
}

func newFlooding(t *testing.T) *flooding {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.MaxInFlight, c.Limits.MaxBatch = 64, 32
		c.Limits.MaxConcurrentStreams = 2000
	})
	sessions := make(chan struct{}, overloadSessions)
	w.signer.setRefuse(func(ctx context.Context, _ *queuev1.SignRequest) error {
		select {
		case sessions <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		time.Sleep(overloadSign) // the HSM at work
		<-sessions
		return nil
	})
	o := &flooding{w: w}
	for range 4 {
		o.clients = append(o.clients, w.client())
	}
	for i := range 256 {
		o.csrs = append(o.csrs, armour(newCSR(t, nil, fmt.Sprintf("o%d.example.test", i))))
	}
	return o
}

// ask makes one request and notes what came of it.
func (o *flooding) ask(token string, to *outcomes) {
	n := o.asked.Add(1)
	r, err := http.NewRequestWithContext(o.w.Context(), http.MethodPost, "https://"+o.w.https+"/v1/certificates", bytes.NewReader(o.csrs[n%int64(len(o.csrs))]))
	if err != nil {
		o.w.Error(err)
		return
	}
	r.Header = http.Header{"Content-Type": {pemType}, "Authorization": {"Bearer " + token}, "Idempotency-Key": {fmt.Sprint("o-", n)}}
	began := time.Now()
	response, err := o.clients[n%int64(len(o.clients))].Do(r)
	if err != nil {
		to.note(0, nil, time.Since(began))
		return
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	to.note(response.StatusCode, response.Header, time.Since(began))
}

// open asks at a rate, whatever comes of it, and waits for the last answer.
func (o *flooding) open(token string, rate float64, d time.Duration, to *outcomes) {
	var wait sync.WaitGroup
	began, sent := time.Now(), 0
	for time.Since(began) < d {
		for due := int(rate * time.Since(began).Seconds()); sent < due; sent++ {
			wait.Go(func() { o.ask(token, to) })
		}
		time.Sleep(time.Millisecond) // the clock of the load
	}
	wait.Wait()
}

// capacity is what callers reach who ask again as soon as they are answered.
func (o *flooding) capacity(token string, d time.Duration) float64 {
	var all outcomes
	var wait sync.WaitGroup
	began := time.Now()
	for range 3 * overloadSessions {
		wait.Go(func() {
			for time.Since(began) < d {
				o.ask(token, &all)
			}
		})
	}
	wait.Wait()
	return float64(len(all.ok)) / time.Since(began).Seconds()
}

// recovered returns how long after its start the service answers as it does unloaded.
func (o *flooding) recovered(token string, normal time.Duration) time.Duration {
	began := time.Now()
	for time.Since(began) < 20*time.Second {
		var one outcomes
		at := time.Since(began)
		o.ask(token, &one)
		if len(one.ok) == 1 && one.ok[0] <= 2*normal {
			return at
		}
	}
	return time.Since(began)
}

// TestOverload floods a gateway with five times what its signers can do. It always
// checks that refusals are cheap in kind and that nobody is starved; with OVERLOAD, a
// duration, its figures must hold too. `make bench-overload` measures the whole service.
func TestOverload(t *testing.T) {
	length, strict := 1500*time.Millisecond, false
	if text := os.Getenv("OVERLOAD"); text != "" {
		length, strict = must(time.ParseDuration(text))(t), true
	}
	o := newFlooding(t)
	mallory, bob := o.w.idp.token(t, "mallory"), o.w.idp.token(t, "bob")
	capacity := o.capacity(bob, max(length/10, 500*time.Millisecond))
	var calm outcomes
	o.open(bob, capacity/4, max(length/10, 500*time.Millisecond), &calm)

	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stopWatching, watched := make(chan struct{}), make(chan struct{})
	most := uint64(0)
	go func() {
		defer close(watched)
		for {
			select {
			case <-stopWatching:
				return
			case <-time.After(100 * time.Millisecond):
				runtime.ReadMemStats(&peak)
				most = max(most, peak.HeapInuse)
			}
		}
	}()
	var flood, polite outcomes
	var both sync.WaitGroup
	began := time.Now()
	both.Go(func() { o.open(mallory, overloadFactor*capacity, length, &flood) })
	both.Go(func() { o.open(bob, capacity/10, length, &polite) })
	both.Wait()
	elapsed := time.Since(began)
	close(stopWatching)
	<-watched
	back := o.recovered(bob, max(quantile(calm.ok, 0.9), 2*overloadSign))

	goodput := float64(len(flood.ok)+len(polite.ok)) / elapsed.Seconds()
	served := float64(len(polite.ok)) / float64(max(1, len(polite.ok)+len(polite.refused)))
	grown := float64(max(most, before.HeapInuse)-before.HeapInuse) / (1 << 20)
	figures := fmt.Sprintf(`overload: %.0fx capacity for %s
  capacity                       %8.0f /s
  offered                        %8.0f /s
  goodput / capacity             %8.2f     (at least 0.90)
  refused                        %8d, of them without Retry-After %d
  refusal p50, p99               %8s %s   (p50 below 5ms)
  the other caller: served       %8.2f     (at least 0.95), p99 %s, alone %s
  memory beyond the start        %8.1f MiB (below 128, client included)
  back to normal after           %8s     (below 2s)`,
		float64(overloadFactor), elapsed.Round(time.Millisecond), capacity, float64(len(flood.ok)+len(flood.refused))/elapsed.Seconds(), goodput/capacity,
		len(flood.refused)+len(polite.refused), flood.unhinted+polite.unhinted, quantile(flood.refused, 0.5).Round(10*time.Microsecond), quantile(flood.refused, 0.99).Round(10*time.Microsecond),
		served, quantile(polite.ok, 0.99).Round(time.Millisecond), quantile(calm.ok, 0.99).Round(time.Millisecond), grown, back.Round(time.Millisecond))
	t.Log(figures)
	for _, c := range []struct {
		what string
		ok   bool
	}{
		{"nothing was refused", len(flood.refused) > 0},
		{"a refusal has no Retry-After", flood.unhinted+polite.unhinted == 0},
		{"an answer is neither a certificate nor a refusal", len(flood.other)+len(polite.other) == 0},
		{"the other caller is starved", served >= 0.5},
		{"goodput / capacity", !strict || goodput/capacity >= 0.9},
		{"refusal p50", !strict || quantile(flood.refused, 0.5) < 5*time.Millisecond},
		{"the other caller", !strict || served >= 0.95},
		{"memory", !strict || grown < 128},
		{"back to normal", !strict || back < 2*time.Second},
	} {
		if !c.ok {
			t.Errorf("not held: %s (%v %v)", c.what, flood.other, polite.other)
		}
	}
	eventually(t, "every place is free", func() bool { return o.w.gateway.service.inFlight.used.Load() == 0 })
}
