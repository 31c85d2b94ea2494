package gateway

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
)

// publishFrom wakes a publisher that gathers when there is enough for a message, and
// starts one when there is work for one more. The caller holds the mutex. A publisher
// lives as long as its lane has work: while one waits for the broker, what comes gathers
// for the next message, and only a full one is worth another publisher, unless one that
// gathers takes it.
func (d *Dispatcher) publishFrom(l *lane) {
	d.wake(l)
	if !d.open || l.waiting == 0 || l.publishers >= d.cfg.Publishers || l.inFlight >= d.cfg.MaxInFlight {
		return
	}
	if l.publishers > 0 && (l.gathering || !l.full(d.cfg.MaxBatch)) {
		return
	}
	l.publishers++
	d.publishing.Add(1)
	go d.publisher(l)
}

func (d *Dispatcher) publisher(l *lane) {
	defer d.publishing.Done()
	for {
		// Callers that became ready at the same instant, woken by one reply, come along.
		runtime.Gosched()
		if !d.gather(l) {
			return
		}
		b, ok := d.nextBatch(l)
		if !ok {
			return
		}
		d.publish(b)
	}
}

// Expect says that n more requests are about to be given to Do, or, negative, that so
// many fewer are. A message waits a moment for them.
func (d *Dispatcher) Expect(n int) {
	if d.coming.Add(int64(n)) > 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.lanes {
		d.wake(l)
	}
}

// gather waits until a message is worth sending, or for Gather. It ends the publisher,
// and returns false, where another one gathers already. The mutex is free.
func (d *Dispatcher) gather(l *lane) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.gathering {
		l.publishers--
		return false
	}
	if d.cfg.Gather == 0 || d.enough(l) {
		return true
	}
	l.gathering = true
	defer func() { l.gathering = false }()
	patience := time.NewTimer(d.patience())
	defer patience.Stop()
	for !d.enough(l) {
		d.mu.Unlock()
		ripe := false
		select {
		case <-l.more:
		case <-patience.C:
			ripe = true
		}
		d.mu.Lock()
		if ripe {
			break
		}
	}
	return true
}

// enough reports whether a message is worth sending now, or cannot be sent at all. The
// caller holds the mutex.
func (d *Dispatcher) enough(l *lane) bool {
	return l.full(d.cfg.MaxBatch) || l.inFlight >= d.cfg.MaxInFlight || d.coming.Load() <= 0 && l.hasCompany()
}

// wake wakes the publisher that gathers, once there is enough. The caller holds the mutex.
func (d *Dispatcher) wake(l *lane) {
	if !l.gathering || !d.enough(l) {
		return
	}
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// A batch is what goes out in one message.
type batch struct {
	lane     *lane
	calls    []*call
	deadline time.Time       // the latest; zero where an order has none
	reply    bool            // somebody waits
	link     context.Context // of the connection
}

// nextBatch takes what waits, or ends the publisher.
func (d *Dispatcher) nextBatch(l *lane) (b batch, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b = batch{lane: l, link: d.link}
	if room := d.cfg.MaxInFlight - l.inFlight; d.open && room > 0 {
		b.calls = l.take(min(d.cfg.MaxBatch, room), d.cfg.MaxBatchBytes)
	}
	if len(b.calls) == 0 {
		l.publishers--
		return b, false
	}
	now := time.Now()
	orders := false
	for _, c := range b.calls {
		c.state, c.sent = sending, now
		c.late = now.Add(c.deadline.Sub(now) / 3)
		if !c.counted {
			c.counted = true
			l.inFlight++
		}
		b.deadline = later(b.deadline, c.deadline)
		b.reply = b.reply || !c.order
		orders = orders || c.order
		d.budget = min(d.budget+d.cfg.ResendBudget, budgetCap)
	}
	if orders {
		b.deadline = time.Time{}
	}
	d.publishFrom(l) // as much again may have come while this one gathered
	return b, true
}

// publish sends the batch and waits until the broker has it. What the broker refuses
// fails at once; where it is not known whether the broker has it, the request stays,
// and is sent again soon.
func (d *Dispatcher) publish(b batch) {
	msg, err := d.message(b)
	if err != nil {
		d.log.Error("a batch cannot be sealed", "subject", b.lane.subject, "error", err)
		d.fail(b.calls, err)
		return
	}
	ctx, cancel := context.WithTimeout(b.link, d.cfg.PublishTimeout)
	defer cancel()
	start := time.Now()
	_, err = d.conn.JetStream.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(1), jetstream.WithRetryWait(100*time.Millisecond))
	failpoint.Hit(failpoint.GatewayPublished)
	d.metrics.publish.Observe(time.Since(start).Seconds())
	d.metrics.batch.Observe(float64(len(b.calls)))

	if refused := d.refusal(err); refused != nil {
		d.refuse(b.calls, refused)
		return
	}
	if err != nil {
		d.metrics.unsure.Inc()
		d.log.Debug("a batch may or may not be in the queue", "subject", b.lane.subject, "error", err)
	}
	d.published(b.calls, err)
}

