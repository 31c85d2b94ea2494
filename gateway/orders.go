package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// maxOrderWait bounds GetOrder's wait.
const maxOrderWait = 30 * time.Second

// submit accepts a request: the order is committed before this returns. Whether the
// queue has it too does not matter, since the sweep queues again what has no outcome.
func (s *service) submit(ctx context.Context, c *Caller, r *certmillv1.IssueRequest) (*certmillv1.Order, error) {
	p, err := s.prepare(ctx, c, r, namesOfCSR)
	if err != nil {
		return nil, err
	}
	if err := s.spend(ctx, c, p); err != nil {
		return nil, err
	}
	p.sign.DeadlineUnixMs = 0 // set each time it is queued
	encoded, err := proto.Marshal(p.sign)
	if err != nil {
		return nil, fmt.Errorf("encoding an order: %w", err)
	}
	order, created, err := s.ledger.CreateOrder(ctx, ledger.Order{
		Caller: c.ID, RequestKey: p.key, CSR: p.csr, ReuseUntil: s.now().Add(p.reuse),
		RequestID: r.RequestId, Request: encoded,
	})
	s.writable.note(err)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.GatewayOrdered)
	if created {
		if err := s.enqueueOrder(ctx, order.ID, p.sign, p.others); err != nil {
			s.log.Warn("an order could not be queued yet; the sweep will do it", "order", order.ID, "error", err)
		}
	}
	return s.orderMessage(ctx, &order)
}

func (s *service) enqueueOrder(ctx context.Context, id string, r *queuev1.SignRequest, others []string) error {
	r.OrderId = id
	// Twice the time until the sweep looks again: a signer that is late still signs,
	// and the ledger makes one certificate of both.
	r.DeadlineUnixMs = s.now().Add(2 * s.cfg.Orders.StaleAfter).UnixMilli()
	return s.signer.Enqueue(ctx, r, queue.Batch, others...)
}

// getOrder returns an order of the caller, waiting for its end up to r.Wait.
func (s *service) getOrder(ctx context.Context, c *Caller, r *certmillv1.GetOrderRequest) (*certmillv1.Order, error) {
	if _, err := uuid.Parse(r.Id); err != nil || len(r.Id) != 36 {
		return nil, problem.Rejected("id", "order_id", "an order's id is a UUID")
	}
	wait := r.Wait.AsDuration()
	if r.Wait.CheckValid() != nil && r.Wait != nil || wait < 0 || wait > maxOrderWait {
		return nil, problem.Rejected("wait", "wait_range", "wait is 0s to %s", maxOrderWait)
	}
	if err := s.waiting.acquire(1); err != nil {
		return nil, err
	}
	defer s.waiting.release(1)
	leave, err := s.admission.admit(ctx, s.admission.waiters, c, 1)
	if err != nil {
		return nil, err
	}
	defer leave()
	order, err := s.awaitOrder(ctx, c, r.Id, wait)
	if err != nil {
		return nil, err
	}
	return s.orderMessage(ctx, order)
}

