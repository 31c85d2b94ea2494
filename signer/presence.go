package signer

import (
	"context"

	"github.com/certmill/certmill/internal/presence"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// report tells gateways, every two seconds, how this signer is, until ctx ends.
func (s *Signer) report(ctx context.Context) error {
	r := presence.NewReporter(presence.Signer, s.cfg.Name, s.describe)
	r.Run(ctx, s.conn.Report, func(err error) { s.log.Debug("this signer cannot report", "error", err) })
	return nil
}

// describe fills in what this signer reports of itself.
func (s *Signer) describe(m *certmillv1.RoleStatus) {
	presence.State(m, s.Ready())
	if d := s.drain.Load(); d != nil {
		if m.State, m.Reason = presence.Drained, drainText(d); s.inFlight.Load() > 0 || len(s.allLines()) > 0 {
			m.State = presence.Draining
		}
	}
	m.Bounds = append(m.Bounds, &certmillv1.Bound{Name: "max_in_flight", Used: s.inFlight.Load(), Max: int64(s.cfg.MaxInFlight)})
	for _, l := range s.allLines() {
		// What cannot be signed for now is left to others: gateways go by this.
		if l.able() {
			m.Issuers = append(m.Issuers, l.issuer.Name)
		}
	}
	for _, t := range s.openTokens() {
		if d, ok := t.(interface {
			Status() *certmillv1.TokenStatus
		}); ok {
			m.Tokens = append(m.Tokens, d.Status())
		}
	}
	m.Tokens = append(m.Tokens, s.openings.Unopened()...)
}