// refuse ends calls that the broker has surely not taken, but for those that another
// issuer's part of the queue may take.
func (d *Dispatcher) refuse(calls []*call, err error) {
	a := answer{err: problem.From(err)}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range calls {
		if to := d.standIn(c, now); c.state == sending && to != "" {
			d.move(c, to, "refused")
		} else {
			d.finish(c, a)
		}
	}
}

// published takes note that the broker has the calls, or, with an error, may have them.
func (d *Dispatcher) published(calls []*call, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range calls {
		switch {
		case c.state != sending: // answered before the broker's acknowledgement was read
		case c.order && err != nil:
			d.finish(c, answer{err: problem.Down("queue", d.cfg.RetryAfter, err)})
		case c.order:
			d.finish(c, answer{})
		default:
			c.state = sent
			if err != nil {
				c.late = time.Time{}
			}
			if r := c.failed; r != nil {
				c.failed = nil
				d.settleCall(c, r)
			}
		}
	}
}

func (d *Dispatcher) message(b batch) (*nats.Msg, error) {
	encoded := make([]queue.Request, len(b.calls))
	for i, c := range b.calls {
		encoded[i] = c.encoded
	}
	data, err := d.conn.Keys.SealBatch(b.lane.subject, encoded)
	if err != nil {
		return nil, err
	}
	msg := &nats.Msg{Subject: b.lane.subject, Data: data, Header: make(nats.Header, 2)}
	if b.reply {
		msg.Header[queue.HeaderReply] = []string{d.reply}
	}
	if !b.deadline.IsZero() {
		msg.Header[queue.HeaderDeadline] = []string{strconv.FormatInt(b.deadline.UnixMilli(), 10)}
	}
	return msg, nil
}

// JetStream's error codes for a message that is surely not in the stream
// (nats-server server/errors.json).
const (
	codeInsufficientResources = 10023
	codeStoreFailed           = 10077 // a bound of the stream: messages or bytes
	codeClusterOverrun        = 10167
)

// refusal returns the problem where the broker has surely not taken the message.
func (d *Dispatcher) refusal(err error) error {
	if err == nil {
		return nil
	}
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api):
		switch api.ErrorCode {
		case codeStoreFailed, codeInsufficientResources, codeClusterOverrun:
			d.metrics.refused.WithLabelValues("queue").Inc()
			return problem.Busy("queue_full", spread(d.cfg.RetryAfter), "the queue to the signers is full")
		}
		d.metrics.refused.WithLabelValues("nats").Inc()
		return problem.Down("queue", d.cfg.RetryAfter, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrReconnectBufExceeded),
		errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrMaxPayload):
		d.metrics.refused.WithLabelValues("nats").Inc()
		return problem.Down("queue", d.cfg.RetryAfter, err)
	}
	return nil
}

// patience is how long a message waits at most: for Gather when there is enough under way
// for two full ones, and for less the less there is. The caller holds the mutex.
func (d *Dispatcher) patience() time.Duration {
	enough := 2 * d.cfg.MaxBatch
	return d.cfg.Gather * time.Duration(min(d.wait, enough)) / time.Duration(enough)
}
