package presign

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
)

func (w *world) complete() bool {
	w.t.Helper()
	s, err := w.store.Shared(w.t.Context())
	noError(w.t, err)
	return s.Complete
}

// signed counts the records that presigners have signed, for whatever reason.
func signed(t testing.TB, fleet ...*presigner) (n float64) {
	for _, p := range fleet {
		n += p.metric(t, "records_total")
	}
	return n
}

func TestManyPresignersShareTheWorkAndSignNothingTwice(t *testing.T) {
	w := newWorld(t)
	w.connect()
	// A lease that ends under a busy test would rightly be worked on by another.
	long := func(c *Config, _ *Deps) { c.Lease = 2 * time.Second }
	fleet := []*presigner{w.presign(long), w.presign(long), w.presign(long)}
	w.eventually("the slices are shared out", func() bool {
		total := 0.0
		for _, p := range fleet {
			n := p.metric(t, "slices")
			if n < 20 || n > 22 {
				return false
			}
			total += n
		}
		return total == sliceCount
	})
	w.eventually("complete", w.complete)
	const many = 3000
	var all []ledger.Status
	for range many / 100 { // by events
		group := make([]ledger.Status, 100)
		for i := range group {
			group[i] = w.issueAt(w.now(), 100*24*time.Hour)
		}
		w.announceIssued(group...)
		all = append(all, group...)
	}
	w.eventually("all are signed", func() bool { return signed(t, fleet...) >= many })
	if n := signed(t, fleet...); n != many {
		t.Errorf("%v records signed for %d certificates", n, many)
	}
	for i, p := range fleet {
		if n := p.metric(t, "records_total", string(fromIssued)); n < many/10 {
			t.Errorf("presigner %d has signed %v of %d", i, n, many)
		}
	}
	// The refresh of all of them, one presigner having died without a word.
	w.ahead.Add(int64(13 * time.Hour))
	w.eventually("all are refreshed", func() bool { return signed(t, fleet...) >= 2*many })
	if n := signed(t, fleet...); n != 2*many {
		t.Errorf("%v records signed after one refresh of %d", n, many)
	}
	fleet[0].stop()
	w.eventually("the others have its slices", func() bool {
		return fleet[1].metric(t, "slices")+fleet[2].metric(t, "slices") == sliceCount
	})
	w.ahead.Add(int64(13 * time.Hour))
	w.eventually("all are refreshed", func() bool { return signed(t, fleet...) >= 3*many })
	for _, st := range all {
		if rec, ok := w.record(st.Serial); !ok || w.now().Unix()-rec.ProducedAt > 3600 {
			t.Fatalf("%s was left out", st.Serial)
		}
	}
}

func TestAnEmptiedRedisIsFilledAgain(t *testing.T) {
	w := newWorld(t)
	var good, bad []ledger.Status
	for range 300 {
		good, bad = append(good, w.issue(24*time.Hour)), append(bad, w.issue(24*time.Hour))
	}
	for _, st := range bad {
		w.ledger.Revoke(st.Serial, 1)
	}
	p := w.presign(func(c *Config, _ *Deps) { c.SweepInterval = time.Hour })
	url := w.respond()
	check := func() {
		t.Helper()
		w.eventually("all are there", func() bool {
			return w.complete() && w.ask(url, good[0].Serial) == "good" && w.ask(url, bad[0].Serial) == "revoked"
		})
		for i := range good {
			if g, b := w.ask(url, good[i].Serial), w.ask(url, bad[i].Serial); g != "good" || b != "revoked" {
				t.Fatalf("good: %s, revoked: %s", g, b)
			}
		}
	}
	check()
	w.eventually("the sweep has ended", func() bool { return p.metric(t, "sweep_running") == 0 })
	for range 2 {
		noError(t, w.store.Client().FlushAll(t.Context()).Err())
		check()
	}
	if n := p.metric(t, "redis_losses_total"); n < 2 {
		t.Errorf("%v losses noticed", n)
	}
}

