package ocsp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/serial"
)

// follower reads the stream of changes and tells the responder. It knows when it has
// missed something: the stream was cut at its front beyond what it had read, was
// emptied, or went back behind it, as after a failover that lost writes.
type follower struct {
	r        *Responder
	position string // the last entry read; "" before the first look
	read     int64  // how many entries were ever added up to position
}

// changesBlock is how long one read waits for changes. Every read that returns, with
// changes or without, shows that nothing was missed until then.
const changesBlock = 200 * time.Millisecond

// sharedInterval is how often the shared entries are read without being told.
const sharedInterval = 5 * time.Second

// run follows the stream until ctx ends. Redis may be down at any time.
func (f *follower) run(ctx context.Context) {
	var sharedRead time.Time
	failing := false
	for ctx.Err() == nil {
		err := f.step(ctx, &sharedRead)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if !failing {
				f.r.deps.Log.Warn("redis cannot be followed; cached answers are asked for again before they are given", "error", err)
			}
			sharedRead = time.Time{}
			pause(ctx, changesBlock)
		} else if failing {
			f.r.deps.Log.Info("redis is followed again")
		}
		failing = err != nil
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// step looks whether the stream goes on where it was left, waits for changes, and
// takes them in.
func (f *follower) step(ctx context.Context, sharedRead *time.Time) error {
	if err := f.locate(ctx); err != nil {
		return err
	}
	if now := time.Now(); now.Sub(*sharedRead) >= sharedInterval {
		if err := f.r.loadShared(ctx); err != nil {
			return err
		}
		*sharedRead = now
	}
	streams, err := f.r.store.client.XRead(ctx, &redis.XReadArgs{
		Streams: []string{f.r.store.keys.changes, f.position}, Count: 1000, Block: changesBlock,
	}).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("reading changes: %w", err)
	}
	heard := time.Now()
	for _, s := range streams {
		for _, m := range s.Messages {
			if f.take(m.Values) {
				*sharedRead = time.Time{}
			}
			f.position = m.ID
			f.read++
		}
	}
	if sharedRead.IsZero() {
		if err := f.r.loadShared(ctx); err != nil {
			return err
		}
		*sharedRead = time.Now()
	}
	f.r.hear(heard)
	return nil
}

// locate compares the stream with the position in it.
func (f *follower) locate(ctx context.Context) error {
	info, err := f.r.store.client.XInfoStream(ctx, f.r.store.keys.changes).Result()
	switch {
	case err == nil:
	case redis.HasErrorPrefix(err, "ERR no such key"), errors.Is(err, redis.Nil):
		info = &redis.XInfoStream{LastGeneratedID: "0-0"}
	default:
		return fmt.Errorf("looking at the stream of changes: %w", err)
	}
	if f.position != "" && !f.missed(info) {
		return nil
	}
	if f.position != "" { // at the first look nothing is cached, so nothing was missed
		f.r.deps.Log.Warn("changes were missed; cached answers are asked for again before they are given",
			"position", f.position, "last", info.LastGeneratedID, "added", info.EntriesAdded, "read", f.read)
		f.r.metrics.resets.Inc()
		f.r.cache.nextEra()
	}
	f.position, f.read = info.LastGeneratedID, info.EntriesAdded
	return nil
}

// missed reports whether entries after the position can no longer be read, or the
// stream is not the one that was read. Entries leave at the front only, so as many
// have left as were added and are not there.
func (f *follower) missed(info *redis.XInfoStream) bool {
	switch {
	case idLess(info.LastGeneratedID, f.position), info.EntriesAdded < f.read:
		return true
	case info.LastGeneratedID == f.position:
		return info.EntriesAdded != f.read
	default:
		return info.EntriesAdded-info.Length > f.read
	}
}

// take applies one change, and reports whether the shared entries have changed.
func (f *follower) take(values map[string]any) (shared bool) {
	text := func(key string) string { s, _ := values[key].(string); return s }
	switch text(changeKind) {
	case kindIsShared:
		return true
	case kindIsRevoked:
		n, err := serial.FromBytes([]byte(text(changeSerial)))
		if err != nil {
			return false
		}
		record := text(changeRecord)
		rec, err := DecodeRecord(record)
		if err != nil || !rec.Revoked {
			return false
		}
		now := f.r.deps.Now()
		if !f.r.genuine(n, &rec, now) {
			// Not believed, and not passed over: Redis is asked for the record itself.
			f.r.metrics.forged.Inc()
			if e := f.r.cache.get(n); e != nil {
				f.r.cache.drop(e)
			}
			return true
		}
		f.r.keep(n, record, &rec, now, f.r.cache.era.Load())
		if ms, err := strconv.ParseInt(text(changeAcked), 10, 64); err == nil && ms > 0 {
			f.r.metrics.revocationLag.Observe(max(0, now.Sub(time.UnixMilli(ms)).Seconds()))
		}
	}
	return false
}

// idLess compares two stream ids, "milliseconds-sequence".
func idLess(a, b string) bool {
	am, as := splitID(a)
	bm, bs := splitID(b)
	return am < bm || am == bm && as < bs
}

func splitID(id string) (ms, seq uint64) {
	m, s, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(m, 10, 64)
	seq, _ = strconv.ParseUint(s, 10, 64)
	return ms, seq
}
