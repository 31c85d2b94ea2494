package hsm

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/telemetry"
)

const (
	// localPace is what a signature takes at most with a key that is used by computing on
	// this machine. Over a bus or a network it takes longer.
	localPace = 100 * time.Microsecond
	// batchSize is how many signatures of such a key are made in one call at most.
	batchSize = 16
	// batchTime is when no other signature is begun in a call.
	batchTime = batchSize * localPace
	// patience is how long a call may take before another worker takes its place.
	patience = 10 * batchTime
)

// signQueue holds the signatures that wait for a session; it is as long as there are
// callers that wait. A token with cores of its own gets each in a call, and as many calls
// at once as there are sessions. One that computes on this machine gains nothing by more
// calls than cores, and each call costs a change of threads: it gets what waits in
// batches.
type signQueue struct {
	mu      sync.Mutex
	waiting []*request
	workers int           // goroutines that have a place; one whose call takes long has lost it
	alive   int           // those without a place too
	ended   chan struct{} // told when one ends; holds one notice
}

// request is one signature and whoever waits for it.
type request struct {
	ctx   context.Context
	key   *Key
	op    operation
	since time.Time
	gone  atomic.Bool // nobody waits any more: what has not begun is left out
	done  chan result[[]byte]
}

// wait has the signature made, and waits for it until the request's context ends.
func (t *Token) wait(r *request) ([]byte, error) {
	q := &t.queue
	q.mu.Lock()
	q.waiting = append(q.waiting, r)
	t.addWorker()
	q.mu.Unlock()
	select {
	case got := <-r.done:
		return got.value, got.err
	case <-r.ctx.Done():
		r.gone.Store(true)
		return nil, r.ctx.Err()
	}
}

// length returns how many signatures wait.
func (q *signQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// workersFor returns how many calls at once a key is worth.
func (t *Token) workersFor(k *Key) int {
	if k.local() {
		return min(t.cfg.Sessions, runtime.GOMAXPROCS(0))
	}
	return t.cfg.Sessions
}

// addWorker starts one more worker for what waits, where that may help. Whoever calls it
// holds queue.mu.
func (t *Token) addWorker() {
	q := &t.queue
	if len(q.waiting) > 0 && q.workers < t.workersFor(q.waiting[0].key) {
		q.workers++
		q.alive++
		go func() {
			t.work()
			q.mu.Lock()
			q.alive--
			q.mu.Unlock()
			select {
			case q.ended <- struct{}{}:
			default:
			}
		}()
	}
}

// endWorkers waits until all workers of a closed token have ended, or ctx has.
func (q *signQueue) endWorkers(ctx context.Context) error {
	for {
		q.mu.Lock()
		alive := q.alive
		q.mu.Unlock()
		if alive == 0 {
			return nil
		}
		select {
		case <-q.ended:
		case <-ctx.Done():
			return fmt.Errorf("closing the HSM token: signatures are still under way: %w", ctx.Err())
		}
	}
}

// work makes what waits until there is nothing more or others suffice.
func (t *Token) work() {
	for {
		// One message makes many goroutines ready at once: let them all come first.
		runtime.Gosched()
		s, err := t.acquire(context.Background())
		batch := t.nextBatch()
		switch {
		case batch == nil:
			if err == nil {
				t.release(s)
			}
			return
		case err != nil:
			answer(batch, t.down(err))
		case !t.signBatch(s, batch):
			return
		}
	}
}

// nextBatch takes the signatures that stand first and fit into one call. It returns nil
// when the worker that asks must end.
func (t *Token) nextBatch() (batch []*request) {
	q := &t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(r *request) bool { return r.gone.Load() })
	if len(q.waiting) == 0 || q.workers > t.workersFor(q.waiting[0].key) {
		q.workers--
		return nil
	}
	first, size := q.waiting[0], 1
	if first.key.local() {
		size = min(batchSize, len(q.waiting))
	}
	for _, r := range q.waiting[:size] {
		if r.key != first.key || !r.op.alike(first.op) {
			break
		}
		batch = append(batch, r)
	}
	q.waiting = slices.Delete(q.waiting, 0, len(batch))
	t.addWorker() // what comes next may be worth more calls at once
	return batch
}

