package presign

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// Issue, revoke, FLUSHALL and restarts under load: no answer may contradict the ledger.
// SOAK sets the duration; the default keeps the suite short.
func TestSoak(t *testing.T) {
	duration := 5 * time.Second
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		noError(t, err)
	}
	w := newWorld(t)
	w.connect()
	fleet := []*presigner{w.presign(), w.presign()}
	urls := []string{w.respond(), w.respond(), w.respond()}
	w.eventually("complete", w.complete)
	for _, url := range urls {
		never := ocsptest.Serial(t, w.epoch, w.now(), w.now().Add(time.Hour))
		w.eventually("the responders know the epoch", func() bool { return w.ask(url, never) == "unauthorized" })
	}
	s := &soak{w: w, urls: urls, revokedAt: map[int]time.Time{}}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { s.issue(ctx) })
	wg.Go(func() { s.revoke(ctx) })
	for range 4 {
		wg.Go(func() { s.ask(ctx) })
	}
	wg.Go(func() { // disasters
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(duration / 5):
			}
			switch i % 2 {
			case 0:
				s.calm(func() { noError(t, w.store.Client().FlushAll(t.Context()).Err()) })
			case 1:
				fleet[0].stop()
				fleet[0] = w.presign()
			}
		}
	})
	wg.Wait()
	t.Logf("%d certificates, %d revoked, %d answers (%d tryLater, %d not known yet)", len(s.all), len(s.revokedAt), s.answers.Load(), s.later.Load(), s.unknown.Load())
	if s.answers.Load() < 100 || len(s.revokedAt) < 5 {
		t.Error("too little happened")
	}
	// In the end everything is as the ledger has it.
	w.eventually("complete", w.complete)
	w.eventually("ledger and Redis are equal", func() bool {
		sum, err := Verify(t.Context(), w.ledger, w.store, 0, func(Difference) {})
		return err == nil && sum.Differences == 0 && sum.Records == len(s.all)
	})
}

type soak struct {
	w    *world
	urls []string

	mu        sync.Mutex
	all       []ledger.Status
	issuedAt  []time.Time
	revokedAt map[int]time.Time // by index, when the revocation was acknowledged
	disaster  time.Time         // when Redis was last emptied

	answers, later, unknown atomic.Int64
}

func (s *soak) calm(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.disaster = time.Now()
}

func (s *soak) issue(ctx context.Context) {
	for ctx.Err() == nil {
		st := s.w.issueAt(s.w.now(), 100*time.Hour)
		s.w.announceIssued(st)
		s.mu.Lock()
		s.all = append(s.all, st)
		s.issuedAt = append(s.issuedAt, time.Now())
		s.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // the rate of the soak
	}
}

func (s *soak) revoke(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond) // the rate of the soak
		s.mu.Lock()
		if len(s.all) > 0 {
			i := rand.IntN(len(s.all))
			if _, done := s.revokedAt[i]; !done {
				s.w.revoke(s.all[i])
				s.revokedAt[i] = time.Now()
			}
		}
		s.mu.Unlock()
	}
}

// ask judges answers. Wrong are: good later than a second after the revocation (after
// a disaster, than the time to notice it and to heal), revoked without revocation,
// unauthorized for a certificate whose event had its time, anything expired.
func (s *soak) ask(ctx context.Context) {
	for ctx.Err() == nil {
		s.mu.Lock()
		if len(s.all) == 0 {
			s.mu.Unlock()
			continue
		}
		i := rand.IntN(len(s.all))
		st, issued, disaster := s.all[i], s.issuedAt[i], s.disaster
		at, revoked := s.revokedAt[i]
		s.mu.Unlock()
		asked := time.Now()
		got := s.w.ask(s.urls[rand.IntN(len(s.urls))], st.Serial)
		s.answers.Add(1)
		s.mu.Lock()
		_, revokedNow := s.revokedAt[i]
		healing := asked.Sub(disaster) < 5*time.Second || s.disaster != disaster
		s.mu.Unlock()
		switch {
		case got == "good" && revoked && asked.Sub(at) > time.Second && !healing:
			s.w.t.Errorf("good %s after the revocation", asked.Sub(at))
		case got == "revoked" && !revokedNow:
			s.w.t.Error("revoked, and the ledger says good")
		case got == "unauthorized" && asked.Sub(issued) > 2*time.Second:
			s.w.t.Errorf("unauthorized %s after issue", asked.Sub(issued))
		case got == "unauthorized":
			s.unknown.Add(1)
		case got == "try later" && healing:
			s.later.Add(1)
		case got != "good" && got != "revoked":
			s.w.t.Errorf("%s %s after the last disaster, %s after issue", got, asked.Sub(disaster), asked.Sub(issued))
		}
	}
}
