package gateway

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

const (
	// sweepInterval is how often late answers are looked for.
	sweepInterval = 50 * time.Millisecond
	// budgetCap is how many requests may be sent again at once: more than one signer
	// holds, so that the death of one is mended at once.
	budgetCap = 1000
	// leastTime is what must be left of a deadline for another try.
	leastTime = 50 * time.Millisecond
)

// resendLate sends again what has waited for a third of its time, until ctx ends.
func (d *Dispatcher) resendLate(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if d.conn.Ready() != nil {
				continue
			}
			d.mu.Lock()
			d.watchIssuers(now)
			for _, c := range d.calls {
				if c.state == sent && now.After(c.late) && !d.requeue(c, now, "late") {
					c.late = now.Add(time.Second) // no budget or no time: look again later
				}
			}
			d.mu.Unlock()
		}
	}
}

// watchConnection ends the publishers' waits when the connection is lost, and has
// everything sent again when it is back: requests and replies may be lost alike.
func (d *Dispatcher) watchConnection(ctx context.Context) error {
	changed := d.conn.NATS.StatusChanged(nats.CONNECTED, nats.RECONNECTING)
	defer d.conn.NATS.RemoveStatusListener(changed)
	for {
		select {
		case <-ctx.Done():
			return nil
		case status, ok := <-changed:
			if !ok {
				changed = nil // the connection was closed by its owner
				continue
			}
			d.mu.Lock()
			if status == nats.RECONNECTING && d.open {
				d.unlink()
				d.link, d.unlink = context.WithCancel(context.Background())
			}
			for _, c := range d.calls {
				c.late = time.Time{}
			}
			d.mu.Unlock()
			if status == nats.CONNECTED {
				select {
				case d.connected <- struct{}{}:
				default:
				}
			}
		}
	}
}

// sendAgain queues a call again whose signer could not do it just now: another one
// may, first of all another issuer's. The caller holds the mutex.
func (d *Dispatcher) sendAgain(c *call, f *queuev1.Failure) bool {
	if c.state != sent || problem.Kind(f.Kind) != problem.Unavailable {
		return false
	}
	now := time.Now()
	to := d.standIn(c, now)
	switch {
	case to == "":
		return d.requeue(c, now, "failed")
	case !d.away(c.lane.issuer, now): // its signers are at work: this is more work
		if d.budget < 1 {
			return false
		}
		d.budget--
	}
	d.move(c, to, "failed")
	return true
}

// requeue puts a call back into its lane, marked as seen, if tries, time and budget
// allow it. The caller holds the mutex.
func (d *Dispatcher) requeue(c *call, now time.Time, why string) bool {
	if c.resends >= d.cfg.MaxResends || c.deadline.Sub(now) < leastTime || d.budget < 1 {
		return false
	}
	d.budget--
	c.resends++
	d.metrics.resends.WithLabelValues(why).Inc()
	c.encoded = c.encoded.SetSeen().SetDeadline(c.deadline.UnixMilli())
	c.state = waiting
	c.lane.inFlight--
	c.counted = false
	c.lane.pushUrgent(c)
	d.publishFrom(c.lane)
	return true
}
