package presign

import (
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// A signer may die between its commit and its event.
func TestACertificateWithoutAnEventWaitsForAShortSweepOnly(t *testing.T) {
	w := newWorld(t)
	// With this share a sweep may take seconds, as on a busy machine, and is still short.
	p := w.presign(func(c *Config, _ *Deps) { c.SweepInterval, c.SweepShare = time.Hour, 0.5 })
	w.eventually("complete", w.complete)
	w.eventually("the first sweep has ended", func() bool { return p.metric(t, "sweep_running") == 0 })
	st := w.issue(100 * time.Hour)
	start := time.Now()
	w.eventuallyWithin(4*minPause, "a record", func() bool { _, ok := w.record(st.Serial); return ok })
	t.Logf("a record after %s", time.Since(start).Round(100*time.Millisecond))
}

func TestSweepsTakeNoMoreThanTheirShare(t *testing.T) {
	c := DefaultConfig()
	for _, v := range []struct {
		share      float64
		took, want time.Duration
	}{
		{0.05, 0, minPause},
		{0.05, 2 * time.Second, 38 * time.Second},
		{0.05, time.Minute, 10 * time.Minute}, // the interval
		{0.5, 20 * time.Second, 20 * time.Second},
		{0, time.Second, 10 * time.Minute},
	} {
		c.SweepShare = v.share
		if got := c.pause(v.took); got.Round(time.Millisecond) != v.want {
			t.Errorf("share %v, after %s: a pause of %s, want %s", v.share, v.took, got, v.want)
		}
	}
}

// A broker that has lost its stream has lost events with it.
func TestAnInterruptionOfTheEventsIsFollowedByASweep(t *testing.T) {
	w := newWorld(t)
	w.connect()
	p := w.presign(func(c *Config, _ *Deps) { c.SweepInterval = time.Hour })
	w.eventually("complete", w.complete)
	w.eventually("the first sweep has ended", func() bool { return p.metric(t, "sweep_running") == 0 })
	noError(t, w.queue.JetStream.DeleteStream(t.Context(), queue.EventsStream))
	st := w.issue(100 * time.Hour)
	if _, ok := w.record(st.Serial); ok {
		t.Fatal("there is a record although nobody was told")
	}
	cfg := config.DefaultNATS()
	cfg.Memory = true
	noError(t, queue.EnsureStreams(t.Context(), w.queue.JetStream, queue.SettingsOf(cfg)))
	w.eventuallyWithin(30*time.Second, "a record", func() bool { _, ok := w.record(st.Serial); return ok })
}

// What was verified once is not verified again, and nothing else passes for it.
func TestARevokedRecordIsVerifiedOnce(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	st := w.issue(100 * time.Hour)
	w.revoke(st)
	w.eventually("revoked", func() bool { rec, ok := w.record(st.Serial); return ok && rec.Revoked })
	p.stop()
	rec, _ := w.record(st.Serial)
	view, now := p.shared.Load(), w.now()
	var known checked
	judge := func(st ledger.Status, rec ocsp.Record) signedBy {
		t.Helper()
		encoded, err := rec.AppendTo(nil)
		noError(t, err)
		return view.signed(&st, &rec, string(encoded), now, &known)
	}
	entries := func() (n int) {
		for _, h := range known.table {
			if h != 0 {
				n++
			}
		}
		return n
	}
	for range 3 {
		if by := judge(st, rec); by != signedByUs || entries() != 1 {
			t.Errorf("the genuine record: %v, %d remembered", by, entries())
		}
	}
	forged, other := rec, st
	forged.Reason = 9
	other.Serial = ocsptest.Serial(t, w.epoch, w.now(), w.now().Add(time.Hour))
	if by := judge(st, forged); by != signedByNobody {
		t.Errorf("another reason: %v", by)
	}
	if by := judge(other, rec); by != signedByNobody {
		t.Errorf("another certificate's: %v", by)
	}
	if entries() != 1 {
		t.Errorf("%d remembered: what is forged is among them", entries())
	}
	// A signer that is not known any more vouches for nothing.
	gone := *view
	gone.templates = nil
	view = &gone
	if by := judge(st, rec); by != signedByUnknown {
		t.Errorf("of a signer that is gone: %v", by)
	}
}

// To count is to read all of Redis, so short sweeps leave it out.
func TestWhatWasJustCountedIsNotCountedAgain(t *testing.T) {
	w := newWorld(t)
	p := w.presign(func(c *Config, _ *Deps) { c.SweepInterval = time.Hour })
	w.eventually("complete", w.complete)
	w.eventually("the first sweep has ended", func() bool { return p.metric(t, "sweep_running") == 0 })
	counted := p.metric(t, "redis_records")
	st := w.issue(100 * time.Hour)
	p.sweepSoon()
	w.eventuallyWithin(30*time.Second, "a record", func() bool { _, ok := w.record(st.Serial); return ok })
	w.eventually("the sweep has ended", func() bool { return p.metric(t, "sweep_running") == 0 })
	if got := p.metric(t, "redis_records"); got != counted {
		t.Errorf("a sweep a moment after another counted anew: %v records after %v", got, counted)
	}
}
