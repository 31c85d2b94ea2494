package signer

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

func newSerial(t testing.TB, epoch uint32) serial.Number {
	t.Helper()
	n, err := serial.New(rand.Reader, epoch, time.Now(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustTake(t testing.TB, h *hand, n serial.Number) int32 {
	t.Helper()
	slot, err := h.take(n)
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

func TestAHandCountsEachSignatureOnce(t *testing.T) {
	const slots, goroutines, each = 8, 8, 500
	for name, dir := range map[string]string{"in a file": t.TempDir(), "in memory": ""} {
		t.Run(name, func(t *testing.T) {
			h, err := newHand(dir, 7, slots)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range goroutines {
				wg.Go(func() {
					for i := range each {
						slot := mustTake(t, h, newSerial(t, 7))
						h.signed(slot)
						h.settle(slot, []uint64{committed1, discarded1, 0}[i%3])
					}
				})
			}
			wg.Wait()
			third := int64(goroutines * (each / 3))
			if r := h.report(); r.Committed != third+goroutines || r.Discarded != third+goroutines || r.Signatures != r.Committed+r.Discarded {
				t.Errorf("%+v", r)
			}
			for range slots {
				mustTake(t, h, newSerial(t, 7))
			}
			if _, err := h.take(newSerial(t, 7)); problem.KindOf(err) != problem.Overloaded {
				t.Errorf("beyond the slots: %v", err)
			}
			if err := h.close(true); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheNextSignerClosesTheAccountOfADeadOne(t *testing.T) {
	w := newWorld(t)
	w.cfg.StateDir = t.TempDir()
	ctx := bounded(t)
	epoch, err := w.book.StartEpoch(ctx, ledger.Epoch{Signer: "dead", Issuer: w.issuer.ID, Token: "t"})
	w.check(err)
	h, err := newHand(w.cfg.StateDir, epoch, 8)
	w.check(err)
	settled, unnoted, lost, calling := newSerial(t, epoch), newSerial(t, epoch), newSerial(t, epoch), newSerial(t, epoch)
	for _, n := range []serial.Number{settled, unnoted} {
		entry := ledger.Entry{Certificate: ledger.Certificate{Serial: n, Issuer: w.issuer.ID, Profile: "workload", Names: []string{"dns:x"}, DER: []byte{1},
			NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}, RequestKey: ledger.NewRequestKey(n.String()), ReuseUntil: time.Now().Add(time.Hour)}
		w.check(w.book.CommitBatch(ctx, []ledger.Entry{entry})[0].Err)
	}
	slot := mustTake(t, h, settled)
	h.signed(slot)
	h.settle(slot, committed1)
	h.signed(mustTake(t, h, unnoted)) // committed, and died before it was noted
	h.signed(mustTake(t, h, lost))    // died before the commit
	mustTake(t, h, calling)           // died inside the token
	h.signedCRL()

	living, err := newHand(w.cfg.StateDir, epoch+1000, 8)
	w.check(err)
	defer func() { w.check(living.close(true)) }()
	half := filepath.Join(w.cfg.StateDir, "99.hand")
	w.check(os.WriteFile(half, []byte("cmha"), 0o600)) // died while it was made
	w.check(h.close(false))                            // the lock goes with the process

	w.start()
	account := func() (dead ledger.Account) {
		all, err := w.book.Accounts(ctx)
		w.check(err)
		for _, a := range all {
			if a.ID == epoch {
				dead = a
			}
		}
		return dead
	}
	eventually(t, "the account is closed", func() bool { a := account(); return a.State(time.Now(), time.Hour) == ledger.AccountClosed })
	a := account()
	if a.Signatures != 5 || a.Committed != 2 || a.Discarded != 2 || a.CRLs != 1 || a.Rows != 2 {
		t.Errorf("%+v", a)
	}
	if len(a.Strays) != 2 || a.Strays[0].Reason != ledger.StrayDied {
		t.Fatalf("strays %+v", a.Strays)
	}
	for _, s := range a.Strays {
		if s.Serial != lost && s.Serial != calling {
			t.Errorf("stray %s", s.Serial)
		}
	}
	for _, path := range []string{filepath.Join(w.cfg.StateDir, "1.hand"), half} {
		if _, err := os.Stat(path); err == nil && path == half {
			t.Errorf("%s is still there", path)
		}
	}
	if _, err := os.Stat(living.file.Name()); err != nil {
		t.Errorf("the hand of a living signer: %v", err)
	}
}

// committerFunc is a ledger that answers as a test wants.
type committerFunc func(ledger.Entry) (ledger.Outcome, error)

func (f committerFunc) Commit(_ context.Context, e ledger.Entry) (ledger.Outcome, error) { return f(e) }

func (committerFunc) Expect(int) {}

func TestEverySignatureIsAccountedForWhateverTheLedgerSays(t *testing.T) {
	for name, tc := range map[string]struct {
		change    func(Committer) Committer
		committed int64
		reason    ledger.StrayReason
	}{
		"committed": {func(c Committer) Committer { return c }, 1, ""},
		"unknown, and it was stored": {func(c Committer) Committer {
			return committerFunc(func(e ledger.Entry) (ledger.Outcome, error) {
				_, _ = c.Commit(bounded(t), e)
				return ledger.Outcome{}, problem.Down("ledger", 0, nil)
			})
		}, 1, ""},
		"unknown, and it was not": {func(Committer) Committer {
			return committerFunc(func(ledger.Entry) (ledger.Outcome, error) { return ledger.Outcome{}, problem.Down("ledger", 0, nil) })
		}, 0, ledger.StrayUnknown},
		"refused": {func(Committer) Committer {
			return committerFunc(func(ledger.Entry) (ledger.Outcome, error) { return ledger.Outcome{}, errors.New("a bad row") })
		}, 0, ledger.StrayRefused},
		"a duplicate of an earlier one": {func(c Committer) Committer {
			return committerFunc(func(e ledger.Entry) (ledger.Outcome, error) {
				out, err := c.Commit(bounded(t), e)
				out.Duplicate = true
				return out, err
			})
		}, 1, ledger.StrayDuplicate},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.StateDir = t.TempDir()
			s := w.startWith(func(p *parts, _ *[]Token) { p.committer = tc.change(p.committer) })
			w.one(w.request("a"))
			w.check(s.stop())
			all, err := w.book.Accounts(bounded(t))
			w.check(err)
			a := all[0]
			if a.Signatures != 1 || a.Rows != tc.committed || !a.Final {
				t.Errorf("%+v", a)
			}
			if name == "a duplicate of an earlier one" { // here the row is its own: the stray ends
				return
			}
			if a.State(time.Now(), time.Hour) != ledger.AccountClosed || a.Committed != tc.committed || len(a.Strays) != int(1-tc.committed) {
				t.Errorf("%s: %+v", a.State(time.Now(), time.Hour), a)
			}
			if len(a.Strays) == 1 && a.Strays[0].Reason != tc.reason {
				t.Errorf("stray %+v", a.Strays[0])
			}
			if left, _ := filepath.Glob(filepath.Join(w.cfg.StateDir, "*")); len(left) != 0 {
				t.Errorf("%v are left", left)
			}
		})
	}
}
