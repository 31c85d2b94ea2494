package signer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// serveKnown asks the ledger once for all requests of a message that may have their
// certificate already, and sets the others to work.
func (l *line) serveKnown(d *delivery) {
	defer l.work.Done()
	now := l.s.now()
	var keys []ledger.RequestKey
	for _, r := range d.batch.Requests {
		if l.mayBeKnown(d, r, now) {
			keys = append(keys, ledger.RequestKey(r.RequestKey))
		}
	}
	var found map[ledger.RequestKey]ledger.Found
	var err error
	if len(keys) > 0 {
		l.s.metrics.lookups.Add(float64(len(keys)))
		found, err = l.s.book.Lookup(d.ctx, keys)
		l.s.gate.note(err)
	}
	var suspects map[*queuev1.SignRequest]suspect
	if err == nil {
		suspects, err = l.suspects(d.ctx, d)
		l.s.gate.note(err)
	}
	var inTurn []suspect
	for _, r := range d.batch.Requests {
		if !l.mayBeKnown(d, r, now) {
			l.s.crew.begin(task{l, d, r})
			continue
		}
		f, known := found[ledger.RequestKey(r.RequestKey)]
		switch {
		case err != nil:
			// Without the ledger a signature would be made for nothing.
			l.conclude(d, r, nil, fmt.Errorf("looking for an earlier certificate: %w", err))
		case known && f.Refusal([queue.DigestSize]byte(r.CsrSha256)) != nil:
			l.conclude(d, r, nil, f.Refusal([queue.DigestSize]byte(r.CsrSha256)))
		case known:
			// Whoever made it may have died before it could announce it.
			l.s.announce(l, f.Certificate)
			l.conclude(d, r, l.result(r, f.Certificate, true), nil)
		default:
			if s, ok := suspects[r]; ok {
				inTurn = append(inTurn, s)
			} else {
				l.s.crew.begin(task{l, d, r})
			}
		}
	}
	if len(inTurn) > 0 {
		l.work.Add(1)
		go l.serveSuspects(d, inTurn)
	}
}

func (l *line) mayBeKnown(d *delivery, r *queuev1.SignRequest, now time.Time) bool {
	return (d.tries > 1 || r.GetSeen()) && l.timely(r, now) == nil && queue.CheckRequest(r, l.issuer.Name) == nil
}

// conclude ends a request that needed no signature.
func (l *line) conclude(d *delivery, r *queuev1.SignRequest, res *queuev1.SignResult, err error) {
	defer l.work.Done()
	l.signed()
	l.finish(d, r, res, err)
}

// serve brings one request from the queue into the ledger.
func (l *line) serve(d *delivery, r *queuev1.SignRequest) {
	defer l.work.Done()
	w := walk{line: l, d: d, r: r}
	res, err := w.run()
	l.finish(d, r, res, err)
}

// A walk is one request on its way through the signer.
type walk struct {
	line   *line
	d      *delivery
	r      *queuev1.SignRequest
	signed bool
	holds  []*seat // where it was signed or tried
	// The signature that was made, in the hand of its seat.
	seat *seat
	slot int32

	prepareTime, signTime, commitTime time.Duration
}

// run contains a panic: the request that made it fails, the others go on.
func (w *walk) run() (res *queuev1.SignResult, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.line.s.metrics.poison.Inc()
			res, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		w.leaveSign()
		for _, s := range w.holds {
			s.held.Done()
		}
	}()
	return w.issue()
}

// leaveSign makes room for the next request: this one needs no session any more.
func (w *walk) leaveSign() {
	if !w.signed {
		w.signed = true
		w.line.signed()
	}
}

func (w *walk) issue() (*queuev1.SignResult, error) {
	l, r := w.line, w.r
	start := time.Now()
	wait := max(0, start.Sub(w.d.queued))

	// Step 1: shape, and whether anybody still waits.
	if err := queue.CheckRequest(r, l.issuer.Name); err != nil {
		return nil, err
	}
	if time.Duration(r.ReuseSeconds)*time.Second > ledger.MaxReuse {
		return nil, problem.Rejected("reuse_seconds", "max_reuse", "a request key stands for at most %s", ledger.MaxReuse)
	}
	if err := l.timely(r, l.s.now()); err != nil {
		return nil, err
	}
	ctx, traced := queue.WithTraceParent(w.d.ctx, r.Traceparent)
	telemetry.Observe(ctx, l.s.metrics.queueWait, wait.Seconds())
	if traced {
		_, span := l.s.tracer.Start(ctx, "queue.wait", trace.WithTimestamp(w.d.queued))
		span.End()
	}
	request, err := profile.FromQueue(r)
	if err != nil {
		return nil, err
	}

	failpoint.HitOn(failpoint.SignerPoisoned, request.DNSNames...)

	// Steps 2 and 3: prepare by the profile and sign. A token that fails is not the
	// request's fault: one more try, on another token if there is one.
	cert, err := w.prepareAndSign(ctx, traced, request)
	if err != nil {
		return nil, err
	}
	w.leaveSign()

	// Step 4: commit. The signature is made, so this does not end with the caller's
	// deadline: a retry must find the certificate.
	out, err := w.commit(ctx, traced, cert)
	if err != nil {
		return nil, err
	}
	if !out.Duplicate {
		l.s.announce(l, out.Certificate)
	}
	res := l.result(r, out.Certificate, out.Duplicate)
	res.QueueUs, res.PrepareUs = micros(wait), micros(w.prepareTime)
	res.SignUs, res.CommitUs = micros(w.signTime), micros(w.commitTime)
	return res, nil
}

