package presign

import (
	"context"
	"errors"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

// sweepSoon starts a sweep as soon as the one under way has ended.
func (p *Presigner) sweepSoon() {
	select {
	case p.kick <- struct{}{}:
	default: // one is asked for already
	}
}

// keepSwept compares ledger and Redis until ctx ends: at each interval, and at once
// when something was lost or a share of the work was gained.
func (p *Presigner) keepSwept(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		case <-timer.C:
		}
		took, err := p.sweep(ctx)
		if ctx.Err() != nil {
			return
		}
		next := p.cfg.pause(took)
		if errors.Is(err, errNotYet) {
			timer.Reset(min(next, 100*time.Millisecond))
			continue
		}
		if err != nil {
			next = min(next, time.Second)
			if !failing {
				p.deps.Log.Warn("the sweep did not end well; it is tried again", "error", err)
			}
		} else if failing {
			p.deps.Log.Info("the sweep works again")
		}
		failing = err != nil
		timer.Reset(next)
	}
}

// minPause lies between two sweeps that nothing asks for.
const minPause = 5 * time.Second

// pause is how long after a sweep the next one begins by itself: never later than
// sweep_interval, and sooner where sweeps are short.
func (c *Config) pause(took time.Duration) time.Duration {
	if c.SweepShare == 0 {
		return c.SweepInterval
	}
	cheap := time.Duration(float64(took) * (1 - c.SweepShare) / c.SweepShare)
	return min(max(cheap, minPause), c.SweepInterval)
}

// countPause is how long what was counted in Redis stands at least, unless the
// sweep_interval is shorter.
const countPause = time.Minute

// errNotYet says that this presigner has no share of the work or no signers yet.
var errNotYet = errors.New("nothing to sweep with yet")

// sweep is one comparison of this presigner's slices.
type sweep struct {
	p          *Presigner
	mask       uint64
	healing    bool // Redis is not complete: what is missing is signed at once
	start      time.Time
	examined   int
	due        map[source][]ledger.Status
	dueCount   int
	young      []ledger.Status // missing, but issued a moment ago: their event is on its way
	waited     time.Duration   // for those events
	told       int             // differences that were logged
	generation string
}

// youngAge is how long after its notBefore a certificate without a record may still
// have its event on the way; notBefore is backdated by minutes.
const youngAge = 15 * time.Minute

// youngWait is how long the sweep lets those events arrive.
const youngWait = 2 * time.Second

// maxYoung bounds the certificates that the sweep comes back to.
const maxYoung = 20_000

// maxTold bounds the differences that one sweep logs: an operator needs the first ones.
const maxTold = 100

// differs counts a record that is not what the ledger says, and logs which one: the
// runbook of the alert begins with its serial.
func (s *sweep) differs(kind string, st *ledger.Status) {
	s.p.metrics.mismatches.WithLabelValues(kind).Inc()
	if kind == mismatchMissing || kind == mismatchExpired || s.told == maxTold { // of a loss of Redis there are as many as certificates
		return
	}
	s.told++
	s.p.deps.Log.Error("an OCSP record differs from the ledger", "kind", kind, "serial", st.Serial)
}

// sweep makes Redis equal to the ledger for the slices held: revocations first, then
// by expiry. It changes nothing that is right. It returns for how long it was at work.
func (p *Presigner) sweep(ctx context.Context) (took time.Duration, err error) {
	slices := p.leases.held()
	if len(slices) == 0 || p.shared.Load() == nil {
		return 0, errNotYet
	}
	rctx, cancel := p.redis(ctx)
	generation, err := p.store.Generation(rctx)
	cancel()
	if err != nil {
		return 0, err
	}
	s := &sweep{p: p, mask: maskOf(slices), generation: generation, start: time.Now(), due: map[source][]ledger.Status{}}
	if s.healing, err = s.incomplete(ctx); err != nil {
		return 0, err
	}
	p.metrics.sweepRunning.Set(1)
	defer func() {
		p.metrics.sweepRunning.Set(0)
		p.metrics.sweepLeft.Set(0)
		p.metrics.backlog.Set(0)
	}()
	if err := s.run(ctx); err != nil {
		return 0, err
	}
	p.metrics.setTotal(s.examined)
	// Redis is walked through whole, empty shards too, so not after each of many short sweeps.
	if len(p.kick) == 0 && (s.mask != p.countedMask || time.Since(p.counted) >= min(countPause, p.cfg.SweepInterval)) {
		if err = p.count(ctx, s.mask); err == nil {
			p.counted, p.countedMask = time.Now(), s.mask
		}
	}
	return time.Since(s.start) - s.waited, err
}

