package gateway

import (
	"context"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

type callState uint8

const (
	waiting callState = iota // in its lane
	sending                  // with a publisher
	sent                     // with the queue or a signer
	gone                     // answered, or nobody waits any more
)

// A call is one request key at work, with all who wait for it. The dispatcher's mutex
// guards it, but for encoded, which belongs to the publisher while the state is sending.
type call struct {
	key      [queue.RequestKeySize]byte
	csr      [queue.DigestSize]byte
	caller   string
	order    bool     // answered by the broker's acknowledgement; in no table
	issuers  []string // that may issue it, in the order of its preference
	moves    int      // how often it went over to another of them
	lane     *lane
	encoded  queue.Request
	deadline time.Time // the latest of the waiters'
	waiters  []*waiter
	state    callState
	sent     time.Time // when it last went out
	late     time.Time // when it is sent again; by then the answer is late
	resends  int
	counted  bool // in lane.inFlight
	// failed is a signer's failure that came before the broker's acknowledgement.
	failed *queuev1.SignResult
}

type waiter struct {
	call   *call
	answer chan answer // holds one
}

type answer struct {
	result *queuev1.SignResult
	err    error
}

// join makes a waiter for r: of the call that has its key already, or of a new one.
func (d *Dispatcher) join(ctx context.Context, r *queuev1.SignRequest, p queue.Priority, others []string) (*waiter, error) {
	if err := queue.CheckRequest(r, r.GetIssuer()); err != nil {
		return nil, err
	}
	issuers := append([]string{r.Issuer}, others...)
	if slices.ContainsFunc(issuers, func(name string) bool { return !queue.ValidIssuer(name) }) || !slices.Contains(queue.Priorities, p) {
		return nil, problem.New(problem.Internal, "no such issuer or priority")
	}
	if err := d.brokerAway(); err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	c := &call{
		key: [queue.RequestKeySize]byte(r.RequestKey), csr: [queue.DigestSize]byte(r.CsrSha256),
		caller: r.Caller.Id, order: r.OrderId != "", deadline: deadline, issuers: issuers,
	}
	w := &waiter{call: c, answer: make(chan answer, 1)}

	d.mu.Lock()
	joined, err := d.admit(c, w, p)
	d.mu.Unlock()
	if joined || err != nil {
		return w, err
	}
	// Encoding is the dearest part: outside of the lock, in the caller's goroutine.
	if c.encoded, err = encode(ctx, r, deadline); err != nil {
		d.fail([]*call{c}, err)
		return w, nil
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	if c.state == gone {
		return w, nil // answered by shut
	}
	if d.recent.add(c.key) {
		c.encoded = c.encoded.SetSeen()
	}
	issuer := d.choose(c.issuers)
	if issuer != r.Issuer {
		c.encoded = c.encoded.SetIssuer(issuer)
	}
	c.lane = d.lane(issuer, p)
	c.lane.push(c)
	d.publishFrom(c.lane)
	return w, nil
}

// admit enters w, and its call unless w joins an earlier one. The caller holds the mutex.
func (d *Dispatcher) admit(c *call, w *waiter, p queue.Priority) (joined bool, err error) {
	switch {
	case !d.open:
		return false, problem.Down("gateway", d.cfg.RetryAfter, nil)
	case d.wait >= d.maxPending(p):
		d.metrics.refused.WithLabelValues("pending").Inc()
		return false, problem.Busy("gateway_pending", spread(d.cfg.RetryAfter), "too many requests wait for a signer")
	}
	if c.order {
		d.wait++
		c.waiters = append(c.waiters, w)
		return false, nil
	}
	if first := d.calls[c.key]; first != nil {
		if first.csr != c.csr {
			return false, conflict()
		}
		d.metrics.joined.Inc()
		w.call = first
		first.deadline = later(first.deadline, c.deadline)
		c = first
		joined = true
	} else {
		d.calls[c.key] = c
	}
	d.wait++
	c.waiters = append(c.waiters, w)
	return joined, nil
}

// maxPending bounds what may wait. The last quarter is for first certificates alone.
func (d *Dispatcher) maxPending(p queue.Priority) int {
	if p == queue.First {
		return d.cfg.MaxPending
	}
	return max(1, d.cfg.MaxPending/4*3)
}

// encode encodes r with what it lacks: deadline and trace. An order has no deadline
// of its caller's.
func encode(ctx context.Context, r *queuev1.SignRequest, deadline time.Time) (queue.Request, error) {
	out, err := queue.EncodeRequest(r)
	if err != nil {
		return nil, err
	}
	if r.DeadlineUnixMs == 0 && r.OrderId == "" {
		out = out.SetDeadline(deadline.UnixMilli())
	}
	if r.Traceparent == "" {
		if tp := queue.TraceParent(ctx); tp != "" {
			out = out.SetTraceparent(tp)
		}
	}
	if len(out) > queue.MaxRequestBytes {
		return nil, problem.Rejected("csr", "too_large", "the request has %d bytes on its way to the signer, more than %d", len(out), queue.MaxRequestBytes)
	}
	return out, nil
}

func (d *Dispatcher) lane(issuer string, p queue.Priority) *lane {
	subject := queue.SignSubject(issuer, p)
	l := d.lanes[subject]
	if l == nil {
		l = newLane(issuer, p)
		d.lanes[subject] = l
	}
	return l
}

// leave takes w out; the call of its last waiter ends with it, and is not sent if it
// has not been.
func (d *Dispatcher) leave(w *waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := w.call
	i := slices.Index(c.waiters, w)
	if c.state == gone || i < 0 {
		return
	}
	d.metrics.timeouts.Inc()
	c.waiters = slices.Delete(c.waiters, i, i+1)
	d.wait--
	if len(c.waiters) == 0 {
		d.finish(c, answer{})
	}
}

// finish ends a call and gives the answer to all who wait for it. The caller holds
// the mutex.
func (d *Dispatcher) finish(c *call, a answer) {
	if c.state == gone {
		return
	}
	inLane := c.state == waiting && c.lane != nil
	c.state = gone
	if inLane {
		c.lane.abandon()
	}
	if d.calls[c.key] == c {
		delete(d.calls, c.key)
	}
	if c.counted {
		c.counted = false
		c.lane.inFlight--
		d.publishFrom(c.lane)
	}
	for _, w := range c.waiters {
		w.answer <- a // holds one, and is given one
	}
	d.wait -= len(c.waiters)
	c.waiters = nil
}

// fail ends calls with an error.
func (d *Dispatcher) fail(calls []*call, err error) {
	a := answer{err: problem.From(err)}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range calls {
		d.finish(c, a)
	}
}

// brokerAway returns Unavailable when the broker has been away for longer than DownGrace.
func (d *Dispatcher) brokerAway() error {
	if since := d.conn.Away(); since > d.cfg.DownGrace {
		d.metrics.refused.WithLabelValues("nats").Inc()
		return problem.Down("nats", d.cfg.RetryAfter, d.conn.NATS.LastError())
	}
	return nil
}

func conflict() error {
	return &problem.Error{Kind: problem.Conflict, Field: "request_id", Rule: "same_csr",
		Detail: "this request id was used with another CSR; a new CSR needs a new request id"}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// recentKeys remembers between n and 2n of the last keys: when the young half is
// full, the old half is forgotten.
type recentKeys struct {
	n          int
	young, old map[[queue.RequestKeySize]byte]struct{}
}

func newRecentKeys(n int) recentKeys {
	return recentKeys{n: (n + 1) / 2, young: map[[queue.RequestKeySize]byte]struct{}{}}
}

// add remembers the key and reports whether it was known.
func (r *recentKeys) add(key [queue.RequestKeySize]byte) (known bool) {
	if _, known = r.young[key]; known {
		return true
	}
	_, known = r.old[key]
	if len(r.young) >= r.n {
		r.old, r.young = r.young, make(map[[queue.RequestKeySize]byte]struct{}, r.n)
	}
	r.young[key] = struct{}{}
	return known
}
