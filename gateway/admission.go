package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// admission is what callers may take of this gateway beside each other: places for
// calls, for streams and for waiting, certificates a second, certificates for one set
// of names. It belongs to one gateway; several admit that many times as much.
type admission struct {
	calls   *shares // of limits.max_in_flight
	streams *shares // of limits.max_streams
	waiters *shares // of orders.max_waiting
	callers *rates[string]
	names   *rates[nameSet]

	log *slog.Logger
	now func() time.Time
	// told is when a refusal was last logged, by bound and caller.
	told *lru[string, time.Time]
}

// nameSet identifies the names of a certificate under a profile.
type nameSet [sha256.Size]byte

// tellEvery is how often the refusals of one caller at one bound are logged.
const tellEvery = time.Minute

func newAdmission(cfg *Config, inFlight, streams, waiting *limiter, log *slog.Logger, now func() time.Time) *admission {
	l := &cfg.Limits
	return &admission{
		calls:   newShares("caller_share", inFlight, l.CallerShare),
		streams: newShares("caller_share", streams, l.CallerShare),
		waiters: newShares("caller_share", waiting, l.CallerShare),
		callers: newRates[string]("caller_rate", "you ask for more certificates a second than this gateway gives one caller", l.CallerRate, l.CallerBurst, l.RateEntries, now),
		names:   newRates[nameSet]("names_rate", "these names have had as many certificates lately as this gateway gives them; is a client in a loop?", l.NamesRate/3600, l.NamesBurst, l.RateEntries, now),
		log:     log, now: now, told: newLRU[string, time.Time](1024),
	}
}

// admit counts a call that has its place in flight among its caller's. The returned
// function gives the place back; it is never nil.
func (a *admission) admit(ctx context.Context, held *shares, c *Caller, n int) (release func(), err error) {
	if err := held.acquire(c.ID, n); err != nil {
		a.tell(ctx, c, err)
		return func() {}, err
	}
	return func() { held.release(c.ID, n) }, nil
}

// certificate takes one from what a caller may ask for.
func (a *admission) certificate(ctx context.Context, c *Caller) error {
	err := a.callers.take(c.ID, [16]byte{})
	if err != nil {
		a.tell(ctx, c, err)
	}
	return err
}

// named takes one from what a set of names may get. A retry of a request takes none:
// it gets the certificate that it was meant to get.
func (a *admission) named(ctx context.Context, c *Caller, p *prepared) error {
	if a.names == nil {
		return nil
	}
	err := a.names.take(namesOf(p), p.key)
	if err != nil {
		a.tell(ctx, c, err)
	}
	return err
}

// tell names a caller who is held back, in the log and not in a metric: callers are no
// closed set. Once a minute for each caller and bound: a flood must not become a flood
// of lines.
func (a *admission) tell(ctx context.Context, c *Caller, err error) {
	rule := problem.From(err).Rule
	key, now := rule+" "+c.ID, a.now()
	if last, ok := a.told.get(key); ok && now.Sub(last) < tellEvery {
		return
	}
	a.told.put(key, now)
	a.log.LogAttrs(ctx, slog.LevelWarn, "a caller is held back", slog.String("caller", c.ID), slog.String("bound", rule))
}

// namesOf hashes the profile and the names that the certificate will have, in no
// matter which order they were asked for.
func namesOf(p *prepared) nameSet {
	r := p.request
	names := make([]string, 0, 1+len(r.DNSNames)+len(r.IPAddresses)+len(r.URIs)+len(r.Emails))
	names = append(names, "cn:"+r.CommonName)
	for _, n := range r.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, n := range r.IPAddresses {
		names = append(names, "ip:"+n.String())
	}
	for _, n := range r.URIs {
		names = append(names, "uri:"+n)
	}
	for _, n := range r.Emails {
		names = append(names, "email:"+n)
	}
	slices.Sort(names)
	h := sha256.New()
	var size [8]byte
	for _, n := range append([]string{r.Profile}, names...) {
		binary.BigEndian.PutUint64(size[:], uint64(len(n)))
		h.Write(size[:])
		h.Write([]byte(n))
	}
	return nameSet(h.Sum(nil))
}
