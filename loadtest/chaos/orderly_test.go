package chaos

import (
	"context"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// aRollingRestartFailsNoCall restarts every process of every role under load, one
// after the other, each with SIGTERM. Clients go where /readyz says so, as a balancer
// does, and call once: none of their calls may fail, and each role ends within its bound
// with exit status 0.
func aRollingRestartFailsNoCall(t *testing.T, r *drill) {
	if err := r.stack.await(t.Context(), "every role", func() error { return r.stack.ready(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	past, err := r.rec.Events()
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var ready sync.Map // by node
	var all sync.WaitGroup
	for _, n := range r.stack.nodes {
		if n.operator == "" || n.name == spare {
			continue
		}
		ready.Store(n.name, true)
		all.Go(func() {
			for pause(ctx, 50*time.Millisecond) {
				ready.Store(n.name, n.ready(ctx) == nil)
			}
		})
	}
	usable := func(node string) bool { ok, _ := ready.Load(node); return ok == true }
	var calls, answers, failed, op atomic.Int64
	for worker := range 4 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(2, uint64(worker)))
			for pause(ctx, 50*time.Millisecond) {
				c := r.load.callers[random.IntN(len(r.load.callers))]
				if !usable(c.node) {
					continue
				}
				request, _, err := r.load.request(20_000+int(op.Add(1)), random)
				if err != nil {
					t.Error(err)
					return
				}
				callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				cert, err := c.issue(callCtx, request)
				cancel()
				calls.Add(1)
				if err != nil {
					failed.Add(1)
					t.Errorf("%s at %s: %v", c.via, c.node, err)
					continue
				}
				r.watch.issued(cert.Serial)
			}
		})
	}
	for _, n := range r.watch.nodes {
		all.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(n.number)))
			client := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: ocspTimeout}).DialContext}}
			defer client.CloseIdleConnections()
			for pause(ctx, 50*time.Millisecond) {
				if s := r.watch.pick(random); s != "" && usable(n.name) {
					r.watch.ask(context.WithoutCancel(ctx), client, n, s)
					answers.Add(1)
				}
			}
		})
	}
	pause(ctx, 2*time.Second)
	if err := r.stack.rolling().begin(ctx); err != nil {
		t.Error(err)
	}
	pause(ctx, time.Second)
	end()
	all.Wait()
	events, err := r.rec.Events()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events[len(past):] {
		if e.Kind == judge.OCSP && (e.Outcome == judge.Broken || e.Outcome == judge.Timeout) {
			t.Errorf("OCSP at %s: %s %s", e.Node, e.Outcome, e.Detail)
		}
	}
	t.Logf("%d calls, %d failed; %d OCSP answers", calls.Load(), failed.Load(), answers.Load())
	if calls.Load() < 50 || answers.Load() < 50 {
		t.Errorf("%d calls and %d OCSP answers are too few to show anything", calls.Load(), answers.Load())
	}
}
