package ocsp

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/serial"
)

func TestARevocationIsVisibleAtEveryResponderWithinASecond(t *testing.T) {
	s := newService(t)
	responders := []*running{s.start(), s.start(), s.start()}
	serials := make([]serial.Number, 20)
	for i := range serials {
		serials[i] = testSerial(t)
		s.put(serials[i], testGood)
		for _, r := range responders {
			if got := r.ask(serials[i]); got != "good" {
				t.Fatal(got)
			}
		}
	}
	var took []time.Duration
	for _, n := range serials {
		start := time.Now()
		s.revoke(n)
		for _, r := range responders {
			eventually(t, "revoked is said", func() bool { return r.ask(n) == "revoked" })
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("%d revocations at three responders: median %s, slowest %s", len(took), took[len(took)/2], took[len(took)-1])
	if second := took[len(took)-2]; second > time.Second { // one may have met a machine that stood still
		t.Errorf("revocations took %s and %s", second, took[len(took)-1])
	}
	for _, r := range responders {
		if n := testutil.CollectAndCount(r.metrics.revocationLag); n != 1 {
			t.Errorf("%d histograms", n)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestHotAnswersDoNotAskRedis(t *testing.T) {
	s := newService(t)
	r := s.start()
	n := testSerial(t)
	s.put(n, testGood)
	r.ask(n)
	before := redisCalls(s)
	for range 20 {
		if got := r.ask(n); got != "good" {
			t.Fatal(got)
		}
	}
	if after := redisCalls(s); after != before {
		t.Errorf("Redis was asked %d times", after-before)
	}
	// Past the time at which the next answer is ready it is looked for.
	s.clock.Advance(14 * time.Hour)
	if got := r.ask(n); got != "good" {
		t.Error(got)
	}
	if after := redisCalls(s); after != before+1 {
		t.Errorf("Redis was asked %d times for the next answer", after-before)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestWithoutRedisTheCacheAnswersInsideValidity(t *testing.T) {
	s := newService(t)
	r := s.start()
	cached, bad, uncached := testSerial(t), testSerial(t), testSerial(t)
	s.put(cached, testGood)
	s.put(bad, revoked(testGood, 1))
	s.put(uncached, testGood)
	r.ask(cached)
	r.ask(bad)
	s.proxy.Cut()
	eventually(t, "the silence is noticed", func() bool { return r.silence() > r.cfg.ChangesTimeout })
	for name, c := range map[string]struct {
		n    serial.Number
		want string
	}{"cached": {cached, "good"}, "cached and revoked": {bad, "revoked"}, "not cached": {uncached, tryLater}} {
		if got := r.ask(c.n); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
	s.clock.Advance(25 * time.Hour) // past nextUpdate
	for name, n := range map[string]serial.Number{"good": cached, "revoked": bad} {
		if got := r.ask(n); got != tryLater {
			t.Errorf("%s, expired: %s", name, got)
		}
	}
	s.clock.Advance(-25 * time.Hour)
	s.proxy.Mend()
	eventually(t, "what was not cached is answered", func() bool { return r.ask(uncached) == "good" })
	http.DefaultClient.CloseIdleConnections()
}

// The record changes while the responder cannot hear of it.
func TestAMissedChangeIsNoticedAndMended(t *testing.T) {
	for name, miss := range map[string]func(s *service, n serial.Number){
		"the stream was emptied": func(s *service, n serial.Number) {
			s.revoke(n)
			s.must(s.client().Del(s.ctx(), s.store.keys.changes).Err())
		},
		"the stream was cut beyond the position": func(s *service, n serial.Number) {
			s.revoke(n)
			for range 3 {
				s.must(s.store.announceShared(s.ctx()))
			}
			s.must(s.client().XTrimMaxLen(s.ctx(), s.store.keys.changes, 1).Err())
		},
		"the stream went back, as after a failover": func(s *service, n serial.Number) {
			s.revoke(n)
			s.must(s.client().Del(s.ctx(), s.store.keys.changes).Err())
			s.must(s.client().Do(s.ctx(), "XADD", s.store.keys.changes, "1-1", "t", "shared").Err())
		},
		"nothing was missed, only the connection was": func(s *service, n serial.Number) { s.revoke(n) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			r := s.start()
			n := testSerial(t)
			s.put(n, testGood)
			if got := r.ask(n); got != "good" {
				t.Fatal(got)
			}
			s.proxy.Cut()
			miss(s, n)
			s.proxy.Mend()
			eventually(t, "revoked is said", func() bool { return r.ask(n) == "revoked" })
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

func TestAnEmptiedRedisIsNotTakenForNeverIssued(t *testing.T) {
	s := newService(t)
	r := s.start()
	cached, uncached, bad := testSerial(t), testSerial(t), testSerial(t)
	for _, n := range []serial.Number{cached, uncached} {
		s.put(n, testGood)
	}
	r.ask(cached)
	s.put(bad, testGood)
	s.revoke(bad)
	eventually(t, "revoked", func() bool { return r.ask(bad) == "revoked" })
	s.must(s.client().FlushAll(s.ctx()).Err())
	for range 50 { // at once, and while the responder finds out
		for name, c := range map[string]struct {
			n    serial.Number
			want string
		}{"cached": {cached, "good"}, "uncached": {uncached, tryLater}, "revoked": {bad, "revoked"}, "never issued": {testSerial(t), tryLater}} {
			if got := r.ask(c.n); got != c.want {
				t.Fatalf("%s: %s", name, got)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	// Filled again, without the certificate that the ledger does not have any more.
	s.share()
	s.put(cached, testGood)
	if got := r.ask(uncached); got != unauthorized {
		t.Errorf("after the sweep: %s", got)
	}
	// A good record, written by someone who lost the revocation: never good again.
	s.put(bad, testGood)
	for range 5 {
		if got := r.ask(bad); got != "revoked" {
			t.Errorf("good after revoked: %s", got)
		}
		r.cache.nextEra()
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestANewSignerAndEpochAreKnownAtOnce(t *testing.T) {
	s := newService(t)
	r := s.start()
	n := testSerial(t)
	// The record is there before the news of its signer was heard: the follower is
	// bypassed by writing the hash without an announcement.
	s.template.SignerID = 9
	s.must(s.client().HSet(s.ctx(), s.store.keys.shared, "signer:9", append([]byte{0, 0, 0, 1}, s.template.Signer.Raw...)).Err())
	s.put(n, testGood)
	if got := r.ask(n); got != "good" {
		t.Errorf("a new signer: %s", got)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A hand in Redis must not reach further than Redis: what no signer has signed is
// neither given nor kept, so that all is well when the record is.
func TestAForgedRecordIsNeitherGivenNorKept(t *testing.T) {
	s := newService(t)
	fetched, cached, future, revokedBefore := testSerial(t), testSerial(t), testSerial(t), testSerial(t)
	for _, n := range []serial.Number{fetched, cached, future} {
		s.put(n, testGood)
	}
	s.put(revokedBefore, revoked(testGood, 1))
	r := s.start()
	for n, want := range map[serial.Number]int{cached: xocsp.Good, revokedBefore: xocsp.Revoked} {
		if got := r.status(n); got != want {
			t.Fatalf("before: %d", got)
		}
	}
	forge := func(n serial.Number, change func(*Record)) string {
		rec := s.record(t, n, testGood)
		change(&rec)
		text := encode(t, &rec)
		s.must(s.client().HSet(s.ctx(), s.store.keys.shardKey(ShardOf(n)), fieldOf(n), text).Err())
		return text
	}
	revoke := func(r *Record) { r.Revoked, r.RevokedAt, r.Reason = true, r.ThisUpdate, 1 }
	later := func(r *Record) { r.ThisUpdate += 7200; r.ProducedAt += 7200; r.NextUpdate += 7200 }

	forge(fetched, revoke)
	forge(future, later)
	forge(revokedBefore, later)
	for what, n := range map[string]serial.Number{"revoked": fetched, "of the future": future} {
		if got := r.status(n); got != -1 {
			t.Errorf("a forged record, %s, is answered with %d", what, got)
		}
	}
	r.cache.nextEra()
	if got := r.status(revokedBefore); got != xocsp.Revoked {
		t.Errorf("a forged good record hides a revocation: %d", got)
	}
	s.must(s.store.AnnounceRevoked(s.ctx(), []Revoked{{Serial: cached, Record: forge(future, revoke), AcknowledgedMS: time.Now().UnixMilli()}}))
	eventually(t, "the forged announcement is heard", func() bool { return r.cache.get(cached) == nil })
	if got := r.status(cached); got != xocsp.Good {
		t.Errorf("a forged announcement revokes: %d", got)
	}
	// The records are mended, as the sweep does.
	for _, n := range []serial.Number{fetched, future} {
		s.must(s.client().HDel(s.ctx(), s.store.keys.shardKey(ShardOf(n)), fieldOf(n)).Err())
		s.put(n, testGood)
		if got := r.status(n); got != xocsp.Good {
			t.Errorf("the forged record was kept: %d", got)
		}
	}
}

// status asks and returns x/crypto's status, or -1 where there is no answer now.
func (r *running) status(n serial.Number) int {
	r.s.t.Helper()
	resp := r.post(r.request(n))
	body, err := io.ReadAll(resp.Body)
	r.s.must(err)
	r.s.must(resp.Body.Close())
	if bytes.Equal(body, answerTryLater) {
		return -1
	}
	got, err := xocsp.ParseResponseForCert(body, &x509.Certificate{SerialNumber: n.Big()}, r.s.ca.Certificate)
	r.s.must(err)
	return got.Status
}

func TestPutLetsNothingReplaceARevokedRecord(t *testing.T) {
	s := newService(t)
	n := testSerial(t)
	later := testGood
	later.ThisUpdate, later.ProducedAt, later.NextUpdate = later.ThisUpdate+60, later.ProducedAt+60, later.NextUpdate+60
	for _, step := range []struct {
		status Status
		want   Written
	}{
		{testGood, Changed}, {testGood, Superseded}, {later, Refreshed}, {testGood, Superseded},
		{revoked(testGood, 1), Changed}, {later, RevokedStands}, {revoked(testGood, 1), Superseded}, {revoked(later, 1), Refreshed},
	} {
		if got := s.put(n, step.status); got != step.want {
			t.Errorf("%+v: %d, want %d", step.status, got, step.want)
		}
	}
	got, err := s.store.Get(s.ctx(), []serial.Number{n, testSerial(t)})
	noError(t, err)
	if rec, err := DecodeRecord(got[0]); err != nil || !rec.Revoked || got[1] != "" {
		t.Errorf("%+v, %v, %q", rec, err, got[1])
	}
	records := map[serial.Number]string{}
	noError(t, s.store.EachRecord(s.ctx(), []uint16{ShardOf(n), ShardOf(n) + 1}, func(n serial.Number, record string) { records[n] = record }))
	if len(records) != 1 || records[n] != got[0] {
		t.Errorf("the shards hold %d records", len(records))
	}
	if dropped, err := s.store.Drop(s.ctx(), n, "another"); dropped || err != nil {
		t.Errorf("another record was dropped: %v", err)
	}
	if dropped, err := s.store.Drop(s.ctx(), n, got[0]); !dropped || err != nil {
		t.Errorf("the record was not dropped: %v", err)
	}
}

func TestScriptsComeBackAfterTheirLoss(t *testing.T) {
	s := newService(t)
	s.put(testSerial(t), testGood)
	s.must(s.client().ScriptFlush(s.ctx()).Err())
	if got := s.put(testSerial(t), testGood); got != Changed {
		t.Error(got)
	}
}

func TestStoppingEndsRequestsThatWait(t *testing.T) {
	f := newFetcher(nil, 1, time.Second, newMetrics(Deps{}.withDefaults().Registry))
	done := make(chan error)
	go func() { // nobody serves the queue
		_, _, err := f.get(serial.Number{})
		done <- err
	}()
	eventually(t, "it waits", func() bool { return len(f.queue) == 1 })
	if _, _, err := f.get(serial.Number{}); err != errFull {
		t.Errorf("beyond the bound: %v", err)
	}
	f.stop()
	if err := <-done; err != errDown {
		t.Error(err)
	}
}

func TestCacheKeepsItsBound(t *testing.T) {
	c := newCache(cacheShards * 4 * (entryBytes + 10))
	old := testSerial(t)
	c.put(old, "\x01\x00\x00\x00\x05good", 0, 1<<40)
	for i := range 10_000 {
		n := testSerial(t)
		n[serial.Size-1] = byte(i)
		c.put(n, "\x01\x00\x00\x00\x05good.", 0, 1<<40)
		c.get(old) // in use: the hand passes it by
	}
	entries, bytes := c.size()
	if bytes > cacheShards*c.limit || entries > cacheShards*4 || entries < cacheShards*3 {
		t.Errorf("%d entries, %d bytes", entries, bytes)
	}
	if c.get(old) == nil {
		t.Error("what is in use was evicted")
	}
	for i := range c.shards {
		for slot, e := range c.shards[i].ring {
			if e.slot != slot || c.shards[i].bySer[e.serial] != e {
				t.Fatalf("entry %s is lost in the ring", e.serial)
			}
		}
	}
}

func TestRunFailsOnAnAddressInUse(t *testing.T) {
	s := newService(t)
	first := s.start()
	addr, err := first.Addr(t.Context())
	noError(t, err)
	cfg := DefaultConfig()
	cfg.Listen, cfg.Redis = addr.String(), redisConfig(s.proxy.Addr())
	second, err := New(cfg, Deps{})
	noError(t, err)
	if err := second.Run(context.Background()); err == nil {
		t.Error("it runs on a port that is in use")
	}
}
