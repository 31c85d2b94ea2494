package presign

import (
	"context"
	"crypto"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

func TestFromIssueToGoodToRevoked(t *testing.T) {
	w := newWorld(t)
	w.connect()
	p := w.presign(func(c *Config, _ *Deps) { c.RevocationPoll, c.SweepInterval = time.Minute, time.Hour })
	url := w.respond()
	w.eventually("the presigner is ready", func() bool { return p.Ready() == nil })
	w.eventually("Redis is complete", func() bool { s, err := w.store.Shared(t.Context()); return err == nil && s.Complete })

	// An epoch that nobody has heard of yet, as after the start of a signer.
	w.epoch = w.ledger.AddEpoch(w.issuer)
	st := w.issueAt(w.now(), time.Hour)
	start := time.Now()
	w.announceIssued(st)
	w.eventually("good", func() bool { return w.ask(url, st.Serial) == "good" })
	t.Logf("from issue to good: %s", time.Since(start))
	rec, _ := w.record(st.Serial)
	if rec.NextUpdate != st.NotAfter.Unix() {
		t.Errorf("nextUpdate %d is not cut at notAfter %d", rec.NextUpdate, st.NotAfter.Unix())
	}
	if rec.ProducedAt-rec.ThisUpdate != 300 {
		t.Errorf("backdated by %d s", rec.ProducedAt-rec.ThisUpdate)
	}
	start = time.Now()
	w.revoke(st)
	w.eventually("revoked", func() bool { return w.ask(url, st.Serial) == "revoked" })
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a revocation took %s", took)
	}
	// The record is in Redis before it is counted.
	w.eventually("it is counted as of an event", func() bool { return p.metric(t, "records_total", string(fromRevoked), "changed") == 1 })
}

func TestEventsThatAreNotOurs(t *testing.T) {
	w := newWorld(t)
	w.connect()
	p := w.presign(func(c *Config, _ *Deps) { c.SweepInterval = time.Hour })
	w.eventually("ready", func() bool { return p.Ready() == nil })
	w.eventually("swept", func() bool { return p.metric(t, "sweep_last_end_timestamp_seconds") > 0 })
	js := w.queue.JetStream
	for name, data := range map[string][]byte{"empty": nil, "garbage": []byte("\x01garbage that is longer than an envelope's header is"), "another version": make([]byte, 60)} {
		if _, err := js.Publish(t.Context(), queue.IssuedSubject("test"), data); err != nil {
			t.Fatal(name, err)
		}
	}
	w.eventually("all are counted", func() bool { return p.metric(t, "forged_events_total") == 3 })
	// A certificate without OCSP and one that has expired get no record.
	none, gone := w.issueAt(w.now(), time.Hour), w.issueAt(w.now().Add(-time.Hour), -time.Second)
	none.Revocation = ledger.RevocationCRL
	last := w.issueAt(w.now(), time.Hour)
	w.announceIssued(none, gone, last)
	w.eventually("the last has a record", func() bool { _, ok := w.record(last.Serial); return ok })
	for _, st := range []ledger.Status{none, gone} {
		if _, ok := w.record(st.Serial); ok {
			t.Errorf("%s has a record", st.Serial)
		}
	}
}

// An event of issue that comes late does not make good what was revoked meanwhile.
func TestALateEventIsCheckedWithTheLedger(t *testing.T) {
	w := newWorld(t)
	w.connect()
	revoked, unknown, fine := w.issueAt(w.now(), time.Hour), w.issueAt(w.now(), time.Hour), w.issueAt(w.now(), time.Hour)
	w.announceIssued(revoked, unknown, fine)
	w.ledger.Revoke(revoked.Serial, 4)
	w.ledger.Forget(unknown.Serial)
	time.Sleep(eventTrusted + 100*time.Millisecond) // the age of a message is the server's clock's
	p := w.presign(func(c *Config, _ *Deps) { c.SweepInterval, c.RevocationPoll = time.Hour, time.Minute })
	w.eventually("the event is handled", func() bool { _, ok := w.record(fine.Serial); return ok })
	if rec, ok := w.record(revoked.Serial); !ok || !rec.Revoked || rec.Reason != 4 {
		t.Errorf("revoked meanwhile: %+v, %v", rec.Status, ok)
	}
	if _, ok := w.record(unknown.Serial); ok {
		t.Error("what the ledger does not have is good")
	}
	p.stop()
}

func TestWithoutEventsTheSweepAndThePollDoTheWork(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	url := w.respond()
	st := w.issue(time.Hour)
	w.eventually("good", func() bool { return w.ask(url, st.Serial) == "good" })
	start := time.Now()
	w.revoke(st)
	w.eventually("revoked", func() bool { return w.ask(url, st.Serial) == "revoked" })
	t.Logf("from revocation to revoked without an event: %s", time.Since(start))
	if n := p.metric(t, "records_total", "changed"); n != 2 {
		t.Errorf("%v records changed", n)
	}
}

