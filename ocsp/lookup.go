package ocsp

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/certmill/certmill/internal/serial"
)

// errNone says that no answer is there, for good: never issued, expired, or of a
// profile without OCSP.
var errNone = errors.New("no answer for this serial")

// errLater says that an answer may be there later.
var errLater = errors.New("no valid answer at the moment")

// lookup returns the record of a serial that may be given now. It fails with errNone,
// with errLater, or with Redis's error when the cache cannot help.
func (r *Responder) lookup(n serial.Number, now time.Time) (Record, error) {
	if !now.Before(n.Bucket().End()) {
		return Record{}, errNone // expired, whatever Redis still has
	}
	e := r.cache.get(n)
	if e != nil && r.cache.fresh(e, now) && (r.silence() <= r.cfg.ChangesTimeout || e.value[0]&flagRevoked != 0) {
		if rec, err := DecodeRecord(e.value); err == nil && !rec.Expired(now) {
			r.metrics.cacheHits.Inc()
			return rec, nil
		}
	}
	r.metrics.cacheMisses.Inc()
	era := r.cache.era.Load()
	record, complete, err := r.fetch.get(n)
	switch {
	case err != nil:
		return r.fallback(e, now, err)
	case record == "" && (!complete || e != nil && e.value[0]&flagRevoked != 0):
		return r.fallback(e, now, errLater)
	case record == "":
		if e != nil {
			r.cache.drop(e)
		}
		return Record{}, errNone
	}
	rec, err := DecodeRecord(record)
	if err != nil {
		r.deps.Log.Error("a record in Redis cannot be read", "serial", n, "error", err)
		return Record{}, errLater
	}
	if !r.genuine(n, &rec, now) {
		r.metrics.forged.Inc()
		r.deps.Log.Error("a record in Redis was not made by the signer that it names", "serial", n, "signer", rec.Signer)
		if e != nil && e.value[0]&flagRevoked != 0 {
			return r.fallback(e, now, errLater)
		}
		return Record{}, errLater // what is true, nobody here can tell
	}
	rec = r.keep(n, record, &rec, now, era)
	if rec.Expired(now) {
		return Record{}, errLater
	}
	return rec, nil
}

// fallback gives what the cache holds, inside its validity, where Redis cannot say.
func (r *Responder) fallback(e *entry, now time.Time, cause error) (Record, error) {
	if e == nil {
		return Record{}, cause
	}
	rec, err := DecodeRecord(e.value)
	if err != nil || rec.Expired(now) {
		return Record{}, cause
	}
	r.metrics.cacheStale.Inc()
	return rec, nil
}

// maxSkew is how far the clock of the presigner that made a record may be ahead.
const maxSkew = 5 * time.Minute

// genuine guards the cache against records that it could not get rid of again: a
// revoked one stands for good, so its signatures are verified, and so does one from the
// future. Other forgeries fail at the client and give way to the next true record; to
// verify every good one would cost more than all the rest of an answer.
func (r *Responder) genuine(n serial.Number, rec *Record, now time.Time) bool {
	if !rec.Revoked {
		return rec.ThisUpdate <= now.Add(maxSkew).Unix()
	}
	directory := r.directory.Load()
	if directory == nil {
		return false
	}
	t := r.template(directory, rec.Signer)
	if t == nil {
		return false
	}
	for h, sig := range rec.Signatures {
		if sig != "" && t.Check(Hash(h), n, &rec.Status, sig) != nil {
			return false
		}
	}
	return true
}

// keep caches a record read in an era, and returns the one that stands.
func (r *Responder) keep(n serial.Number, record string, rec *Record, now time.Time, era uint32) Record {
	validity := rec.NextUpdate - rec.ThisUpdate
	// By then the presigner has the next answer; after it, look again every 64th part.
	due := rec.ThisUpdate + validity*readyAt/100
	check := max(due, now.Unix()+max(1, validity/64))
	check = min(check, now.Unix()+int64(r.cfg.CacheCheck/time.Second))
	standing := r.cache.put(n, record, era, check)
	if standing == record {
		return *rec
	}
	better, err := DecodeRecord(standing)
	if err != nil {
		return *rec
	}
	return better
}

// readyAt is the hundredth part of an answer's validity after which its successor is
// in Redis: presigners refresh at half, with a margin for being slow.
const readyAt = 55

// loadShared reads the shared entries and puts a new directory in place if they have
// changed. An empty Redis takes nothing away: the issuers are what they were, only
// nothing is complete.
func (r *Responder) loadShared(ctx context.Context) error {
	r.sharedMu.Lock()
	defer r.sharedMu.Unlock()
	return r.loadSharedLocked(ctx)
}

func (r *Responder) loadSharedLocked(ctx context.Context) error {
	shared, err := r.store.Shared(ctx)
	if err != nil {
		return err
	}
	if len(shared.Issuers) == 0 {
		if r.shared == nil {
			return nil
		}
		kept := *r.shared
		kept.Complete = shared.Complete
		shared = &kept
	}
	if reflect.DeepEqual(shared, r.shared) {
		return nil
	}
	d, err := NewDirectory(shared)
	if err != nil {
		r.deps.Log.Error("some shared entries in Redis are broken and left out", "error", err)
	}
	r.shared = shared
	r.directory.Store(d)
	return nil
}

// reloadOnce reads the shared entries for a request that cannot go on without; not
// more often than every reloadPause, however many such requests there are.
func (r *Responder) reloadOnce() {
	r.sharedMu.Lock()
	defer r.sharedMu.Unlock()
	if time.Since(r.reloaded) < reloadPause {
		return
	}
	r.reloaded = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.RedisTimeout)
	defer cancel()
	if err := r.loadSharedLocked(ctx); err != nil {
		r.deps.Log.Warn("the shared entries cannot be read from Redis", "error", err)
	}
}

const reloadPause = 100 * time.Millisecond
