package gateway

import "github.com/certmill/certmill/internal/queue"

// A lane is what waits for one issuer at one priority. Callers take turns in it:
// each has a flow of its own, and a batch takes one request from each flow in turn.
// The dispatcher's mutex guards it.
type lane struct {
	issuer   string
	priority queue.Priority
	subject  string

	flows  map[string]*flow
	turns  fifo[*flow] // flows that are not empty, in the order of their turns
	urgent fifo[*call] // sent before and sent again: they have waited longest

	waiting    int // calls in the flows and in urgent, those of left included
	left       int // of these, calls whose waiters have left
	inFlight   int // calls that are with the queue or a signer
	publishers int // goroutines that publish for this lane

	gathering bool          // one of them waits for more
	more      chan struct{} // tells it that there may be enough
}

// A flow is what one caller has waiting.
type flow struct {
	caller string
	calls  fifo[*call]
}

func newLane(issuer string, p queue.Priority) *lane {
	return &lane{issuer: issuer, priority: p, subject: queue.SignSubject(issuer, p), flows: map[string]*flow{}, more: make(chan struct{}, 1)}
}

func (l *lane) full(batch int) bool { return l.waiting >= batch }

// hasCompany reports whether half as much waits as is with the queue and the signers, so
// that a message is worth its cost, which is that of several of its requests. The busier
// the signers are the less a request gains by going at once; one that comes alone does.
func (l *lane) hasCompany() bool { return 2*l.waiting >= l.inFlight }

func (l *lane) push(c *call) {
	f := l.flows[c.caller]
	if f == nil {
		f = &flow{caller: c.caller}
		l.flows[c.caller] = f
		l.turns.push(f)
	}
	f.calls.push(c)
	l.waiting++
}

func (l *lane) pushUrgent(c *call) {
	l.urgent.push(c)
	l.waiting++
}

// pop returns the next call, or nil.
func (l *lane) pop() *call {
	if l.waiting == 0 {
		return nil
	}
	l.waiting--
	c, ok := l.urgent.pop()
	if !ok {
		f, _ := l.turns.pop()
		c, _ = f.calls.pop()
		l.keepTurn(f)
	}
	if c.state == gone {
		l.left--
	}
	return c
}

// keepTurn gives a flow another turn, if it has calls.
func (l *lane) keepTurn(f *flow) {
	if f.calls.len() > 0 {
		l.turns.push(f)
	} else {
		delete(l.flows, f.caller)
	}
}

// abandon takes note that a call in the lane is gone. A lane that is blocked forgets
// such calls when they are the most of it: callers with short patience, however many
// come, leave no more behind than wait.
func (l *lane) abandon() {
	const few = 64
	if l.left++; l.left <= few || 2*l.left <= l.waiting {
		return
	}
	wanted := func(c *call) bool { return c.state != gone }
	l.urgent = l.urgent.only(wanted)
	for range l.turns.len() {
		f, _ := l.turns.pop()
		f.calls = f.calls.only(wanted)
		l.keepTurn(f)
	}
	l.waiting, l.left = l.waiting-l.left, 0
}

// take returns up to n calls that somebody still waits for and whose encodings have
// up to size bytes together. One call is always taken, whatever its size.
func (l *lane) take(n, size int) []*call {
	var calls []*call
	for len(calls) < n {
		c := l.pop()
		if c == nil {
			break
		}
		if c.state == gone {
			continue
		}
		if calls == nil {
			calls = make([]*call, 0, min(n, l.waiting+1))
		}
		// The first call too big for this batch opens the next one.
		if size -= c.encoded.BatchSize(); size < 0 && len(calls) > 0 {
			l.pushUrgent(c)
			break
		}
		calls = append(calls, c)
	}
	return calls
}

// fifo is a queue on a ring that grows by doubling; its users bound it.
type fifo[T any] struct {
	ring []T
	head int
	n    int
}

func (q *fifo[T]) len() int { return q.n }

// only returns a queue of those that keep lets through, in their order. It empties q.
func (q *fifo[T]) only(keep func(T) bool) (out fifo[T]) {
	for v, ok := q.pop(); ok; v, ok = q.pop() {
		if keep(v) {
			out.push(v)
		}
	}
	return out
}

func (q *fifo[T]) push(v T) {
	if q.n == len(q.ring) {
		ring := make([]T, max(4, 2*q.n))
		for i := range q.n {
			ring[i] = q.ring[(q.head+i)%len(q.ring)]
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = v
	q.n++
}

func (q *fifo[T]) pop() (T, bool) {
	var zero T
	if q.n == 0 {
		return zero, false
	}
	v := q.ring[q.head]
	q.ring[q.head] = zero
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return v, true
}
