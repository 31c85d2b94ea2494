package hsm

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/telemetry"
)

const (
	// ownPace is what a signature takes at most in a token that computes on this
	// machine. Over a bus or a network it takes longer.
	ownPace = 100 * time.Microsecond
	// groupSize is how many signatures such a token makes in one call at most.
	groupSize = 16
	// patience is how long such a call may take before others go beside it.
	patience = 10 * groupSize * ownPace
)

// turns are the signatures that wait for a session. A token with cores of its own gets
// each in a call, and as many calls at once as there are sessions. One that computes on
// this machine gains nothing by more calls than cores, and each call costs a change of
// threads: it gets what waits in groups.
type turns struct {
	mu      sync.Mutex
	waiting []*turn
	callers int           // goroutines that bring signatures to the module
	pace    time.Duration // of a signature, the fastest of late; 0: none yet
}

// turn is one signature and whoever waits for it.
type turn struct {
	ctx   context.Context
	key   *Key
	op    operation
	since time.Time
	gone  atomic.Bool // nobody waits any more: what has not begun is left out
	done  chan result[[]byte]
}

// wait has the signature made, and waits for it until ctx ends.
func (t *Token) wait(w *turn) ([]byte, error) {
	t.turns.mu.Lock()
	t.turns.waiting = append(t.turns.waiting, w)
	t.callMore()
	t.turns.mu.Unlock()
	select {
	case r := <-w.done:
		return r.value, r.err
	case <-w.ctx.Done():
		w.gone.Store(true)
		return nil, w.ctx.Err()
	}
}

// callMore starts one more goroutine for what waits, where that may help. Whoever calls
// it holds turns.mu.
func (t *Token) callMore() {
	q, limit := &t.turns, t.cfg.Sessions
	if q.own() {
		limit = min(limit, runtime.GOMAXPROCS(0))
	}
	if len(q.waiting) > 0 && q.callers < limit {
		q.callers++
		go t.takeTurns()
	}
}

// own reports whether the token computes on this machine.
func (q *turns) own() bool { return q.pace > 0 && q.pace < ownPace }

// note takes the time of a signature into the pace, which rises slowly: a thread may
// have been held up in the midst of it.
func (q *turns) note(took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pace > 0 {
		took = min(took, q.pace*5/4)
	}
	q.pace = max(took, time.Microsecond)
}

// takeTurns makes what waits until there is nothing more, or others have its place.
func (t *Token) takeTurns() {
	for {
		// One message makes many goroutines ready at once: let them all come first.
		runtime.Gosched()
		group, own := t.nextTurns()
		if group == nil || !t.make(group, own) {
			return
		}
	}
}

// nextTurns returns the signatures that stand first and fit into one call; none when
// the goroutine must end. It also says whether the token computes on this machine.
func (t *Token) nextTurns() (group []*turn, own bool) {
	q := &t.turns
	q.mu.Lock()
	defer q.mu.Unlock()
	size := 1
	if own = q.own(); own {
		size = groupSize
	}
	for len(q.waiting) > 0 && len(group) < size {
		w := q.waiting[0]
		if len(group) > 0 && (w.key != group[0].key || !w.op.alike(group[0].op)) {
			break
		}
		q.waiting[0], q.waiting = nil, q.waiting[1:]
		if !w.gone.Load() {
			group = append(group, w)
		}
	}
	if len(q.waiting) == 0 {
		q.waiting = nil
	}
	if group == nil {
		q.callers--
	}
	return group, own
}

// make makes a group's signatures behind the breaker. The first that fails is answered
// with its failure, those after it have their turn again. It returns false when it has
// lost its place to another goroutine, since a call took long.
func (t *Token) make(group []*turn, own bool) (keeps bool) {
	keeps = true
	var signed [][]byte
	_, err := t.guarded(func() ([]byte, error) {
		s, err := t.acquire(context.Background())
		if err != nil {
			return nil, err
		}
		got := time.Now()
		for _, w := range group {
			telemetry.Observe(w.ctx, t.metrics.wait, got.Sub(w.since).Seconds())
		}
		if own {
			late := time.AfterFunc(patience, t.giveWay)
			defer func() { keeps = late.Stop() }()
		}
		signed, err = runOn(context.Background(), t, s, t.cfg.CallTimeout, func(s *session) ([][]byte, error) {
			return t.signGroup(s, group)
		})
		if err != nil && len(signed) > 0 {
			// Failures in a row are counted by signature: these came between.
			_, _ = t.breaker.Execute(func() ([]byte, error) { return nil, nil })
		}
		return nil, err
	})
	for i, sig := range signed {
		group[i].done <- result[[]byte]{value: sig}
	}
	if rest := group[len(signed):]; len(rest) > 0 {
		rest[0].done <- result[[]byte]{err: err}
		t.turns.mu.Lock()
		t.turns.waiting = slices.Concat(rest[1:], t.turns.waiting)
		t.callMore()
		t.turns.mu.Unlock()
	}
	return keeps
}

// giveWay has another goroutine go on beside a call that may hang.
func (t *Token) giveWay() {
	t.turns.mu.Lock()
	defer t.turns.mu.Unlock()
	t.turns.callers--
	t.callMore()
}

// signGroup makes a group's signatures on a session, up to the first that fails in
// spite of all remedies.
func (t *Token) signGroup(s *session, group []*turn) (signed [][]byte, err error) {
	key := group[0].key
	begin := time.Now()
	_, err = try(t, s, key, func(s *session) (struct{}, error) {
		ops := make([]operation, 0, len(group))
		for _, w := range group[len(signed):] {
			ops = append(ops, w.op)
		}
		more, err := key.signOn(s, ops)
		signed = append(signed, more...)
		return struct{}{}, err
	})
	if n := len(signed); n > 0 {
		took := time.Since(begin) / time.Duration(n)
		t.turns.note(took)
		t.signatures.Add(uint64(n))
		for _, w := range group[:n] {
			telemetry.Observe(w.ctx, t.metrics.sign, took.Seconds())
		}
	}
	return signed, err
}
