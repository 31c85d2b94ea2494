package presign

import (
	"context"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/telemetry"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// report tells gateways, every two seconds, how this presigner is, and passes on what
// responders have left in Redis, until ctx ends. A report that several presigners pass
// on counts once.
func (p *Presigner) report(ctx context.Context) {
	// By the name that outlives it: a process that takes the place of one that died is known
	// for it.
	r := presence.NewReporter(presence.Presigner, p.cfg.Name, p.describe)
	send := func(ctx context.Context, m *certmillv1.RoleStatus) error {
		if err := p.deps.Queue.Report(ctx, m); err != nil {
			return err
		}
		responders, err := p.store.Reports(ctx, p.deps.Now())
		for _, m := range responders {
			if err := p.deps.Queue.Report(ctx, m); err != nil {
				return err
			}
		}
		return err
	}
	r.Run(ctx, send, func(err error) { p.deps.Log.Debug("this presigner cannot report", "error", err) })
}

// describe fills in what this presigner reports of itself.
func (p *Presigner) describe(m *certmillv1.RoleStatus) {
	presence.State(m, p.Ready())
	m.Bounds = append(m.Bounds, &certmillv1.Bound{Name: "concurrency", Used: int64(len(p.slots)), Max: int64(cap(p.slots))})
	if p.deps.Tokens != nil {
		m.Tokens = p.deps.Tokens()
	}
	m.Ocsp = &certmillv1.OCSPStatus{
		Complete:          telemetry.Value(p.metrics.sweepLast) > 0,
		Records:           int64(telemetry.Value(p.metrics.redisRecords)),
		OldestProduced:    telemetry.Time(p.metrics.oldest),
		NearestNextUpdate: telemetry.Time(p.metrics.nearest),
		Swept:             telemetry.Time(p.metrics.sweepLast),
		Backlog:           int64(telemetry.Value(p.metrics.backlog)),
		SignerExpiry:      telemetry.Time(p.metrics.signerExpiry),
		Overdue:           int64(telemetry.Value(p.metrics.overdue)),
	}
}