func (s *sweep) incomplete(ctx context.Context) (bool, error) {
	ctx, cancel := s.p.redis(ctx)
	defer cancel()
	shared, err := s.p.store.Shared(ctx)
	if err != nil {
		return false, err
	}
	return !shared.Complete, nil
}

func (s *sweep) run(ctx context.Context) error {
	if s.healing {
		if err := s.revocations(ctx); err != nil {
			return err
		}
	}
	if err := s.certificates(ctx); err != nil {
		return err
	}
	if err := s.comeBack(ctx); err != nil {
		return err
	}
	// Slices that were lost on the way are another's to finish.
	kept := make([]int, 0, sliceCount)
	for _, n := range s.p.leases.held() {
		if s.mask>>n&1 != 0 {
			kept = append(kept, n)
		}
	}
	ctx, cancel := s.p.redis(ctx)
	defer cancel()
	counts, err := s.p.store.Swept(ctx, s.generation, sliceCount, kept)
	if err == nil && !counts {
		s.p.sweepSoon()
	}
	return err
}

// revocations publishes every revocation whose record is not there.
func (s *sweep) revocations(ctx context.Context) error {
	return s.p.eachRevocation(ctx, 0, s.p.cfg.SweepPage, func(page []ledger.Status, _ int64) error {
		if err := s.compare(ctx, page); err != nil {
			return err
		}
		return s.flush(ctx)
	})
}

// certificates walks through the ledger by serial, which is by expiry.
func (s *sweep) certificates(ctx context.Context) error {
	var after serial.Number
	total := s.p.metrics.lastTotal()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := s.p.deps.Ledger.SweepStatuses(ctx, after, s.p.cfg.SweepPage)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return s.flush(ctx)
		}
		after = page[len(page)-1].Serial
		if err := s.compare(ctx, page); err != nil {
			return err
		}
		if s.dueCount >= s.p.cfg.SweepPage {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
		s.progress(total)
	}
}

// progress shows how far the sweep is. The end is known from the last one.
func (s *sweep) progress(total float64) {
	m := s.p.metrics
	m.sweepExamined.Set(float64(s.examined))
	if done := float64(s.examined); done > 0 && total > done {
		m.sweepLeft.Set(time.Since(s.start).Seconds() * (total - done) / done)
	}
}

// compare reads the records of a page and notes what is to be signed.
func (s *sweep) compare(ctx context.Context, page []ledger.Status) error {
	mine := page[:0:0]
	held := s.mask & s.p.leases.mask()
	for _, st := range page {
		if holds(held, st.Serial) && st.Revocation&ledger.RevocationOCSP != 0 {
			mine = append(mine, st)
		}
	}
	s.examined += len(mine)
	rctx, cancel := s.p.redis(ctx)
	defer cancel()
	records, err := s.p.store.Get(rctx, serialsOf(mine))
	if err != nil {
		return err
	}
	view, now := s.p.shared.Load(), s.p.deps.Now()
	for i := range mine {
		why, mismatch := s.p.judge(view, &mine[i], records[i], now)
		switch {
		case why == "":
			if mismatch != "" { // left as it is, and somebody should look at it
				s.differs(mismatch, &mine[i])
			}
			continue
		case why == fromMissing && !s.healing && now.Sub(mine[i].NotBefore) < youngAge && len(s.young) < maxYoung:
			s.young = append(s.young, mine[i])
			continue
		}
		if mismatch != "" && !(s.healing && mismatch == mismatchMissing) {
			s.differs(mismatch, &mine[i])
		}
		if mismatch == mismatchUnread || mismatch == mismatchForged { // it might stand against any other
			if _, err := s.p.store.Drop(rctx, mine[i].Serial, records[i]); err != nil {
				return err
			}
		}
		s.due[why] = append(s.due[why], mine[i])
		s.dueCount++
	}
	s.p.metrics.backlog.Set(float64(s.dueCount + len(s.young)))
	return nil
}

