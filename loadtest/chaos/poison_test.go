package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/failpoint"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// aPoisonousOrderIsGivenUp lets one order kill with SIGKILL every signer that takes it.
// It ends with a failure that says so, after a bounded number of deaths, and the orders
// that came with it, in its messages too, get their certificates.
func aPoisonousOrderIsGivenUp(t *testing.T, r *drill) {
	random := rand.New(rand.NewPCG(4, 1))
	poison, event, err := r.load.request(40_000, random)
	if err != nil {
		t.Fatal(err)
	}
	signers := r.stack.of("signer")
	ready := func() {
		t.Helper()
		if err := r.stack.await(t.Context(), "every role", func() error { return r.stack.ready(t.Context()) }); err != nil {
			t.Fatal(err)
		}
	}
	restart := func(extra ...string) {
		ready() // one that is only just starting dies of the signal instead of ending
		for _, n := range signers {
			n.mu.Lock()
			n.extra = extra
			n.mu.Unlock()
			if n.name == spare {
				continue
			}
			if err := n.stop(); err != nil {
				t.Fatal(err)
			}
			n.revive()
		}
		ready()
	}
	restart(fmt.Sprintf("CERTMILL_FAILPOINT=%s=%s", failpoint.SignerPoisoned, event.Name))
	defer restart()
	deaths := func() (n int) {
		for _, s := range signers {
			s.mu.Lock()
			n += s.deaths
			s.mu.Unlock()
		}
		return n
	}
	before := deaths()

	// They come to one gateway at one moment, so that some travel in one message.
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	c := r.load.callers[0]
	requests := []*certmillv1.IssueRequest{poison}
	for i := range 24 {
		request, _, err := r.load.request(40_001+i, random)
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, request)
	}
	ends := make([]*certmillv1.Order, len(requests))
	var all sync.WaitGroup
	for i, request := range requests {
		all.Go(func() {
			order, err := c.submit(ctx, request)
			for err == nil && order.GetState() == certmillv1.Order_STATE_PENDING {
				order, err = c.order(ctx, order.GetId())
			}
			if err != nil {
				t.Errorf("order %d: %v", i, err)
			}
			ends[i] = order
		})
	}
	all.Wait()
	for _, o := range ends[1:] {
		if o.GetState() != certmillv1.Order_STATE_ISSUED || o.GetCertificate() == nil {
			t.Errorf("an order beside the poisonous one ended with %s: %v", o.GetState(), o.GetProblem())
		}
	}
	o := ends[0]
	if o.GetState() != certmillv1.Order_STATE_FAILED || o.GetProblem().GetRule() != "order_poisonous" {
		t.Errorf("the poisonous order ended with %s: %v", o.GetState(), o.GetProblem())
	}
	// One for the message that nobody suspects, two for the order; one more where two
	// signers had a copy.
	if n := deaths() - before; n < 3 || n > 5 {
		t.Errorf("%d signers died", n)
	} else {
		t.Logf("%d signers died, then the order failed: %s", n, o.GetProblem().GetDetail())
	}
	again, err := c.submit(ctx, poison)
	if err != nil || again.GetId() != o.GetId() || again.GetState() != certmillv1.Order_STATE_FAILED {
		t.Errorf("submitted once more it is %v, %v", again, err)
	}
}
