package signer

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Signer takes requests from the queue, signs them in an HSM, commits the
// certificates to the ledger and then releases them. It is safe for concurrent use.
//
//	pull ─► delivery ─► serve, one of the crew a request ─► prepare ─► HSM session ─► group commit
//	acknowledgement ◄─ reply, one message for what is ready ◄──────────────────────────┘
type Signer struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	tracer  trace.Tracer
	now     func() time.Time
	metrics *metrics

	openings *hsm.Openings // of the tokens

	// Set by Run before anything is served.
	parts
	gate     *gate
	crew     *crew
	work     context.Context // the requests'; ends when shutdown takes too long
	inFlight atomic.Int64
	serving  atomic.Bool
	drain    atomic.Pointer[ledger.Drain] // set while no work is to be taken
	restored atomic.Pointer[time.Time]    // when the ledger was last restored, as first seen
	skew     atomic.Int64                 // of our clock against the database's, nanoseconds
	account  account                      // signatures that are not settled
	// oneSuspect is held by the suspect at work.
	oneSuspect chan struct{}
	writing    sync.WaitGroup // replies and events

	mu      sync.Mutex // guards all below
	lines   map[int32]*line
	tokens  []Token
	configs map[Token]hsm.Config // of those that were opened by their configuration
	leaving []Token              // to be taken out
	// wantedTokens are those of the last SetTokens that was not looked at yet, or nil.
	wantedTokens []hsm.Config
	outboxes     map[string]*batcher[outcome]
	deliveries   map[*delivery]struct{}
	trouble      map[string]error // why an issuer is not served
}

// parts are what a Signer works with, opened by open.
type parts struct {
	book      Ledger
	committer Committer
	conn      *queue.Conn
	profiles  *profile.Set
	// newPreparer compiles the profiles of an issuer.
	newPreparer func(issuer ledger.Issuer, public crypto.PublicKey) (preparer, error)
}

// New makes a Signer; Run brings it to life.
func New(cfg Config, deps Deps) (*Signer, error) {
	if cfg.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("signer: name is empty and the host has none: %w", err)
		}
		cfg.Name = host
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return newSigner(cfg, deps), nil
}

func newSigner(cfg Config, deps Deps) *Signer {
	deps = deps.withDefaults()
	if cfg.ClockOffset != 0 {
		real := deps.Now
		deps.Now = func() time.Time { return real().Add(cfg.ClockOffset) }
		deps.Log.Warn("the clock is wrong on purpose", "clock_offset", cfg.ClockOffset)
	}
	s := &Signer{
		cfg: cfg, deps: deps, log: deps.Log, tracer: deps.Tracer, now: deps.Now,
		gate: newGate(deps.Log), lines: map[int32]*line{}, configs: map[Token]hsm.Config{}, outboxes: map[string]*batcher[outcome]{},
		deliveries: map[*delivery]struct{}{}, oneSuspect: make(chan struct{}, 1), trouble: map[string]error{},
	}
	s.metrics = newMetrics(deps.Registry, s)
	s.openings = hsm.NewOpenings(hsm.Deps{Log: s.log, Registry: deps.Registry, Tracer: s.tracer})
	return s
}

// Ready returns nil while the signer can sign for every issuer that it is to serve. A
// drained signer is not ready.
func (s *Signer) Ready() error {
	if !s.serving.Load() {
		return problem.Down("signer", time.Second, nil)
	}
	if err := s.conn.Ready(); err != nil {
		return err
	}
	if err := s.skewed(); err != nil {
		return problem.Down("signer", time.Second, err)
	}
	if !s.gate.isOpen() {
		return problem.Down("ledger", time.Second, nil)
	}
	if d := s.drain.Load(); d != nil {
		return problem.Down("signer", time.Second, errors.New(drainText(d)))
	}
	lines := s.allLines()
	var errs []error
	if len(lines) == 0 {
		errs = append(errs, errors.New("no issuer is served"))
	}
	for _, l := range lines {
		errs = append(errs, l.ready())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, err := range s.trouble {
		errs = append(errs, fmt.Errorf("issuer %s: %w", name, err))
	}
	if err := errors.Join(errs...); err != nil {
		return problem.Down("signer", time.Second, err)
	}
	return nil
}

func (s *Signer) allLines() []*line {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*line, 0, len(s.lines))
	for _, l := range s.lines {
		all = append(all, l)
	}
	return all
}

func (s *Signer) openTokens() []Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens
}

// profileLabel returns name if it is a profile's, for metrics: label sets are closed.
func (s *Signer) profileLabel(name string) string {
	if _, err := s.profiles.Get(name); err != nil {
		return "unknown"
	}
	return name
}
