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

// Issue, revoke, FLUSHALL and restarts of presigners and responders under load: no
// answer may contradict the ledger. SOAK=60s sets the duration; the default keeps the
// suite short.
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
	s := &soak{w: w, revokedAt: map[int]time.Time{}}
	for range 3 {
		url, stop := w.responder()
		s.nodes = append(s.nodes, node{url: url, stop: stop})
	}
	w.eventually("complete", w.complete)
	for _, n := range s.nodes {
		never := ocsptest.Serial(t, w.epoch, w.now(), w.now().Add(time.Hour))
		w.eventually("the responders know the epoch", func() bool { return w.ask(n.url, never) == "unauthorized" })
	}
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
			case <-time.After(min(duration/7, 6*time.Second)):
			}
			switch i % 3 {
			case 0:
				s.calm(func() { noError(t, w.store.Client().FlushAll(t.Context()).Err()) })
			case 1:
				fleet[0].stop()
				fleet[0] = w.presign()
			case 2:
				s.restart(i / 3 % len(s.nodes))
			}
		}
	})
	wg.Wait()
	t.Logf("%d certificates, %d revoked, %d answers (%d tryLater, %d not known yet), %d FLUSHALL, %d responders restarted (%d requests found one away)",
		len(s.all), len(s.revokedAt), s.answers.Load(), s.later.Load(), s.unknown.Load(), s.flushes, s.restarts, s.refused.Load())
	if s.answers.Load() < 100 || len(s.revokedAt) < 5 || s.flushes == 0 || s.restarts == 0 {
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
	w *world

	mu        sync.Mutex
	nodes     []node
	all       []ledger.Status
	issuedAt  []time.Time
	revokedAt map[int]time.Time // by index, when the revocation was acknowledged
	disaster  time.Time         // when Redis was last emptied

	flushes, restarts                int
	answers, later, unknown, refused atomic.Int64
}

// node is a responder. Its start is the zero time for one that was there from the
// beginning.
type node struct {
	url   string
	start time.Time
	away  bool
	stop  func()
}

// restart stops a responder, while requests are under way, and starts another.
func (s *soak) restart(i int) {
	s.mu.Lock()
	s.nodes[i].away = true
	stop := s.nodes[i].stop
	s.restarts++
	s.mu.Unlock()
	stop()
	url, stop := s.w.responder()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[i] = node{url: url, start: time.Now(), stop: stop}
}

func (s *soak) calm(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.disaster = time.Now()
	s.flushes++
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
// unauthorized for a certificate whose event had its time, anything expired. A
// responder may say tryLater for a second after its start, and be away only while it is
// restarted.
func (s *soak) ask(ctx context.Context) {
	for ctx.Err() == nil {
		s.mu.Lock()
		if len(s.all) == 0 {
			s.mu.Unlock()
			continue
		}
		i, k := rand.IntN(len(s.all)), rand.IntN(len(s.nodes))
		st, issued, disaster := s.all[i], s.issuedAt[i], s.disaster
		at, revoked := s.revokedAt[i]
		responder := s.nodes[k]
		s.mu.Unlock()
		asked := time.Now()
		got, err := s.w.tryAsk(responder.url, st.Serial)
		s.mu.Lock()
		_, revokedNow := s.revokedAt[i]
		healing := asked.Sub(disaster) < 5*time.Second || s.disaster != disaster
		away := responder.away || s.nodes[k].away || s.nodes[k].url != responder.url
		s.mu.Unlock()
		if err != nil {
			s.refused.Add(1)
			if !away {
				s.w.t.Errorf("a responder that was not restarted: %v", err)
			}
			continue
		}
		s.answers.Add(1)
		switch {
		case got == "good" && revoked && asked.Sub(at) > time.Second && !healing:
			s.w.t.Errorf("good %s after the revocation", asked.Sub(at))
		case got == "revoked" && !revokedNow:
			s.w.t.Error("revoked, and the ledger says good")
		case got == "unauthorized" && asked.Sub(issued) > 2*time.Second:
			s.w.t.Errorf("unauthorized %s after issue", asked.Sub(issued))
		case got == "unauthorized":
			s.unknown.Add(1)
		case got == "try later" && (healing || asked.Sub(responder.start) < time.Second):
			s.later.Add(1)
		case got != "good" && got != "revoked":
			s.w.t.Errorf("%s %s after the last disaster, %s after issue", got, asked.Sub(disaster), asked.Sub(issued))
		}
	}
}
