package presign

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// on moves the world to another Redis.
func (w *world) on(cfg config.Redis) {
	w.t.Helper()
	store, err := ocsp.OpenStore(cfg, ocsp.DefaultNamespace)
	noError(w.t, err)
	w.t.Cleanup(func() { noError(w.t, store.Close()) })
	w.store, w.redisConfig = store, &cfg
}

func TestRedisCluster(t *testing.T) {
	w := newWorld(t)
	w.on(config.Redis{Addresses: ocsptest.Cluster(t)})
	fleet := []*presigner{w.presign(), w.presign()}
	url := w.respond()
	w.exercise(url)
	// One of three servers loses everything.
	var serials []serial.Number
	for range 60 {
		serials = append(serials, w.issue(100*time.Hour).Serial)
	}
	there := func() bool {
		got, err := w.store.Get(t.Context(), serials)
		if err != nil {
			return false
		}
		for _, record := range got {
			if record == "" {
				return false
			}
		}
		return true
	}
	w.eventually("all have records", there)
	cluster := w.store.Client().(*redis.ClusterClient)
	once := make(chan bool, 1)
	once <- true
	noError(t, cluster.ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error {
		select {
		case <-once:
			return c.FlushAll(ctx).Err()
		default:
			return nil
		}
	}))
	w.eventually("the loss is noticed", func() bool {
		return fleet[0].metric(t, "redis_losses_total")+fleet[1].metric(t, "redis_losses_total") > 0
	})
	w.eventually("all have records again", func() bool { return there() && w.complete() })
}

func TestRedisSentinel(t *testing.T) {
	w := newWorld(t)
	s := ocsptest.NewSentinel(t)
	w.on(config.Redis{Addresses: s.Addrs, MasterName: s.MasterName})
	w.presign(func(c *Config, _ *Deps) { c.Lease = 2 * time.Second })
	url := w.respond()
	good, _ := w.exercise(url)
	late := w.issue(100 * time.Hour)
	w.eventually("good", func() bool { return w.ask(url, late.Serial) == "good" })
	s.KillMaster()
	if got := w.ask(url, good.Serial); got != "good" {
		t.Errorf("from the cache while there is no master: %s", got)
	}
	// Revoked while there is no master; the replica takes over.
	w.revoke(late)
	w.eventuallyWithin(30*time.Second, "revoked after the failover", func() bool { return w.ask(url, late.Serial) == "revoked" })
	w.exercise(url)
}

// exercise issues and revokes, and waits for the answers.
func (w *world) exercise(url string) (good, bad ledger.Status) {
	w.t.Helper()
	good, bad = w.issue(100*time.Hour), w.issue(100*time.Hour)
	w.eventually("good", func() bool { return w.ask(url, good.Serial) == "good" && w.ask(url, bad.Serial) == "good" })
	start := time.Now()
	w.revoke(bad)
	w.eventually("revoked", func() bool { return w.ask(url, bad.Serial) == "revoked" })
	if took := time.Since(start); took > 5*time.Second {
		w.t.Errorf("a revocation took %s", took)
	}
	return good, bad
}