// signBatch makes a batch's signatures behind the breaker. The first that fails is
// answered with its failure; those after it, and those for which no time was left, have
// their turn again. It returns false when the worker has lost its place, since the call
// took long.
func (t *Token) signBatch(s *session, batch []*request) (keeps bool) {
	got := time.Now()
	for _, r := range batch {
		if !r.since.IsZero() { // it may have its second turn
			telemetry.Observe(r.ctx, t.metrics.wait, got.Sub(r.since).Seconds())
			r.since = time.Time{}
		}
	}
	late := time.AfterFunc(patience, t.giveWay)
	entered := false
	var signed [][]byte
	_, err := t.guarded(func() (_ []byte, err error) {
		entered = true
		signed, err = runOn(context.Background(), t, s, t.cfg.CallTimeout, func(s *session) ([][]byte, error) {
			return t.signOn(s, batch)
		})
		if err != nil && len(signed) > 0 {
			// Failures in a row are counted by signature: these came between.
			_, _ = t.breaker.Execute(func() ([]byte, error) { return nil, nil })
		}
		return nil, err
	})
	keeps = late.Stop()
	for i, sig := range signed {
		batch[i].done <- result[[]byte]{value: sig}
	}
	rest := batch[len(signed):]
	switch {
	case !entered:
		t.release(s)
		answer(rest, err)
	case len(rest) > 0:
		if err != nil {
			answer(rest[:1], err)
			rest = rest[1:]
		}
		t.queue.mu.Lock()
		t.queue.waiting = slices.Concat(rest, t.queue.waiting)
		t.addWorker()
		t.queue.mu.Unlock()
	}
	return keeps
}

func answer(batch []*request, err error) {
	for _, r := range batch {
		r.done <- result[[]byte]{err: err}
	}
}

// giveWay gives a worker's place to another, since its call may hang.
func (t *Token) giveWay() {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	t.queue.workers--
	t.addWorker()
}

// signOn makes a batch's signatures on a session, as many as there is time for, up to the
// first that fails in spite of all remedies.
func (t *Token) signOn(s *session, batch []*request) (signed [][]byte, err error) {
	key := batch[0].key
	ops := make([]operation, len(batch))
	for i, r := range batch {
		ops[i] = r.op
	}
	var took time.Duration // of what was signed
	for {
		before := len(signed)
		_, err = try(t, s, key, func(s *session) (struct{}, error) {
			begin := time.Now()
			more, err := key.signOn(s, ops[len(signed):])
			if len(more) > 0 {
				took += time.Since(begin)
			}
			signed = append(signed, more...)
			return struct{}{}, err
		})
		// Each signature has all tries of its own.
		if err == nil || len(signed) == before || !RemedyFor(err).mends() {
			break
		}
	}
	if n := len(signed); n > 0 {
		each := took / time.Duration(n)
		key.pace.note(each)
		t.signatures.Add(uint64(n))
		for _, r := range batch[:n] {
			telemetry.Observe(r.ctx, t.metrics.sign, each.Seconds())
		}
	}
	return signed, err
}

// local reports whether signatures of the key are computed on this machine.
func (k *Key) local() bool {
	p := time.Duration(k.pace.Load())
	return p > 0 && p < localPace
}

// pace is the time of a signature, the fastest of late; 0: none was made yet.
type pace struct{ atomic.Int64 }

// note takes the time of a signature into the pace, which rises slowly: a thread may have
// been held up in the midst of it.
func (p *pace) note(took time.Duration) {
	if old := time.Duration(p.Load()); old > 0 {
		took = min(took, old*5/4)
	}
	p.Store(int64(max(took, time.Microsecond)))
}
