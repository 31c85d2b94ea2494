package gateway

import (
	"time"

	"github.com/certmill/certmill/internal/presence"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// RoleSource knows the processes of the service; *presence.Roll is the one for
// production. It is safe for concurrent use.
type RoleSource interface {
	// Roles returns the last report of each process, by role and name.
	Roles() []*certmillv1.RoleStatus
}

// QueueSource knows how full the queue is; *Dispatcher is the one for production. It
// is safe for concurrent use.
type QueueSource interface {
	// QueueStatus returns the last look at the queue, nil before the first.
	QueueStatus() *certmillv1.QueueStatus
}

// The parts for production.
var (
	_ RoleSource  = (*presence.Roll)(nil)
	_ QueueSource = (*Dispatcher)(nil)
)

// Reporter makes the reports of this gateway.
func (g *Gateway) Reporter() *presence.Reporter { return g.reporter }

// describe fills in what this gateway reports of itself.
func (g *Gateway) describe(m *certmillv1.RoleStatus) {
	presence.State(m, g.Ready())
	if g.stopping.Load() {
		m.State, m.Reason = presence.Draining, ""
	}
	s := g.service
	m.Bounds = append(m.Bounds,
		&certmillv1.Bound{Name: "limits.max_in_flight", Used: s.inFlight.used.Load(), Max: s.admission.calls.bound.Load()},
		&certmillv1.Bound{Name: "orders.max_waiting", Used: s.waiting.used.Load(), Max: s.waiting.max},
	)
	if d, ok := g.deps.Signer.(*Dispatcher); ok {
		m.Bounds = append(m.Bounds, d.bounds()...)
	}
	m.Issuance = s.issuance.window.Activity(time.Now())
}

// bounds are those of the dispatcher.
func (d *Dispatcher) bounds() []*certmillv1.Bound {
	d.mu.Lock()
	defer d.mu.Unlock()
	return []*certmillv1.Bound{{Name: "dispatch.max_pending", Used: int64(d.wait), Max: int64(d.cfg.MaxPending)}}
}

// QueueStatus implements QueueSource.
func (d *Dispatcher) QueueStatus() *certmillv1.QueueStatus { return d.queue.Load() }