// awaitOrder asks the ledger again and again, ever less often: an order may be
// finished by any signer for any gateway, and the ledger is where that shows.
func (s *service) awaitOrder(ctx context.Context, c *Caller, id string, wait time.Duration) (*ledger.Order, error) {
	end := time.Now().Add(wait)
	for pause := 25 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		order, err := s.ledger.Order(ctx, id)
		if err != nil {
			return nil, err
		}
		if order.Caller != c.ID && !c.has(Viewer, OperatorRole) {
			return nil, problem.Forbidden("id", "own_or_viewer", "the order is not yours")
		}
		left := time.Until(end)
		if order.Certificate != nil || order.State != ledger.OrderPending || left <= 0 {
			return &order, nil
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

func (s *service) orderMessage(ctx context.Context, o *ledger.Order) (*certmillv1.Order, error) {
	m := &certmillv1.Order{Id: o.ID, Created: timestamppb.New(o.Created), RequestId: o.RequestID, State: certmillv1.Order_STATE_PENDING}
	switch {
	case o.State == ledger.OrderIssued && o.Certificate == nil: // expired, and gone from the ledger
		m.State = certmillv1.Order_STATE_ISSUED
	case o.Certificate != nil:
		i, err := s.issuers.get(ctx, o.Certificate.Issuer)
		if err != nil {
			return nil, err
		}
		m.State = certmillv1.Order_STATE_ISSUED
		i = s.chainFor(o.Certificate.Profile, i)
		m.Certificate = s.storedCertificate(o.Certificate, i)
		m.Certificate.Chain, m.Certificate.Pem, m.Certificate.RequestId = i.chain, string(pemChain(o.Certificate.DER, i)), o.RequestID
	case o.State == ledger.OrderFailed:
		var f queuev1.Failure
		if err := proto.Unmarshal(o.Failure, &f); err != nil {
			return nil, fmt.Errorf("reading the failure of order %s: %w", o.ID, err)
		}
		m.State = certmillv1.Order_STATE_FAILED
		m.Problem = problemMessage(problem.FromFailure(&f), cmp.Or(o.RequestID, o.ID))
	}
	return m, nil
}

// sweep queues orders again that have no outcome, until ctx ends. Every gateway
// sweeps; the ledger hands each order to one of them.
func (s *service) sweep(ctx context.Context) {
	for {
		// Spread, so that gateways that were started together do not come together.
		timer := time.NewTimer(time.Duration((0.75 + 0.5*rand.Float64()) * float64(s.cfg.Orders.SweepInterval)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		for {
			n, err := s.sweepOnce(ctx)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("orders could not be swept", "error", err)
			}
			if err != nil || n < s.cfg.Orders.SweepBatch {
				break
			}
		}
	}
}

// sweepOnce takes one batch and returns how many orders it held.
func (s *service) sweepOnce(ctx context.Context) (int, error) {
	orders, err := s.ledger.ClaimStaleOrders(ctx, s.cfg.Orders.StaleAfter, s.cfg.Orders.SweepBatch)
	if err != nil {
		return 0, fmt.Errorf("claiming orders: %w", err)
	}
	for i := range orders {
		if err := s.requeue(ctx, &orders[i]); err != nil {
			return len(orders), fmt.Errorf("queueing order %s again: %w", orders[i].ID, err)
		}
	}
	return len(orders), nil
}

func (s *service) requeue(ctx context.Context, o *ledger.Order) error {
	if s.now().Sub(o.Created) > s.cfg.Orders.MaxAge {
		return s.failOrder(ctx, o, &problem.Error{Kind: problem.Unavailable, Rule: "order_expired", Detail: fmt.Sprintf("no signer could serve the order within %s; submit it again under another idempotency key", s.cfg.Orders.MaxAge)})
	}
	var r queuev1.SignRequest
	if err := proto.Unmarshal(o.Request, &r); err != nil {
		return s.failOrder(ctx, o, &problem.Error{Kind: problem.Internal, Detail: "the order cannot be read", Cause: err})
	}
	r.Seen = true
	// Issuers may have come and gone since it was made.
	var others []string
	if p, err := s.profiles.Get(r.Profile); err == nil {
		others = s.route(p, &r)
	}
	return s.enqueueOrder(ctx, o.ID, &r, others)
}

func (s *service) failOrder(ctx context.Context, o *ledger.Order, cause *problem.Error) error {
	failure, err := proto.Marshal(problem.ToFailure(cause))
	if err != nil {
		return fmt.Errorf("encoding a failure: %w", err)
	}
	failed, err := s.ledger.FailOrder(ctx, o.ID, failure)
	if failed {
		s.log.Warn("an order failed", "order", o.ID, "error", cause)
	}
	if errors.Is(err, &problem.Error{Kind: problem.NotFound}) {
		return nil // it left the ledger in between
	}
	return err
}