// What a restore of the ledger from a backup, or a hand in Redis, leaves behind.
func TestRedisIsMadeEqualToTheLedger(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	lost, unrevoked, wrong, longer := w.issue(24*time.Hour), w.issue(100*time.Hour), w.issue(24*time.Hour), w.issue(2*time.Hour)
	w.ledger.Revoke(unrevoked.Serial, 3)
	w.eventually("all have records", func() bool {
		for _, st := range []ledger.Status{lost, unrevoked, wrong, longer} {
			if _, ok := w.record(st.Serial); !ok {
				return false
			}
		}
		rec, _ := w.record(unrevoked.Serial)
		return rec.Revoked
	})
	// The ledger comes back from a backup: one certificate is unknown, one revocation lost.
	w.ledger.Forget(lost.Serial)
	w.ledger.Issue(unrevoked)
	// And someone has written what should not be there.
	put := func(st ledger.Status, record string) {
		noError(t, w.store.Client().HSet(t.Context(), shardKey(st.Serial), fieldOf(st.Serial), record).Err())
	}
	put(wrong, "\xffnonsense")
	overlong, _ := w.record(longer.Serial)
	overlong.NextUpdate += 3600
	encoded, err := overlong.AppendTo(nil)
	noError(t, err)
	put(longer, string(encoded))

	w.eventually("the unreadable record is made anew", func() bool {
		got, err := w.store.Get(t.Context(), []serial.Number{wrong.Serial})
		noError(t, err)
		_, err = ocsp.DecodeRecord(got[0])
		return err == nil
	})
	w.eventually("nextUpdate is cut", func() bool { rec, _ := w.record(longer.Serial); return rec.NextUpdate == longer.NotAfter.Unix() })
	// A record of an unknown certificate goes when it is overdue, and not before: it may
	// be newer than what the ledger has shown.
	w.ahead.Add(int64(15 * time.Hour))
	w.eventually("what the ledger does not have is removed", func() bool { _, ok := w.record(lost.Serial); return !ok })
	w.eventually("the lost revocation is kept fresh", func() bool {
		rec, ok := w.record(unrevoked.Serial)
		return ok && rec.Revoked && rec.Reason == 3 && w.now().Unix()-rec.ProducedAt < 3600
	})
	for _, kind := range []string{mismatchUnknown, mismatchUnread, mismatchTooLong} {
		if p.metric(t, "mismatches_total", kind) == 0 {
			t.Errorf("%s is not counted", kind)
		}
	}
}

// Whoever can write to Redis, and nothing else, must not make the HSM say "revoked",
// nor put a record where no later one can replace it.
func TestAForgedRecordIsNotSignedAndDoesNotStand(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	names := []string{"a wrong signature", "another certificate's signature", "times of the future", "an unknown signer", "a wrong signature over a true revocation"}
	certs := make([]ledger.Status, len(names))
	for i := range certs {
		certs[i] = w.issue(24 * time.Hour)
	}
	other := w.issue(24 * time.Hour)
	w.ledger.Revoke(other.Serial, 1)
	w.eventually("all have records", func() bool {
		for _, st := range certs {
			if _, ok := w.record(st.Serial); !ok {
				return false
			}
		}
		rec, ok := w.record(other.Serial)
		return ok && rec.Revoked
	})
	genuine, _ := w.record(other.Serial)
	forge := func(st ledger.Status, change func(*ocsp.Record)) {
		rec, _ := w.record(st.Serial)
		change(&rec)
		encoded, err := rec.AppendTo(nil)
		noError(t, err)
		noError(t, w.store.Client().HSet(t.Context(), shardKey(st.Serial), fieldOf(st.Serial), string(encoded)).Err())
	}
	revoke := func(r *ocsp.Record) { r.Revoked, r.RevokedAt, r.Reason = true, r.ThisUpdate, 1 }
	forge(certs[0], func(r *ocsp.Record) { revoke(r); r.ThisUpdate++ })
	forge(certs[1], func(r *ocsp.Record) { signer := r.Signer; *r = genuine; r.Signer = signer })
	forge(certs[2], func(r *ocsp.Record) { r.ThisUpdate += 7200; r.ProducedAt += 7200 })
	forge(certs[3], func(r *ocsp.Record) { revoke(r); r.Signer = 99 })
	w.ledger.Revoke(certs[4].Serial, 4)
	forge(certs[4], func(r *ocsp.Record) { revoke(r) })

	for i, st := range certs[:3] {
		w.eventually(names[i]+" gives way to what the ledger says", func() bool {
			rec, ok := w.record(st.Serial)
			return ok && !rec.Revoked && rec.ThisUpdate <= w.now().Unix()
		})
	}
	w.eventually(names[4]+" gives way to a true one", func() bool {
		rec, ok := w.record(certs[4].Serial)
		return ok && rec.Revoked && rec.Reason == 4
	})
	w.eventually("it is counted", func() bool { return p.metric(t, "mismatches_total", mismatchForged) >= 4 })
	// What nobody can check stays as it is: neither made good nor signed.
	w.eventually("the unknown signer is counted", func() bool { return p.metric(t, "mismatches_total", mismatchRevoked) >= 2 })
	if rec, ok := w.record(certs[3].Serial); !ok || rec.Signer != 99 {
		t.Errorf("%s was replaced by %+v", names[3], rec)
	}
}