// flush signs what is due, at the rate allowed.
func (s *sweep) flush(ctx context.Context) error {
	for _, why := range []source{fromDifference, fromMissing, fromRefresh} {
		for chunk := range chunks(s.due[why], putChunk) {
			if err := s.p.limiter.WaitN(ctx, len(chunk)); err != nil {
				return err
			}
			if err := s.p.publish(ctx, chunk, why, 0); err != nil {
				return err
			}
			s.dueCount -= len(chunk)
			s.p.metrics.backlog.Set(float64(s.dueCount + len(s.young)))
		}
		s.due[why] = s.due[why][:0]
	}
	return nil
}

// comeBack looks again at certificates whose event was on its way.
func (s *sweep) comeBack(ctx context.Context) error {
	if len(s.young) == 0 {
		return nil
	}
	timer := time.NewTimer(youngWait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		s.waited += youngWait
	}
	young := s.young
	s.young, s.healing = nil, true
	for chunk := range chunks(young, s.p.cfg.SweepPage) {
		// What the ledger said two seconds ago may have changed.
		now, err := s.p.deps.Ledger.Statuses(ctx, serialsOf(chunk))
		if err != nil {
			return err
		}
		if err := s.compare(ctx, now); err != nil {
			return err
		}
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	return nil
}

// judge decides whether a record must be signed anew and why, and names the mismatch
// where it contradicts the ledger. Where Redis says revoked and the ledger does not,
// as after a restore of the ledger, st is made revoked too: revocation is final, and
// an operator who means otherwise removes the record by hand. That takes a signature
// of ours: whoever can only write to Redis must not make the HSM sign a revocation.
func (p *Presigner) judge(view *sharedView, st *ledger.Status, record string, now time.Time) (why source, mismatch string) {
	if !now.Before(st.NotAfter.Add(-time.Second)) {
		return "", "" // nothing is left to be said
	}
	if record == "" {
		return fromMissing, mismatchMissing
	}
	rec, err := ocsp.DecodeRecord(record)
	if err != nil {
		return fromDifference, mismatchUnread
	}
	by := view.signed(st, &rec, record, now, &p.checked)
	switch {
	case by == signedByNobody:
		return fromDifference, mismatchForged
	case by == signedByUnknown && rec.Revoked && st.Revoked == nil:
		// Nobody can tell. It is not made good, and nothing is signed on its word.
		return "", mismatchRevoked
	case st.Revoked != nil && !rec.Revoked:
		return fromDifference, mismatchGood
	case st.Revoked == nil && rec.Revoked:
		mismatch = mismatchRevoked
		st.Revoked = &ledger.Revocation{Serial: st.Serial, Issuer: st.Issuer, Reason: int16(rec.Reason), RevokedAt: time.Unix(rec.RevokedAt, 0)}
	}
	switch signer, known := view.shared.Signers[rec.Signer]; {
	case !known || signer.Issuer != st.Issuer:
		return fromDifference, mismatchSignedBy
	case rec.NextUpdate > st.NotAfter.Unix():
		return fromDifference, mismatchTooLong
	case rec.Expired(now):
		return fromRefresh, mismatchExpired
	case rec.NextUpdate == st.NotAfter.Unix():
		return "", mismatch // a later answer would end no later
	case now.Unix() >= p.dueAt(&rec, st.Serial):
		return fromRefresh, mismatch
	}
	return "", mismatch
}

// dueAt is when a record is signed again: at refresh_at of its validity, less its own
// part of the spread. The part depends on thisUpdate as well, so that a herd spreads
// further with each round.
func (p *Presigner) dueAt(rec *ocsp.Record, n serial.Number) int64 {
	validity := float64(rec.NextUpdate - rec.ProducedAt)
	h := uint64(rec.ThisUpdate) * 0x9e3779b97f4a7c15
	for _, b := range n[6:] {
		h = (h ^ uint64(b)) * 0x100000001b3
	}
	part := float64(h>>11) / (1 << 53)
	return rec.ProducedAt + int64(validity*(p.cfg.RefreshAt-p.cfg.Spread*part))
}