func TestAnswersAreRefreshedAtHalfOfTheirValidity(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	const many = 200
	statuses := make([]ledger.Status, many)
	for i := range statuses {
		statuses[i] = w.issue(300 * 24 * time.Hour)
	}
	dead := w.issue(300 * 24 * time.Hour)
	w.revoke(dead)
	all := append(statuses, dead)
	w.eventually("all have records", func() bool {
		for _, st := range all {
			if _, ok := w.record(st.Serial); !ok {
				return false
			}
		}
		return true
	})
	produced := func() (fresh int) {
		for _, st := range all {
			if rec, _ := w.record(st.Serial); w.now().Unix()-rec.ProducedAt < 60 {
				fresh++
			}
		}
		return fresh
	}
	sweep := func() {
		before := w.ledger.Calls("SweepStatuses")
		w.eventually("two sweeps", func() bool { return w.ledger.Calls("SweepStatuses") >= before+5 })
	}
	w.ahead.Add(int64(8 * time.Hour)) // a third of the validity
	sweep()
	if n := produced(); n != 0 {
		t.Errorf("%d refreshed after 8 hours", n)
	}
	w.ahead.Add(int64(2*time.Hour + 12*time.Minute)) // the middle of the spread
	sweep()
	if n := produced(); n < many/4 || n > many*3/4 {
		t.Errorf("%d of %d refreshed in the middle of the spread", n, many)
	}
	w.ahead.Add(int64(2 * time.Hour)) // past half
	w.eventually("none is older than half", func() bool {
		for _, st := range all {
			if rec, _ := w.record(st.Serial); w.now().Unix()-rec.ProducedAt >= 12*3600 {
				return false
			}
		}
		return true
	})
	if rec, _ := w.record(dead.Serial); !rec.Revoked {
		t.Error("the revoked one was refreshed as good")
	}
	if n := p.metric(t, "mismatches_total", mismatchExpired); n != 0 {
		t.Errorf("%v answers had expired", n)
	}
}

func TestAnAnswerEndsWithItsSigner(t *testing.T) {
	w := newWorld(t)
	short := w.addSigner(2 * time.Hour) // the newest signs
	p := w.presign()
	st := w.issue(100 * time.Hour)
	w.eventually("a record", func() bool { _, ok := w.record(st.Serial); return ok })
	rec, _ := w.record(st.Serial)
	if at, want := p.metric(t, "signer_expiry_timestamp_seconds"), w.now().Add(96*time.Hour).Unix(); at < float64(want-60) || at > float64(want+60) {
		t.Errorf("the last signer ends at %v, not at %d", at, want)
	}
	if rec.Signer != short || rec.NextUpdate > w.now().Add(2*time.Hour).Unix() {
		t.Errorf("signer %d until %d", rec.Signer, rec.NextUpdate)
	}
	// Before it ends another takes over, and when it has ended it is not used.
	w.ahead.Add(int64(2*time.Hour + time.Minute))
	w.eventually("the other signer", func() bool {
		rec, ok := w.record(st.Serial)
		return ok && rec.Signer != short && rec.NextUpdate > w.now().Unix()
	})
	if err := p.Ready(); err != nil {
		t.Error(err)
	}
}

func TestASignerWithoutItsKeyIsNotUsed(t *testing.T) {
	w := newWorld(t)
	good := int32(1)
	key := ocsptest.Key(t, "p256")
	cert := w.ca.Delegate(t, key, time.Hour)
	for _, uri := range []string{"file:/nonexistent", "pkcs11:object=x", "file:" + ocsptest.WriteKey(t, "other.key", ocsptest.Key(t, "p256"))} {
		w.ledger.AddSigner(w.issuer, cert.Raw, uri)
		cert = w.ca.Delegate(t, key, time.Hour)
	}
	w.presign()
	st := w.issue(time.Hour)
	w.eventually("a record", func() bool { _, ok := w.record(st.Serial); return ok })
	if rec, _ := w.record(st.Serial); rec.Signer != good {
		t.Errorf("signer %d", rec.Signer)
	}
}

// A key that signs wrongly, as a broken HSM does, publishes nothing.
func TestAWrongSignatureIsNotPublished(t *testing.T) {
	w := newWorld(t)
	key := ocsptest.Key(t, "p256")
	w.ledger.AddSigner(w.issuer, w.ca.Delegate(t, key, time.Hour).Raw, "pkcs11:object=broken")
	broken := &brokenKey{ContextSigner: SoftwareKey(key), after: 2}
	p := w.presign(func(_ *Config, d *Deps) {
		d.Key = func(context.Context, string, crypto.PublicKey) (ContextSigner, error) { return broken, nil }
	})
	st := w.issue(time.Hour)
	w.eventually("it is noticed", func() bool { return p.metric(t, "bad_signatures_total") > 0 })
	if rec, ok := w.record(st.Serial); ok {
		view := p.shared.Load()
		d := view.delegates[w.issuer][0]
		for h := range ocsp.Hashes {
			noError(t, d.template.Check(h, st.Serial, &rec.Status, rec.Signatures[h]))
		}
	}
}

func TestSpreadIsEven(t *testing.T) {
	p, err := New(DefaultConfig(), Deps{Ledger: ocsptest.NewLedger()})
	noError(t, err)
	rec := ocsp.Record{Status: ocsp.Status{ProducedAt: 1_800_000_000, ThisUpdate: 1_799_999_700, NextUpdate: 1_800_086_400}}
	var buckets [10]int
	const many = 20_000
	for range many {
		n := ocsptest.Serial(t, 1, time.Now(), time.Now().Add(90*24*time.Hour))
		share := float64(p.dueAt(&rec, n)-rec.ProducedAt) / 86400
		if share < 0.35 || share > 0.5 {
			t.Fatalf("due at %v of the validity", share)
		}
		buckets[min(9, int((share-0.35)/0.015))]++
	}
	for i, n := range buckets {
		if n < many/10*8/10 || n > many/10*12/10 {
			t.Errorf("bucket %d has %d of %d", i, n, many)
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	noError(t, DefaultConfig().Validate())
	noError(t, ocsp.DefaultConfig().Validate())
	bad := DefaultConfig()
	bad.Validity, bad.RefreshAt, bad.Spread, bad.Redis.Addresses = 0, 0.9, 0.95, nil
	if err := bad.Validate(); err == nil {
		t.Error("it passes")
	}
}
