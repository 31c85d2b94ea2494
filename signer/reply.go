package signer

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

const (
	// replyGroup and replyBytes bound one SignReply.
	replyGroup = 128
	replyBytes = 512 << 10
)

// finish records what became of a request and sees to it that whoever waits for it
// learns so: a gateway by a reply, an order by its row.
func (l *line) finish(d *delivery, r *queuev1.SignRequest, res *queuev1.SignResult, err error) {
	kind := problem.KindOf(err)
	l.s.metrics.ended(kind, l.issuer.Name, l.s.profileLabel(r.GetProfile()))
	l.tell(d, r, res, kind, err)
	late := errors.Is(err, errTooLate)
	if late {
		l.s.metrics.expired.Inc()
	}
	if r.GetOrderId() != "" {
		if err != nil && !late { // a late one is queued again by the sweep
			l.settleOrder(d, r, err)
		}
		l.complete(d)
		return
	}
	if err != nil {
		res = &queuev1.SignResult{RequestKey: r.GetRequestKey(), CsrSha256: r.GetCsrSha256(), Failure: problem.ToFailure(err)}
	}
	if d.reply == "" || late {
		l.complete(d) // nobody waits
		return
	}
	l.s.replies(d.reply).add(outcome{d: d, result: res})
}

// tell logs how a request ended, with its trace. The gateway logs every request, so what
// went well is logged here only where a trace leads to it.
func (l *line) tell(d *delivery, r *queuev1.SignRequest, res *queuev1.SignResult, kind problem.Kind, err error) {
	ctx, traced := queue.WithTraceParent(d.ctx, r.GetTraceparent())
	switch {
	case kind == problem.Internal:
		l.log.ErrorContext(ctx, "a request failed", "profile", r.GetProfile(), "caller", r.GetCaller().GetId(), "error", err)
	case err != nil:
		l.log.DebugContext(ctx, "a request failed", "profile", r.GetProfile(), "caller", r.GetCaller().GetId(), "kind", kind, "error", err)
	case traced:
		l.log.InfoContext(ctx, "a request was served", "profile", r.GetProfile(), "caller", r.GetCaller().GetId(),
			"serial", hex.EncodeToString(res.GetSerial()), "duplicate", res.GetDuplicate())
	}
}

// complete takes note that a request needs nothing more.
func (l *line) complete(d *delivery) {
	l.s.inFlight.Add(-1)
	d.done()
}

// settleOrder writes the failure of an order that trying again would not mend. Other
// failures are left to the next delivery, and after the last to the sweep. An order
// without a failure has the certificate under its request key.
func (l *line) settleOrder(d *delivery, r *queuev1.SignRequest, err error) {
	switch problem.KindOf(err) {
	case problem.Unavailable, problem.Overloaded:
		d.again.Store(true)
		return
	}
	failure, merr := proto.Marshal(problem.ToFailure(err))
	failed := false
	if merr == nil {
		ctx, cancel := context.WithTimeout(l.s.work, l.s.cfg.CommitTimeout)
		defer cancel()
		failed, merr = l.s.book.FailOrder(ctx, r.OrderId, failure)
	}
	switch {
	case failed:
		l.s.metrics.ordersFailed.Inc()
		l.log.Warn("an order failed", "order", r.OrderId, "caller", r.GetCaller().GetId(), "profile", r.Profile, "error", err)
	case merr != nil && problem.KindOf(merr) != problem.NotFound:
		l.log.Warn("the failure of an order could not be written", "order", r.OrderId, "error", merr)
		d.again.Store(true)
	}
}

// replies returns the batcher for one reply subject: one start of one gateway.
func (s *Signer) replies(subject string) *batcher[outcome] {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.outboxes[subject]
	if b == nil {
		b = &batcher[outcome]{size: replyGroup, owner: &s.writing, flush: func(group []outcome) { s.sendReplies(subject, group) }}
		s.outboxes[subject] = b
	}
	return b
}

// sweepReplies drops the batchers that have nothing to do: gateways come and go.
func (s *Signer) sweepReplies() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for subject, b := range s.outboxes {
		if b.idle() {
			delete(s.outboxes, subject)
		}
	}
}

func (s *Signer) sendReplies(subject string, group []outcome) {
	for len(group) > 0 {
		reply := &queuev1.SignReply{}
		size, n := 0, 0
		for n < len(group) {
			size += len(group[n].result.Der) + 256
			if n > 0 && size > replyBytes {
				break
			}
			reply.Results = append(reply.Results, group[n].result)
			n++
		}
		failpoint.Hit(failpoint.SignerReplying)
		err := s.conn.Publish(subject, reply)
		failpoint.Hit(failpoint.SignerReplied)
		s.metrics.replies.Inc()
		if err != nil {
			s.log.Warn("a reply could not be written", "results", n, "error", err)
		}
		for _, o := range group[:n] {
			if err != nil {
				o.d.again.Store(true) // the next delivery finds it in the ledger
			}
			o.d.line.complete(o.d)
		}
		group = group[n:]
	}
}

// remember and forget keep the deliveries for which the broker must be told that they
// are still at work.
func (s *Signer) remember(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliveries[d] = struct{}{}
}

func (s *Signer) forget(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.deliveries, d)
}

// showProgress keeps long deliveries from being handed out a second time.
func (s *Signer) showProgress(ctx context.Context) error {
	every := s.conn.Settings.AckWait / 3
	tick := time.NewTicker(max(every/2, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for _, d := range s.longer(now, every) {
				d.say(ackProgress)
			}
		}
	}
}

func (s *Signer) longer(now time.Time, than time.Duration) (long []*delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.deliveries {
		if now.Sub(d.shown) >= than {
			d.shown = now
			long = append(long, d)
		}
	}
	return long
}
