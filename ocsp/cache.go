package ocsp

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/serial"
)

// cache holds encoded records in the process, up to a number of bytes. What goes
// first is what was not asked for since the hand of the clock passed it. A record
// never gives way to one that put.lua would refuse: a revoked one least of all.
type cache struct {
	shards [cacheShards]cacheShard
	limit  int64 // bytes of one shard
	// era counts the times at which changes may have been missed. An entry of an
	// earlier era is true only after Redis has been asked again.
	era atomic.Uint32
}

const (
	cacheShards = 128
	// entryBytes is what an entry costs beside its record: struct, string header,
	// place in the map with its share of empty ones, place in the ring.
	entryBytes = 144
)

type cacheShard struct {
	mu    sync.RWMutex
	bySer map[serial.Number]*entry
	ring  []*entry
	hand  int
	bytes int64
}

// entry is one record.
type entry struct {
	serial serial.Number
	value  string
	slot   int          // in the ring; the shard's mu guards it
	check  atomic.Int64 // Unix seconds from which Redis is asked again
	era    atomic.Uint32
	used   atomic.Bool
}

func (e *entry) size() int64 { return int64(entryBytes + len(e.value)) }

func newCache(limit int64) *cache {
	c := &cache{limit: limit / cacheShards}
	for i := range c.shards {
		c.shards[i].bySer = map[serial.Number]*entry{}
	}
	return c
}

// shardFor takes random bits of the serial that do not choose the shard in Redis.
func (c *cache) shardFor(n serial.Number) *cacheShard { return &c.shards[n[serial.Size-1]%cacheShards] }

// get returns the entry of a serial or nil.
func (c *cache) get(n serial.Number) *entry {
	s := c.shardFor(n)
	s.mu.RLock()
	e := s.bySer[n]
	s.mu.RUnlock()
	if e != nil && !e.used.Load() {
		e.used.Store(true)
	}
	return e
}

// fresh reports whether the entry may be given without asking Redis, given that
// changes are heard.
func (c *cache) fresh(e *entry, now time.Time) bool {
	return e.era.Load() == c.era.Load() && now.Unix() < e.check.Load()
}

// put keeps value, read from Redis in the era given, and returns the record that
// stands: value or a better one that was there.
func (c *cache) put(n serial.Number, value string, era uint32, check int64) string {
	s := c.shardFor(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.bySer[n]; old != nil && stands(old.value, value) {
		if old.value == value {
			old.era.Store(era)
			old.check.Store(check)
		}
		return old.value
	}
	e := &entry{serial: n, value: value}
	e.era.Store(era)
	e.check.Store(check)
	s.insert(e, c.limit)
	return value
}

// insert puts e into the ring: in the place of an entry of the same serial, or after
// others have made room. The caller holds s.mu.
func (s *cacheShard) insert(e *entry, limit int64) {
	s.bytes += e.size()
	if old := s.bySer[e.serial]; old != nil {
		s.bytes -= old.size()
		e.slot = old.slot
		s.ring[e.slot] = e
	} else {
		for len(s.ring) > 0 && s.bytes > limit {
			s.evict()
		}
		e.slot = len(s.ring)
		s.ring = append(s.ring, e)
	}
	s.bySer[e.serial] = e
}

// evict moves the hand on and removes the entry under it if it was not used since
// the hand last came by.
func (s *cacheShard) evict() {
	if s.hand >= len(s.ring) {
		s.hand = 0
	}
	if victim := s.ring[s.hand]; victim.used.Swap(false) {
		s.hand++
	} else {
		s.remove(victim)
	}
}

func (s *cacheShard) remove(e *entry) {
	last := len(s.ring) - 1
	s.ring[e.slot] = s.ring[last]
	s.ring[e.slot].slot = e.slot
	s.ring[last] = nil
	s.ring = s.ring[:last]
	s.bytes -= e.size()
	delete(s.bySer, e.serial)
}

// drop forgets a serial unless its record is revoked.
func (c *cache) drop(e *entry) {
	if e.value[0]&flagRevoked != 0 {
		return
	}
	s := c.shardFor(e.serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bySer[e.serial] == e {
		s.remove(e)
	}
}

// nextEra makes every entry be asked for again before it is trusted.
func (c *cache) nextEra() { c.era.Add(1) }

// size returns the number of entries and their bytes.
func (c *cache) size() (entries int, bytes int64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries += len(s.ring)
		bytes += s.bytes
		s.mu.RUnlock()
	}
	return entries, bytes
}
