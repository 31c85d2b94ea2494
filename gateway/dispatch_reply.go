package gateway

import (
	"bytes"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

const (
	replyBacklog      = 65_536
	replyBacklogBytes = 64 << 20
)

// listen subscribes to this start's reply subject. The function that it returns ends
// the subscription and waits for its goroutine.
func (d *Dispatcher) listen() (closed func(), err error) {
	sub, err := d.conn.NATS.Subscribe(d.reply, d.takeReply)
	if err != nil {
		return nil, err
	}
	if err := sub.SetPendingLimits(replyBacklog, replyBacklogBytes); err != nil {
		return nil, fmt.Errorf("bounding the replies: %w", err)
	}
	done := make(chan struct{})
	sub.SetClosedHandler(func(string) { close(done) })
	return func() {
		if sub.Unsubscribe() == nil {
			<-done
		}
	}, nil
}

// takeReply gives the results in one message to those who wait.
func (d *Dispatcher) takeReply(m *nats.Msg) {
	var reply queuev1.SignReply
	if err := d.conn.Keys.Open(m.Subject, m.Data, &reply); err != nil {
		d.metrics.forged.Inc()
		d.log.Warn("a reply was not made by a signer of ours", "error", err)
		return
	}
	failpoint.Hit(failpoint.GatewayAnswered)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range reply.Results {
		if len(r.GetRequestKey()) != queue.RequestKeySize {
			d.metrics.strays.Inc()
			continue
		}
		c := d.calls[[queue.RequestKeySize]byte(r.RequestKey)]
		if c == nil {
			d.metrics.strays.Inc() // its caller has gone, or another copy was quicker
			continue
		}
		if r.Failure == nil || problem.Kind(r.Failure.Kind) != problem.Unavailable {
			d.issuer(c.lane.issuer).answered = time.Now()
		}
		if r.Failure != nil && c.state == sending {
			c.failed = r // its publisher still has it
			continue
		}
		d.settleCall(c, r)
	}
}

// settleCall sends a call again whose signer could not do it just now, or ends it. The
// caller holds the mutex.
func (d *Dispatcher) settleCall(c *call, r *queuev1.SignResult) {
	if r.Failure == nil || !d.sendAgain(c, r.Failure) {
		d.finish(c, judge(c, r))
	}
}

// judge makes an answer of a result.
func judge(c *call, r *queuev1.SignResult) answer {
	switch {
	case r.Failure != nil:
		return answer{err: problem.FromFailure(r.Failure)}
	case !bytes.Equal(r.CsrSha256, c.csr[:]):
		return answer{err: conflict()}
	case len(r.Der) == 0 || len(r.Serial) == 0:
		return answer{err: problem.New(problem.Internal, "the signer's answer holds no certificate")}
	}
	return answer{result: r}
}
