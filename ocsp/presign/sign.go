package presign

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/codes"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// errExpired says that a certificate has no time left for an answer.
var errExpired = errors.New("the certificate has expired")

// sign makes the record for a status as it is now: one signature for each hash of a
// CertID. It fails with errExpired where nothing is to be said any more.
func (p *Presigner) sign(ctx context.Context, st *ledger.Status) (ocsp.Item, error) {
	now := p.deps.Now().Truncate(time.Second)
	view := p.shared.Load()
	if view == nil {
		return ocsp.Item{}, errors.New("the OCSP signers were not read yet")
	}
	d, err := view.delegate(st.Issuer, now)
	if err != nil {
		return ocsp.Item{}, err
	}
	rec := ocsp.Record{Status: p.state(st, d, now), Signer: d.template.SignerID}
	if rec.Expired(now) {
		return ocsp.Item{}, errExpired
	}
	if err := p.signRecord(ctx, d, st.Serial, &rec); err != nil {
		return ocsp.Item{}, err
	}
	encoded, err := rec.AppendTo(make([]byte, 0, 160))
	if err != nil {
		return ocsp.Item{}, err
	}
	return ocsp.Item{Serial: st.Serial, Record: string(encoded)}, nil
}

// state decides the times of an answer (RFC 9919 section 3.2.4, RFC 6960 section
// 4.2.2.1): nextUpdate never beyond the certificate or its signer.
func (p *Presigner) state(st *ledger.Status, d *delegate, now time.Time) ocsp.Status {
	next := now.Add(p.cfg.Validity)
	for _, end := range []time.Time{st.NotAfter, d.template.Signer.NotAfter} {
		if end.Before(next) {
			next = end
		}
	}
	s := ocsp.Status{ProducedAt: now.Unix(), ThisUpdate: now.Add(-p.cfg.Backdate).Unix(), NextUpdate: next.Unix()}
	if st.Revoked != nil {
		s.Revoked, s.RevokedAt, s.Reason = true, st.Revoked.RevokedAt.Unix(), uint8(st.Revoked.Reason)
	}
	return s
}

func (p *Presigner) signRecord(ctx context.Context, d *delegate, n serial.Number, rec *ocsp.Record) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	start := time.Now()
	for h := range ocsp.Hashes {
		sig, err := d.sign(ctx, h, n, &rec.Status)
		if err != nil {
			return err
		}
		if rand.Float64() < p.cfg.CheckShare {
			if err := d.template.Check(h, n, &rec.Status, sig); err != nil {
				p.metrics.badSignatures.Inc()
				return err
			}
		}
		rec.Signatures[h] = sig
	}
	p.metrics.signSeconds.Observe(time.Since(start).Seconds())
	return nil
}

// sign makes one compact signature.
func (d *delegate) sign(ctx context.Context, h ocsp.Hash, n serial.Number, s *ocsp.Status) (string, error) {
	var space [512]byte
	input, hash := d.template.SigningInput(d.template.AppendData(space[:0], h, n, s))
	sig, err := d.key.SignContext(ctx, input, hash)
	if err != nil {
		return "", err
	}
	return d.template.CompactSignature(sig)
}

// tryOut makes a signature and checks it, before the key signs what is published.
func (d *delegate) tryOut(ctx context.Context) error {
	var n serial.Number
	s := ocsp.Status{ProducedAt: 1, ThisUpdate: 1, NextUpdate: 2}
	sig, err := d.sign(ctx, ocsp.SHA256, n, &s)
	if err != nil {
		return err
	}
	return d.template.Check(ocsp.SHA256, n, &s, sig)
}

// source is why a record was signed: a label of the metrics.
type source string

const (
	fromIssued     source = "issued"     // an event of issue
	fromRevoked    source = "revoked"    // an event of revocation
	fromPoll       source = "poll"       // a revocation whose event did not come
	fromRefresh    source = "refresh"    // half of the validity has passed
	fromMissing    source = "missing"    // the sweep found no record
	fromDifference source = "difference" // the sweep found a record that contradicts the ledger
)

var sources = []source{fromIssued, fromRevoked, fromPoll, fromRefresh, fromMissing, fromDifference}

// publish signs statuses and writes the records, side by side up to the bound, and
// tells the responders of those that are revoked. acknowledged is when the ledger had
// the revocations in Unix milliseconds, or 0. On an error some may be published; all
// may be published again. What has expired is passed over.
func (p *Presigner) publish(ctx context.Context, statuses []ledger.Status, why source, acknowledged int64) error {
	if len(statuses) == 0 {
		return nil
	}
	ctx, span := p.deps.Tracer.Start(ctx, "ocsp.presign")
	defer span.End()
	err := p.publishAll(ctx, statuses, why, acknowledged)
	if err != nil {
		p.metrics.failures[why].Inc()
		span.SetStatus(codes.Error, "not published")
	}
	return err
}

func (p *Presigner) publishAll(ctx context.Context, statuses []ledger.Status, why source, acknowledged int64) error {
	items, signErr := p.signAll(ctx, statuses)
	// What was signed is written, whatever became of the others.
	for chunk := range chunks(items, putChunk) {
		if err := p.put(ctx, chunk, why, acknowledged); err != nil {
			return errors.Join(signErr, err)
		}
	}
	return signErr
}

func (p *Presigner) put(ctx context.Context, items []ocsp.Item, why source, acknowledged int64) error {
	ctx, cancel := p.redis(ctx)
	defer cancel()
	if err := p.store.Put(ctx, items); err != nil {
		return err
	}
	var revoked []ocsp.Revoked
	for i := range items {
		it := &items[i]
		p.metrics.written(why, it.Written)
		// An event may come twice because the first time ended before the announcement.
		if it.Revoked() && (it.Written == ocsp.Changed || why == fromRevoked) {
			revoked = append(revoked, ocsp.Revoked{Serial: it.Serial, Record: it.Record, AcknowledgedMS: acknowledged})
		}
	}
	return p.store.AnnounceRevoked(ctx, revoked)
}
