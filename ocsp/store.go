package ocsp

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
)

//go:embed put.lua
var putSource string

//go:embed drop.lua
var dropSource string

var (
	putScript  = redis.NewScript(putSource)
	dropScript = redis.NewScript(dropSource)
)

// Store is the answers in Redis. Presigners write it, responders read it. It is safe
// for concurrent use; every call ends with its context, and an error is Redis's.
type Store struct {
	client redis.UniversalClient
	keys   keys
}

// OpenStore reads the files that cfg names and prepares a client; a server is dialled
// at the first call. namespace is the first part of every key.
func OpenStore(cfg config.Redis, namespace string) (*Store, error) {
	client, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	return &Store{client: client, keys: newKeys(namespace)}, nil
}

// Close closes the connections.
func (s *Store) Close() error { return s.client.Close() }

// Client gives the connection to the presigner's leases and to tests.
func (s *Store) Client() redis.UniversalClient { return s.client }

// LeasesKey names the hash in which presigners share out their work.
func (s *Store) LeasesKey() string { return s.keys.leases }

// Written says what became of a record that was put.
type Written int8

// The outcomes of Put.
const (
	// RevokedStands: the record was good, and a revoked one stands.
	RevokedStands Written = -1
	// Superseded: an equal or later record stands.
	Superseded Written = 0
	// Refreshed: written, with the status as before.
	Refreshed Written = 1
	// Changed: written, the first of its serial or the first that is revoked.
	Changed Written = 2
)

// Item is one record on its way to Redis.
type Item struct {
	Serial serial.Number
	Record string // encoded
	// Written is filled in by Put.
	Written Written
}

// Revoked reports whether the item's record is a revoked one.
func (i *Item) Revoked() bool { return i.Record != "" && i.Record[0]&flagRevoked != 0 }

// Put writes items unless better records stand, each by itself, and fills in their
// Written. After an error some may have been written; all may be put again.
func (s *Store) Put(ctx context.Context, items []Item) error {
	if len(items) == 0 {
		return nil
	}
	run := func() ([]*redis.Cmd, error) {
		pipe := s.client.Pipeline()
		replies := make([]*redis.Cmd, len(items))
		for i := range items {
			n := items[i].Serial
			replies[i] = putScript.EvalSha(ctx, pipe, []string{s.keys.shardKey(ShardOf(n))}, fieldOf(n), items[i].Record)
		}
		_, err := pipe.Exec(ctx)
		return replies, err
	}
	replies, err := run()
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		if err := s.loadScripts(ctx); err != nil {
			return err
		}
		replies, err = run()
	}
	if err != nil {
		return fmt.Errorf("writing %d records to Redis: %w", len(items), err)
	}
	for i, reply := range replies {
		v, err := reply.Int()
		if err != nil {
			return fmt.Errorf("writing the record of %s to Redis: %w", items[i].Serial, err)
		}
		items[i].Written = Written(v)
	}
	return nil
}

// loadScripts makes the scripts known to every server.
func (s *Store) loadScripts(ctx context.Context) error {
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		return errors.Join(putScript.Load(ctx, c).Err(), dropScript.Load(ctx, c).Err())
	})
	if err != nil {
		return fmt.Errorf("loading scripts into Redis: %w", err)
	}
	return nil
}

// eachMaster calls fn for every server that holds a part of the keys.
func (s *Store) eachMaster(ctx context.Context, fn func(context.Context, *redis.Client) error) error {
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, fn)
	case *redis.Client:
		return fn(ctx, c)
	default:
		return fmt.Errorf("a Redis client of type %T", c)
	}
}

// Get reads encoded records; what is missing is "".
func (s *Store) Get(ctx context.Context, serials []serial.Number) ([]string, error) {
	out := make([]string, len(serials))
	if len(serials) == 0 {
		return out, nil
	}
	pipe := s.client.Pipeline()
	replies := make([]*redis.StringCmd, len(serials))
	for i, n := range serials {
		replies[i] = pipe.HGet(ctx, s.keys.shardKey(ShardOf(n)), fieldOf(n))
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("reading %d records from Redis: %w", len(serials), err)
	}
	for i, reply := range replies {
		v, err := reply.Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("reading the record of %s from Redis: %w", serials[i], err)
		}
		out[i] = v
	}
	return out, nil
}

