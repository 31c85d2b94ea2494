package crl

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// Ledger is what a Maker asks of the ledger; *ledger.Ledger is the one for production,
// and its comments are the contract. All methods are safe for concurrent use.
type Ledger interface {
	Issuers(ctx context.Context) ([]ledger.Issuer, error)
	Revocations(ctx context.Context, after int64, limit int) ([]ledger.Revocation, error)
	RevocationSequence(ctx context.Context) (int64, error)

	PutCRLSet(ctx context.Context, s ledger.CRLSet) (int32, error)
	CRLSets(ctx context.Context) ([]ledger.CRLSet, error)
	CRLs(ctx context.Context) ([]ledger.CRL, error)

	ClaimCRL(ctx context.Context, set int32, shard int, seen int64, maker string, d time.Duration) (ledger.CRLClaim, bool, error)
	ReleaseCRL(ctx context.Context, c ledger.CRLClaim) error
	CountCRLEntries(ctx context.Context, s ledger.CRLScope) (ledger.CRLCount, error)
	CRLEntries(ctx context.Context, s ledger.CRLScope, after serial.Number, limit int, dst []ledger.CRLEntry) ([]ledger.CRLEntry, error)
	PutCRLChunk(ctx context.Context, c ledger.CRLClaim, chunk int, der []byte) error
	PublishCRL(ctx context.Context, claim ledger.CRLClaim, c ledger.CRL) (bool, error)
}

// Wanted is a distribution point that certificates of an issuer name from now on.
type Wanted struct {
	Issuer string
	Point  crldp.Point // with {issuer}
}

// Deps are the parts that a Maker works with. Ledger and Key are required.
type Deps struct {
	Ledger Ledger
	// Key finds an issuer's key; it fails where this process does not have it.
	Key func(ctx context.Context, issuer ledger.Issuer) (Key, error)
	// Wanted returns the distribution points of the profiles, nil while they are not
	// known.
	Wanted func() []Wanted
	// Log, Registry and Now may be nil.
	Log      *slog.Logger
	Registry prometheus.Registerer
	Now      func() time.Time
}

// Maker makes CRLs. Make it with New and start it with Run, once.
type Maker struct {
	cfg     Config
	deps    Deps
	name    string // of this maker in claims
	metrics *metrics

	cursor  int64                  // the last revocation seen; -1 before the first look
	waiting map[shard]*revoked     // shards whose CRL lacks a revocation
	known   map[ledger.CRLSet]bool // sets that the ledger has; without their ids
	silent  map[int32]string       // issuers without a key, and what was said of it
	last    atomic.Pointer[error]  // of the last look

	work  sync.WaitGroup // the CRLs being made
	hands chan struct{}  // one for each at a time
	mu    sync.Mutex     // guards what follows
	// busy holds the CRLs being made, and until when one that failed is left alone.
	busy map[shard]time.Time
}

// forever is for a CRL that is being made.
var forever = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// lookLimit is after how long with more to make than hands a maker looks again, lest a
// revocation wait behind everything that is due by schedule.
const lookLimit = 5 * time.Second

// pause is how long a CRL that could not be made is left alone.
const pause = 10 * time.Second

// shard names one CRL.
type shard struct {
	set   int32
	index int
}

// revoked is what a CRL lacks.
type revoked struct {
	sequence int64
	since    time.Time
}

// New checks cfg and makes a Maker; it opens nothing.
func New(cfg Config, deps Deps) (*Maker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Ledger == nil || deps.Key == nil {
		return nil, errors.New("crl: a maker needs a ledger and keys")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Registry == nil {
		deps.Registry = prometheus.NewRegistry()
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Wanted == nil {
		deps.Wanted = func() []Wanted { return nil }
	}
	return &Maker{
		cfg: cfg, deps: deps, name: rand.Text(), metrics: newMetrics(deps.Registry),
		cursor: -1, waiting: map[shard]*revoked{}, known: map[ledger.CRLSet]bool{}, silent: map[int32]string{}, busy: map[shard]time.Time{},
		hands: make(chan struct{}, cfg.Concurrency),
	}, nil
}

// Run makes CRLs until ctx ends and returns nil then, after those under way have
// ended. The ledger and the keys may be away at any time.
func (m *Maker) Run(ctx context.Context) error {
	defer m.work.Wait()
	tick := time.NewTicker(m.cfg.Poll)
	defer tick.Stop()
	failing := false
	for {
		more, err := m.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.last.Store(&err)
		if err != nil && !failing {
			m.deps.Log.Warn("CRLs cannot be looked after; it is tried again", "error", err)
		} else if err == nil && failing {
			m.deps.Log.Info("CRLs are looked after again")
		}
		failing = err != nil
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Ready returns how the last look at the ledger ended.
func (m *Maker) Ready() error {
	if err := m.last.Load(); err != nil {
		return *err
	}
	return errors.New("crl: the ledger was not read yet")
}
