package signer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// An order is kept until it has an outcome, so one that kills the signer that works on
// it would kill one after the other. What is handed out again is therefore suspect: of
// all suspects a process works on one at a time, and the ledger has that it does. When
// the process dies, the mark stays, on the one that was at work; an order that has
// gathered mostDeaths of them fails. Those with fewer marks go first, so that the innocent
// are done before the next death.
//
// A request for whose answer a caller waits ends with its deadline, and needs none of
// this.

// mostDeaths is how many signers may die at a suspect.
const mostDeaths = 2

var errPoisonous = &problem.Error{Kind: problem.Internal, Rule: "order_poisonous",
	Detail: "signers died whenever they worked on the order, so it is not tried any more; ask the operators, who find its id in the log"}

// suspect is an order that was handed out before.
type suspect struct {
	request *queuev1.SignRequest
	deaths  int
}

// suspects returns the requests of a message that must be taken one at a time: orders
// that it has brought before, or at which a signer has died under another message.
func (l *line) suspects(ctx context.Context, d *delivery) (map[*queuev1.SignRequest]suspect, error) {
	var ids []string
	for _, r := range d.batch.Requests {
		if r.GetOrderId() != "" && (d.tries > 1 || r.GetSeen()) {
			ids = append(ids, r.OrderId)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	deaths, err := l.s.book.OrderDeaths(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("asking who died at an order: %w", err)
	}
	found := map[*queuev1.SignRequest]suspect{}
	for _, r := range d.batch.Requests {
		if r.GetOrderId() != "" && (d.tries > 1 || deaths[r.OrderId] > 0) {
			found[r] = suspect{request: r, deaths: deaths[r.OrderId]}
		}
	}
	return found, nil
}

// serveSuspects takes suspects of one message in turn.
func (l *line) serveSuspects(d *delivery, all []suspect) {
	defer l.work.Done()
	slices.SortStableFunc(all, func(a, b suspect) int { return cmp.Compare(a.deaths, b.deaths) })
	for range all {
		l.signed() // who waits for a turn here keeps no session from others
	}
	for _, s := range all {
		res, err := l.serveSuspect(d, s)
		l.finish(d, s.request, res, err)
		l.work.Done()
	}
}

func (l *line) serveSuspect(d *delivery, s suspect) (res *queuev1.SignResult, err error) {
	if s.deaths >= mostDeaths {
		l.s.metrics.ordersPoisonous.Inc()
		l.log.Error("an order is given up: signers died at it", "order", s.request.OrderId, "deaths", s.deaths+1)
		return nil, errPoisonous
	}
	select {
	case l.s.oneSuspect <- struct{}{}:
		defer func() { <-l.s.oneSuspect }()
	case <-d.ctx.Done():
		return nil, errTooLate
	}
	if err := l.s.book.BeginOrder(d.ctx, s.request.OrderId); err != nil {
		l.s.gate.note(err)
		return nil, fmt.Errorf("marking an order: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(l.s.work, l.s.cfg.CommitTimeout)
		defer cancel()
		if err := l.s.book.EndOrder(ctx, s.request.OrderId); err != nil && !errors.Is(err, context.Canceled) {
			l.log.Warn("the mark on an order could not be taken off", "order", s.request.OrderId, "error", err)
		}
	}()
	w := walk{line: l, d: d, r: s.request, signed: true}
	return w.run()
}
