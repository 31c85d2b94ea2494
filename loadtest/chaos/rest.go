package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// rest waits until every acknowledged order has its outcome, and reads the ledger.
func (r *drill) rest(ctx context.Context, book *ledger.Ledger) (books judge.Books, err error) {
	events, err := r.rec.Events()
	if err != nil {
		return books, err
	}
	books.Orders = map[string]ledger.Order{}
	open := map[string]bool{}
	for i := range events {
		if e := &events[i]; e.Kind == judge.Submit && e.Outcome == judge.OK {
			open[e.Order] = true
		}
	}
	ids := len(open)
	for end := time.Now().Add(restWithin); len(open) > 0 && time.Now().Before(end); {
		for id := range open {
			o, err := book.Order(ctx, id)
			if problem.KindOf(err) == problem.NotFound {
				delete(open, id) // lost: it is not in the books
				continue
			}
			if err != nil {
				return books, err
			}
			books.Orders[id] = o
			if o.State != ledger.OrderPending {
				delete(open, id)
			}
		}
		if len(open) > 0 && !pause(ctx, 500*time.Millisecond) {
			return books, ctx.Err()
		}
	}
	r.say("%d orders, %d without an outcome", ids, len(open))
	for token := ""; ; {
		page, next, err := book.List(ctx, ledger.Filter{Caller: callerID}, token, ledger.MaxPage)
		if err != nil {
			return books, err
		}
		books.Certificates = append(books.Certificates, page...)
		if token = next; token == "" {
			return books, nil
		}
	}
}

// atRest are the gauges that must be 0 when nobody asks for anything.
var atRest = map[string][]string{
	"gateway": {"certmill_gateway_in_flight_requests", "certmill_gateway_dispatch_pending", "certmill_gateway_order_waiters"},
	"signer":  {"certmill_signer_in_flight", "certmill_hsm_sessions_busy", "certmill_ledger_commit_queue_rows", "certmill_signer_signatures_in_hand"},
}

// leaks records those gauges. They are given a few seconds to come to rest.
func (r *drill) leaks(ctx context.Context) {
	for role, gauges := range atRest {
		for _, n := range r.stack.of(role) {
			var values map[string]float64
			var err error
			for range 20 {
				if values, err = n.gauges(ctx, gauges); err == nil && zero(values) {
					break
				}
				pause(ctx, 250*time.Millisecond)
			}
			if err != nil {
				r.rec.Add(judge.Event{Kind: judge.Leak, At: time.Now(), Node: n.name, Name: err.Error(), Value: 1})
			}
			for name, v := range values {
				r.rec.Add(judge.Event{Kind: judge.Leak, At: time.Now(), Node: n.name, Name: name, Value: v})
			}
		}
	}
}

func zero(values map[string]float64) bool {
	for _, v := range values {
		if v != 0 {
			return false
		}
	}
	return true
}

// gauges reads gauges of a role, summed over their labels. One that the role does not
// have is an error: a check of nothing is none.
func (n *node) gauges(ctx context.Context, names []string) (map[string]float64, error) {
	body, _, err := n.ask(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for _, name := range names {
		f := families[name]
		if f == nil {
			return nil, fmt.Errorf("%s has no metric %s", n.name, name)
		}
		for _, m := range f.GetMetric() {
			values[name] += m.GetGauge().GetValue()
		}
	}
	return values, nil
}
