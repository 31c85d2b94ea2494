package ocsp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/serial"
)

// Errors of fetcher.get.
var (
	errFull = errors.New("too many requests wait for Redis")
	errDown = errors.New("Redis did not answer a moment ago")
)

// fetcher reads records from Redis for many requests at once: what waits goes into
// one pipeline, which costs Redis and the responder a fraction of a call each.
type fetcher struct {
	store   *Store
	timeout time.Duration
	queue   chan *fetch
	stopped chan struct{}
	metrics *metrics

	mu        sync.Mutex
	downUntil time.Time // after a failure nobody waits for Redis until then
}

// maxPipeline bounds the records of one pipeline. Longer ones save nothing more and
// make the first wait for the last.
const maxPipeline = 128

// downPause is how long requests are spared a Redis that failed. The first after it
// tries again.
const downPause = 250 * time.Millisecond

// fetch is one record on its way.
type fetch struct {
	serial serial.Number
	done   chan struct{} // has room for one

	record   string // "" if there is none
	complete bool   // Redis has a record for everything in the ledger
	err      error
}

var fetches = sync.Pool{New: func() any { return &fetch{done: make(chan struct{}, 1)} }}

func newFetcher(store *Store, queue int, timeout time.Duration, m *metrics) *fetcher {
	return &fetcher{store: store, timeout: timeout, queue: make(chan *fetch, queue), stopped: make(chan struct{}), metrics: m}
}

// get returns the record of a serial, or "" with whether that is final. It waits at
// most for the fetcher's timeout, twice when the pipeline before it is slow.
func (f *fetcher) get(n serial.Number) (record string, complete bool, err error) {
	if f.isDown() {
		return "", false, errDown
	}
	c := fetches.Get().(*fetch)
	c.serial = n
	select {
	case f.queue <- c:
	default:
		fetches.Put(c)
		return "", false, errFull
	}
	select {
	case <-c.done:
	case <-f.stopped: // a request that outlived the shutdown; c may still be in the queue
		return "", false, errDown
	}
	record, complete, err = c.record, c.complete, c.err
	c.record, c.err = "", nil
	fetches.Put(c)
	return record, complete, err
}

func (f *fetcher) isDown() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.downUntil)
}

// stop ends every get that still waits, after the last run has returned.
func (f *fetcher) stop() { close(f.stopped) }

// run serves the queue until ctx ends. Several may run side by side, one pipeline each.
func (f *fetcher) run(ctx context.Context) {
	batch := make([]*fetch, 0, maxPipeline)
	for {
		batch = batch[:0]
		select {
		case <-ctx.Done():
			return
		case c := <-f.queue:
			batch = append(batch, c)
		}
	more:
		for len(batch) < maxPipeline {
			select {
			case c := <-f.queue:
				batch = append(batch, c)
			default:
				break more
			}
		}
		f.serve(ctx, batch)
	}
}

// serve reads a batch by one pipeline. Whether Redis is complete is asked after the
// records in the same pipeline: a record that a FLUSHALL took is not taken for one
// that never was.
func (f *fetcher) serve(ctx context.Context, batch []*fetch) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	start := time.Now()
	pipe := f.store.client.Pipeline()
	var replies [maxPipeline]*redis.StringCmd
	for i, c := range batch {
		replies[i] = pipe.HGet(ctx, f.store.keys.shardKey(ShardOf(c.serial)), fieldOf(c.serial))
	}
	complete := pipe.HExists(ctx, f.store.keys.shared, fieldComplete)
	_, _ = pipe.Exec(ctx) // each reply carries its own error
	f.metrics.redisSeconds.Observe(time.Since(start).Seconds())
	f.metrics.redisBatch.Observe(float64(len(batch)))
	failed := 0
	for i, c := range batch {
		c.record, c.err = replies[i].Result()
		c.complete = complete.Val() && complete.Err() == nil
		if errors.Is(c.err, redis.Nil) {
			c.record, c.err = "", nil
			if complete.Err() != nil {
				c.err = complete.Err()
			}
		}
		if c.err != nil {
			failed++
			c.err = fmt.Errorf("reading the record of %s from Redis: %w", c.serial, c.err)
		}
		c.done <- struct{}{}
	}
	if failed == len(batch) && failed > 0 {
		f.mu.Lock()
		f.downUntil = time.Now().Add(downPause)
		f.mu.Unlock()
	}
	f.metrics.redisErrors.Add(float64(failed))
}
