package presign

import (
	"context"
	_ "embed"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ocsp"
)

//go:embed lease.lua
var leaseSource string

var leaseScript = redis.NewScript(leaseSource)

// sliceCount is into how many slices the certificates are cut that presigners share
// out. A slice is every 64th shard of Redis, so that the sweep of the ledger and the
// count of the records have the same owner.
const sliceCount = 64

func sliceOfShard(shard uint16) int { return int(shard % sliceCount) }

func sliceOf(n serial.Number) int { return sliceOfShard(ocsp.ShardOf(n)) }

// leases is what this presigner holds. A lease ends by itself unless it is renewed,
// so the holder goes by its own clock from before the call that renewed it.
type leases struct {
	mu     sync.Mutex
	slices []int
	until  time.Time
}

// held returns the slices that are this presigner's at the moment.
func (l *leases) held() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().After(l.until) {
		return nil
	}
	return l.slices
}

// mask returns what is held as one bit for each slice.
func (l *leases) mask() uint64 { return maskOf(l.held()) }

func maskOf(slices []int) (m uint64) {
	for _, s := range slices {
		m |= 1 << s
	}
	return m
}

func holds(mask uint64, n serial.Number) bool { return mask>>sliceOf(n)&1 != 0 }

// keepLeases renews this presigner's share until ctx ends, and gives it back then.
func (p *Presigner) keepLeases(ctx context.Context) {
	p.every(ctx, p.cfg.Lease/4, "sharing out the sweep", p.renewLeases)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.RedisTimeout)
	defer cancel()
	if _, _, err := p.callLeases(last, 0, nil); err != nil {
		p.deps.Log.Info("the share of the sweep was not given back; it is free when the lease ends", "error", err)
	}
	p.leases.mu.Lock()
	p.leases.slices = nil
	p.leases.mu.Unlock()
}

// renewLeases takes what is free up to the fair share. What is above it is not worked
// on from now, and given back at the next renewal: then nothing of it is under way.
func (p *Presigner) renewLeases(ctx context.Context) error {
	before := p.leases.held()
	start := time.Now()
	fair, slices, err := p.callLeases(ctx, p.cfg.Lease, before)
	if err != nil {
		return err
	}
	now := slices[:min(fair, len(slices))]
	p.leases.mu.Lock()
	p.leases.slices, p.leases.until = now, start.Add(p.cfg.Lease)
	p.leases.mu.Unlock()
	if gained := maskOf(now) &^ maskOf(before); gained != 0 {
		p.sweepSoon()
	}
	return nil
}

func (p *Presigner) callLeases(ctx context.Context, ttl time.Duration, keep []int) (fair int, slices []int, err error) {
	ctx, cancel := p.redis(ctx)
	defer cancel()
	args := []any{p.name, ttl.Milliseconds(), sliceCount}
	for _, s := range keep {
		args = append(args, s)
	}
	reply, err := leaseScript.Run(ctx, p.store.Client(), []string{p.store.LeasesKey()}, args...).Int64Slice()
	if err != nil {
		return 0, nil, fmt.Errorf("leases in Redis: %w", err)
	}
	for _, s := range reply[1:] {
		if s < 0 || s >= sliceCount {
			return 0, nil, fmt.Errorf("leases in Redis: slice %d", s)
		}
		slices = append(slices, int(s))
	}
	return int(reply[0]), slices, nil
}
