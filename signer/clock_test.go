package signer

import (
	"testing"
	"time"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
)

func TestASignerWithAWrongClockTakesNoWork(t *testing.T) {
	for name, offset := range map[string]time.Duration{"ahead": time.Minute, "behind": -time.Minute} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			right := w.start()
			w.certificate(w.one(w.request("before")))
			w.cfg.ClockOffset = offset
			s, err := New(w.cfg, Deps{})
			w.check(err)
			wrong := w.begin(s)
			eventually(t, "the skew is known", func() bool { return s.skewed() != nil })
			eventually(t, "it serves", func() bool { return s.serving.Load() })
			if s.Ready() == nil {
				t.Error("it is ready")
			}
			w.check(right.stop())
			r := w.request("after")
			w.send(queue.First, r)
			time.Sleep(300 * time.Millisecond) // a signer that takes work takes it at once
			if len(w.rows(r.RequestKey)) != 0 {
				t.Error("it has issued")
			}
			w.check(wrong())
			w.cfg.ClockOffset = offset / 60 // within the bound
			w.start()
			w.certificate(w.await(1)[ledger.RequestKey(r.RequestKey)])
		})
	}
}
