package chaos

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/failpoint"
)

// nothingIsLostWhereverAProcessDies kills a gateway or a signer with SIGKILL at
// every stop of the walk of a request. Every request gets its certificate, and the
// account of every epoch closes. Without CERTMILL_ALL_FAILPOINTS=1 it takes the four
// stops between the signature and the reply (make failpoints: all).
func nothingIsLostWhereverAProcessDies(t *testing.T, r *drill) {
	points := []string{failpoint.SignerSigned, failpoint.SignerCommitting, failpoint.SignerCommitted, failpoint.SignerReplying}
	if os.Getenv("CERTMILL_ALL_FAILPOINTS") != "" {
		points = failpoint.All
	}
	all := r.load.callers
	op := 0
	for _, point := range points {
		victim, others := "signer-1", "signer-2"
		r.load.callers = all
		if strings.HasPrefix(point, "gateway") {
			victim, others = "gateway-1", ""
		}
		times := ":3"
		if point == failpoint.SignerReporting {
			times = ":1"
		}
		n := r.stack.byName[victim]
		n.mu.Lock()
		n.extra = []string{"CERTMILL_FAILPOINT=" + point + times}
		n.mu.Unlock()
		if others != "" {
			if err := r.stack.byName[others].stop(); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		old := n.process()
		n.revive()
		if err := r.stack.await(t.Context(), victim, func() error {
			if n.process() == old {
				return errNotYet
			}
			return n.ready(t.Context())
		}); err != nil {
			t.Fatal(err)
		}
		n.mu.Lock()
		n.extra = nil // the next start is an ordinary one
		n.mu.Unlock()
		doomed := n.process()
		var work sync.WaitGroup
		for range 12 {
			op++
			number := op
			work.Go(func() { r.load.operate(t.Context(), number) })
		}
		select {
		case <-doomed.Done():
			if s := doomed.Status(); s != "signal: killed" {
				t.Errorf("%s: %s ended with %s", point, victim, s)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: %s did not die", point, victim)
		}
		work.Wait()
		if others != "" {
			r.stack.byName[others].revive()
		}
	}
	if err := r.stack.await(t.Context(), "every role", func() error { return r.stack.ready(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // the accounts of the dead are closed a second after a start
	r.acquitted(t)
	for _, n := range r.stack.of("signer") { // the judge has stopped them
		n.revive()
	}
}

var errNotYet = errors.New("it has not started again")