// EachRecord calls fn for every record of the shards, which it reads by one pipeline.
// Fields that are no serials of ours are left out.
func (s *Store) EachRecord(ctx context.Context, shards []uint16, fn func(n serial.Number, record string)) error {
	pipe := s.client.Pipeline()
	replies := make([]*redis.SliceCmd, len(shards))
	for i, shard := range shards {
		// Not HGetAll: a map of what is only walked through costs more than reading it.
		replies[i] = redis.NewSliceCmd(ctx, "hgetall", s.keys.shardKey(shard))
		_ = pipe.Process(ctx, replies[i]) // Exec has the error
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("reading %d shards from Redis: %w", len(shards), err)
	}
	for i, reply := range replies {
		fields := reply.Val()
		for f := 0; f+1 < len(fields); f += 2 {
			field, _ := fields[f].(string)
			record, _ := fields[f+1].(string)
			if n, err := serialOf(shards[i], field); err == nil {
				fn(n, record)
			}
		}
	}
	return nil
}

// Drop removes a record if it is still the one given, and reports whether it was.
func (s *Store) Drop(ctx context.Context, n serial.Number, record string) (bool, error) {
	removed, err := dropScript.Run(ctx, s.client, []string{s.keys.shardKey(ShardOf(n))}, fieldOf(n), record).Int()
	if err != nil {
		return false, fmt.Errorf("removing the record of %s from Redis: %w", n, err)
	}
	return removed == 1, nil
}

// Health is what one look at the servers shows; a change of it tells that records may
// be lost.
type Health struct {
	// Servers are those that hold keys, by address.
	Servers map[string]Server
	// UsedBytes is the memory of all servers.
	UsedBytes int64
}

// Server is one server that holds keys.
type Server struct {
	// RunID is changed by a restart and, under the address of a Sentinel, a failover.
	RunID string
	Keys  int64
	// Flushes counts the FLUSHALL and FLUSHDB that it has served.
	Flushes int64
}

// Keys counts the keys of all servers.
func (h *Health) Keys() (n int64) {
	for _, s := range h.Servers {
		n += s.Keys
	}
	return n
}

// Health asks every server that holds keys.
func (s *Store) Health(ctx context.Context) (Health, error) {
	type one struct {
		addr   string
		server Server
		used   int64
	}
	// ForEachMaster runs its calls side by side.
	found := make(chan one, 1024)
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		info, err := c.InfoMap(ctx, "server", "memory", "commandstats").Result()
		if err != nil {
			return err
		}
		n, err := c.DBSize(ctx).Result()
		if err != nil {
			return err
		}
		used, _ := strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
		stats := info["Commandstats"]
		found <- one{c.Options().Addr, Server{
			RunID: info["Server"]["run_id"], Keys: n, Flushes: calls(stats["cmdstat_flushall"]) + calls(stats["cmdstat_flushdb"]),
		}, used}
		return nil
	})
	close(found)
	h := Health{Servers: map[string]Server{}}
	for o := range found {
		h.Servers[o.addr] = o.server
		h.UsedBytes += o.used
	}
	if err != nil {
		return h, fmt.Errorf("asking Redis how it is: %w", err)
	}
	return h, nil
}

// calls reads "calls=3,usec=…" of INFO commandstats.
func calls(stat string) int64 {
	first, _, _ := strings.Cut(strings.TrimPrefix(stat, "calls="), ",")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0 // never called
	}
	return n
}

// Compact asks the servers to keep shards in their compact form, and reports whether
// they do. Servers whose configuration may not be changed are left as they are.
func (s *Store) Compact(ctx context.Context) (bool, error) {
	compact := true
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		const key, want = "hash-max-listpack-value", 256
		got, err := c.ConfigGet(ctx, key).Result()
		if err != nil {
			compact = false
			return nil //nolint:nilerr // CONFIG is not for everyone; the answer is "no"
		}
		if v, err := strconv.Atoi(got[key]); err == nil && v >= want {
			return nil
		}
		if c.ConfigSet(ctx, key, strconv.Itoa(want)).Err() != nil {
			compact = false
		}
		return nil
	})
	return compact, err
}

// Ping reports whether Redis answers.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.client.Ping(ctx).Err()
}