func shardKey(n serial.Number) string {
	const hex = "0123456789abcdef"
	s := ocsp.ShardOf(n)
	return ocsp.DefaultNamespace + ":ocsp:s:" + string([]byte{hex[s>>12], hex[s>>8&15], hex[s>>4&15], hex[s&15]})
}

func fieldOf(n serial.Number) string { return string(n[:6]) + string(n[8:]) }

// Refreshes by two presigners race with revocations: 10,000 certificates, each
// refreshed as good by a writer that knows of nothing while it is revoked.
func TestGoodNeverComesAfterRevoked(t *testing.T) {
	w := newWorld(t)
	w.connect()
	patient := func(c *Config, _ *Deps) { c.RedisTimeout, c.Lease, c.CheckShare = 30*time.Second, 30*time.Second, 0 }
	fleet := []*presigner{w.presign(patient), w.presign(patient)}
	w.eventually("complete", w.complete)
	const many = 10_000
	all := make([]ledger.Status, many)
	for i := range all {
		all[i] = w.issueAt(w.now().Add(-time.Hour), 100*time.Hour)
	}
	var wg sync.WaitGroup
	work := make(chan ledger.Status)
	for range 8 {
		wg.Go(func() {
			for st := range work {
				p := fleet[rand.IntN(2)]
				var pair sync.WaitGroup
				pair.Go(func() { noError(t, p.publish(t.Context(), []ledger.Status{st}, fromRefresh, 0)) })
				pair.Go(func() {
					dead := st
					r := w.ledger.Revoke(st.Serial, 1)
					dead.Revoked = &r
					noError(t, fleet[rand.IntN(2)].publish(t.Context(), []ledger.Status{dead}, fromRevoked, 0))
				})
				pair.Wait()
				// From here the revocation is acknowledged: no writer may undo it.
				noError(t, p.publish(t.Context(), []ledger.Status{st}, fromRefresh, 0))
				if rec, ok := w.record(st.Serial); !ok || !rec.Revoked {
					t.Errorf("%s is good after revoked", st.Serial)
				}
			}
		})
	}
	for _, st := range all {
		work <- st
	}
	close(work)
	wg.Wait()
	refused := 0.0
	for _, p := range fleet {
		refused += p.metric(t, "records_total", "revoked_stands")
	}
	if refused < many {
		t.Errorf("only %v writes of good were refused, so the race was not run", refused)
	}
}

func TestPresignersStartWithoutAnything(t *testing.T) {
	w := newWorld(t)
	w.connect()
	w.proxy.Cut()
	p := w.presign()
	if p.Ready() == nil {
		t.Error("ready without Redis")
	}
	st := w.issueAt(w.now(), time.Hour)
	w.announceIssued(st)
	time.Sleep(50 * time.Millisecond) // long enough for an attempt; the outcome does not depend on it
	w.proxy.Mend()
	w.eventually("the event was not lost", func() bool { _, ok := w.record(st.Serial); return ok })
	// Redis goes away in the middle.
	w.proxy.Cut()
	other := w.issueAt(w.now(), time.Hour)
	w.announceIssued(other)
	w.revoke(st)
	w.proxy.Mend()
	w.eventually("both are done", func() bool {
		_, ok := w.record(other.Serial)
		rec, _ := w.record(st.Serial)
		return ok && rec.Revoked
	})
}