// timely fails when what is left of the request's deadline is not worth a signature.
func (l *line) timely(r *queuev1.SignRequest, now time.Time) error {
	ms := r.GetDeadlineUnixMs()
	if ms != 0 && now.Add(l.s.cfg.DeadlineSlack).UnixMilli() > ms {
		return errTooLate
	}
	return nil
}

// errTooLate ends a request whose caller has gone or will have before the reply.
var errTooLate = &problem.Error{Kind: problem.Unavailable, Rule: "deadline",
	Detail: "the deadline passed before the certificate was signed; repeat the request", RetryAfter: time.Second}

func (w *walk) prepareAndSign(ctx context.Context, traced bool, request *profile.Request) (ledger.Certificate, error) {
	l := w.line
	var used *seat
	for try := 1; ; try++ {
		s := l.hold(used)
		if s == nil {
			return ledger.Certificate{}, problem.Down("hsm", time.Second, nil)
		}
		w.holds = append(w.holds, s)
		cert, err := w.signOn(ctx, traced, s, request)
		if err == nil || try == 2 || !tokensFault(err) || l.timely(w.r, l.s.now()) != nil || ctx.Err() != nil {
			return cert, err
		}
		l.s.metrics.retries.Inc()
		l.log.Debug("a signature is tried again", "token", s.token.Serial(), "error", err)
		used = s
	}
}

func tokensFault(err error) bool {
	return problem.KindOf(err) == problem.Unavailable || errors.Is(err, ErrBadSignature)
}

func (w *walk) signOn(ctx context.Context, traced bool, s *seat, request *profile.Request) (ledger.Certificate, error) {
	l := w.line
	s.load.Add(1)
	defer s.load.Add(-1)

	start := time.Now()
	p, err := w.prepare(ctx, traced, s, request)
	prepared := time.Now()
	w.prepareTime += prepared.Sub(start)
	telemetry.Observe(ctx, l.s.metrics.prepare, prepared.Sub(start).Seconds())
	if err != nil {
		return ledger.Certificate{}, err
	}
	failpoint.Hit(failpoint.SignerPrepared)
	slot, err := s.hand.take(p.Serial())
	if err != nil {
		return ledger.Certificate{}, err
	}
	cert, err := p.Sign(ctx, s.key)
	took := time.Since(prepared)
	w.signTime += took
	telemetry.Observe(ctx, l.s.metrics.sign, took.Seconds())
	if err == nil {
		failpoint.Hit(failpoint.SignerSigned)
		s.hand.signed(slot)
		w.seat, w.slot = s, slot
		return cert, nil
	}
	if errors.Is(err, ErrBadSignature) {
		s.token.Condemn(err)
		s.hand.signed(slot)
		l.s.account.put(loose{s, slot, ledger.StrayRefused})
	} else {
		s.hand.settle(slot, 0) // no signature came out of the token
	}
	return ledger.Certificate{}, fmt.Errorf("signing in token %s: %w", s.token.Serial(), err)
}

func (w *walk) prepare(ctx context.Context, traced bool, s *seat, request *profile.Request) (prepared, error) {
	if traced {
		_, span := w.line.s.tracer.Start(ctx, "signer.prepare")
		defer span.End()
	}
	p, err := w.line.prep.prepare(request, s.epoch)
	if err != nil {
		if k := problem.KindOf(err); k == problem.Invalid || k == problem.Denied {
			w.line.s.metrics.refused.Inc()
		}
		return nil, fmt.Errorf("preparing the certificate: %w", err)
	}
	return p, nil
}

func (w *walk) commit(ctx context.Context, traced bool, cert ledger.Certificate) (ledger.Outcome, error) {
	s := w.line.s
	commitCtx := w.d.commitCtx
	if traced {
		commitCtx = trace.ContextWithSpanContext(commitCtx, trace.SpanContextFromContext(ctx))
	}
	failpoint.Hit(failpoint.SignerCommitting)
	start := time.Now()
	out, err := s.committer.Commit(commitCtx, ledger.Entry{
		Certificate: cert,
		RequestKey:  ledger.RequestKey(w.r.RequestKey),
		CSR:         [queue.DigestSize]byte(w.r.CsrSha256),
		ReuseUntil:  reuseUntil(w.r, s.now()),
	})
	failpoint.Hit(failpoint.SignerCommitted)
	s.account.settle(w.seat, w.slot, out.Duplicate, err)
	w.commitTime = time.Since(start)
	telemetry.Observe(commitCtx, s.metrics.commit, w.commitTime.Seconds())
	s.gate.note(err)
	if err != nil {
		return out, fmt.Errorf("committing certificate %s: %w", cert.Serial, err)
	}
	return out, nil
}

// reuseUntil is when the request's key may make another certificate: not before its
// deadline, until which other copies of the request may come out of the queue.
func reuseUntil(r *queuev1.SignRequest, now time.Time) time.Time {
	until := now.Add(time.Duration(r.ReuseSeconds) * time.Second)
	last := time.UnixMilli(min(r.DeadlineUnixMs, now.Add(queue.MaxAge).UnixMilli()))
	if last.After(until) {
		return last
	}
	return until
}

func (l *line) result(r *queuev1.SignRequest, c ledger.Certificate, duplicate bool) *queuev1.SignResult {
	return &queuev1.SignResult{
		RequestKey: r.RequestKey, Serial: c.Serial[:], Der: c.DER, Duplicate: duplicate,
		ProfileVersion: c.ProfileVersion, IssuerId: c.Issuer, CsrSha256: r.CsrSha256,
	}
}

func micros(d time.Duration) uint32 { return uint32(min(d.Microseconds(), 1<<32-1)) }
