package signer

import (
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

const (
	eventGroup   = 256
	eventBacklog = 16_384
)

// announce tells presigners of a committed certificate whose status is published. It
// is an effort, no promise: the presigners' sweep of the ledger finds what is lost.
func (s *Signer) announce(l *line, c ledger.Certificate) {
	if c.Revocation != 0 && !l.events.add(c) {
		s.metrics.eventsDropped.Inc()
	}
}

func (l *line) sendEvents(group []ledger.Certificate) {
	event := &queuev1.IssuedEvent{Issued: make([]*queuev1.Issued, len(group))}
	for i, c := range group {
		event.Issued[i] = &queuev1.Issued{
			Serial: c.Serial[:], IssuerId: c.Issuer, Revocation: uint32(c.Revocation),
			NotBeforeUnix: c.NotBefore.Unix(), NotAfterUnix: c.NotAfter.Unix(),
		}
	}
	if err := l.s.conn.Publish(queue.IssuedSubject(l.issuer.Name), event); err != nil {
		l.s.metrics.eventsDropped.Add(float64(len(group)))
		l.log.Debug("certificates could not be announced", "error", err)
	}
}
