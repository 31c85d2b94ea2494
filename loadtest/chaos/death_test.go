package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// nothingIsLostWhereverAProcessDies kills a gateway or a signer with SIGKILL at
// every stop of the walk of a request, under load. Every operation gets what it asked
// for, and `ledger reconcile` closes the account of each epoch that died, before the next
// stop. Without CERTMILL_ALL_FAILPOINTS=1 it takes the four stops between the signature
// and the reply (make failpoints: all).
func nothingIsLostWhereverAProcessDies(t *testing.T, r *drill) {
	points := []string{failpoint.SignerSigned, failpoint.SignerCommitting, failpoint.SignerCommitted, failpoint.SignerReplying}
	if os.Getenv("CERTMILL_ALL_FAILPOINTS") != "" {
		points = failpoint.All
	}
	d := &deaths{drill: r, listed: map[string]int{}}
	for _, point := range points {
		d.at(t, point)
	}
	if err := r.stack.await(t.Context(), "every role", func() error { return r.stack.ready(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d stops:\n\n| killed at | operations meanwhile | served | slowest | signatures without a certificate | account |\n|---|---|---|---|---|---|\n%s", len(points), d.table.String())
	r.acquitted(t)
	for _, n := range r.stack.of("signer") { // the judge has stopped them
		n.revive()
	}
}

// deaths kills one process after the other, and keeps the table of what came of it.
type deaths struct {
	*drill
	ops    atomic.Int64
	listed map[string]int // strays listed so far, by signer
	table  strings.Builder
}

// at lets a process die at a stop while operations go on, and waits until what was under
// way has its end and the account of the dead is closed.
func (d *deaths) at(t *testing.T, point string) {
	t.Helper()
	victim := "signer-1"
	if strings.HasPrefix(point, "gateway") {
		victim = "gateway-1"
	}
	n := d.stack.byName[victim]
	doomed := d.arm(t, n, point)
	past, err := d.rec.Events()
	if err != nil {
		t.Fatal(err)
	}
	failed, begun := d.load.failed, d.load.ops
	var work sync.WaitGroup
	var over atomic.Bool
	for range 8 {
		work.Go(func() {
			for !over.Load() {
				d.load.operate(t.Context(), int(d.ops.Add(1)))
			}
		})
	}
	select {
	case <-doomed.Done():
		if s := doomed.Status(); s != "signal: killed" {
			t.Errorf("%s: %s ended with %s", point, victim, s)
		}
	case <-time.After(30 * time.Second):
		t.Errorf("%s: %s did not die", point, victim)
	}
	over.Store(true)
	work.Wait() // what has begun is seen through
	ops, lost := d.load.ops-begun, d.load.failed-failed
	if lost > 0 {
		t.Errorf("%s: %d of %d operations got nothing", point, lost, ops)
	}
	// Its successor first: until then the epoch of the dead looks like one that runs.
	if err := d.stack.await(t.Context(), "the successor of "+victim, func() error {
		if n.process() == doomed {
			return errNotYet
		}
		return n.ready(t.Context())
	}); err != nil {
		t.Fatal(err)
	}
	account, strays := "none", 0
	if victim == "signer-1" {
		account, strays = "closed", d.closed(t, point, victim)
	}
	events, err := d.rec.Events()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&d.table, "| `%s` | %d | %d | %.1f s | %d | %s |\n", point, ops, ops-lost, slowest(events[len(past):]).Seconds(), strays, account)
}

// arm starts a node again, so that it dies at a stop after it has passed it three times,
// and returns the process that will.
func (d *deaths) arm(t *testing.T, n *node, point string) *local.Process {
	t.Helper()
	times := 3
	if point == failpoint.SignerReporting {
		times = 1 // which comes every two seconds
	}
	set := func(extra ...string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.extra = extra
	}
	set(fmt.Sprintf("CERTMILL_FAILPOINT=%s:%d", point, times))
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	old := n.process()
	n.revive()
	var doomed *local.Process
	if err := d.stack.await(t.Context(), n.name, func() error {
		if doomed = n.process(); doomed == old {
			return errNotYet
		}
		set() // the next start is an ordinary one
		if doomed.Status() != "" {
			return nil // so soon
		}
		return n.ready(t.Context())
	}); err != nil {
		t.Fatal(err)
	}
	return doomed
}

var errNotYet = errors.New("it has not started again")

// closed waits until `ledger reconcile` says that every epoch of a signer but the one
// that runs is closed, and returns how many signatures it has listed since the last time.
func (d *deaths) closed(t *testing.T, point, signer string) int {
	t.Helper()
	all := 0
	if err := d.stack.await(t.Context(), "the accounts of "+signer, func() error {
		out, err := d.stack.command(t.Context(), "ledger", "reconcile", "-o", "json", "--config", d.stack.dir.Path("config", "maintenance.yaml"))
		if err != nil {
			return err
		}
		var accounts []struct {
			Epoch  uint32
			Signer string
			Issuer int32
			State  ledger.AccountState
			Strays []json.RawMessage
		}
		if err := json.Unmarshal(out, &accounts); err != nil {
			return err
		}
		newest := map[int32]uint32{}
		for _, a := range accounts {
			if a.Signer == signer {
				newest[a.Issuer] = max(newest[a.Issuer], a.Epoch)
			}
		}
		all = 0
		for _, a := range accounts {
			if a.Signer != signer {
				continue
			}
			all += len(a.Strays)
			if a.State != ledger.AccountClosed && (a.State != ledger.AccountRunning || a.Epoch != newest[a.Issuer]) {
				return fmt.Errorf("epoch %d is %s", a.Epoch, a.State)
			}
		}
		return nil
	}); err != nil {
		t.Errorf("%s: %v", point, err)
	}
	more := all - d.listed[signer]
	d.listed[signer] = all
	return more
}

// slowest returns how long the slowest operation took, from its first call to the end of
// its last.
func slowest(events []judge.Event) (most time.Duration) {
	began := map[int]time.Time{}
	for i := range events {
		e := &events[i]
		if !isCall(e) && e.Kind != judge.Order {
			continue
		}
		if at, ok := began[e.Op]; !ok || e.At.Before(at) {
			began[e.Op] = e.At
		}
		most = max(most, e.End().Sub(began[e.Op]))
	}
	return most
}
