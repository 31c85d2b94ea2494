package signer

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Run opens what the signer needs, writes the epochs and serves until ctx ends. Then
// it stops pulling, finishes what it holds, writes the replies and the final number
// of signatures, closes everything and returns nil. It returns an error when it
// cannot start, or when only a new process can go on: a token is stuck, or the ledger was
// restored from a backup under it.
func (s *Signer) Run(ctx context.Context) error {
	book, err := ledger.Open(ctx, s.cfg.Ledger, ledger.Deps{Log: s.log, Registry: s.deps.Registry, Tracer: s.tracer, Now: s.deps.Now})
	if err != nil {
		return fmt.Errorf("opening the ledger: %w", err)
	}
	defer book.Close()
	committer, err := ledger.NewCommitter(book, s.cfg.Committer, ledger.Deps{Log: s.log, Registry: s.deps.Registry, Tracer: s.tracer, Now: s.deps.Now})
	if err != nil {
		return fmt.Errorf("making the committer: %w", err)
	}
	commitCtx, endCommits := context.WithCancel(context.WithoutCancel(ctx))
	committed := make(chan error, 1)
	go func() { committed <- committer.Run(commitCtx) }()
	defer func() {
		endCommits()
		<-committed
	}()

	profiles, err := profile.LoadDir(s.cfg.ProfilesDir)
	if err != nil {
		return fmt.Errorf("loading the profiles: %w", err)
	}
	conn, err := queue.Connect(s.cfg.NATS, "certmill-signer-"+s.cfg.Name, s.log)
	if err != nil {
		return err
	}
	defer s.within(context.WithoutCancel(ctx), conn.Close)

	tokens, retry, err := s.openConfigured(ctx)
	if err != nil {
		return err
	}
	return s.serve(ctx, parts{book: book, committer: committer, conn: conn, profiles: profiles, newPreparer: s.compiler(profiles)}, tokens, retry)
}

func (s *Signer) compiler(profiles *profile.Set) func(ledger.Issuer, crypto.PublicKey) (preparer, error) {
	return func(issuer ledger.Issuer, public crypto.PublicKey) (preparer, error) {
		p, err := NewPreparer(PreparerConfig{Issuer: issuer, Public: public, Profiles: profiles, LintShare: s.cfg.LintShare, Now: s.deps.Now, Tracer: s.tracer})
		if err != nil {
			return nil, err
		}
		return templates{p}, nil
	}
}

// openConfigured opens the tokens. One that cannot be opened is tried again with every
// refresh, as long as another is open; but a refused PIN never is, lest the token lock.
func (s *Signer) openConfigured(ctx context.Context) (open []Token, retry []hsm.Config, err error) {
	var errs []error
	for i, cfg := range s.cfg.Tokens {
		t, err := s.openToken(ctx, cfg)
		if err == nil {
			open = append(open, t)
			continue
		}
		errs = append(errs, fmt.Errorf("tokens[%d]: %w", i, err))
		s.log.Error("a token could not be opened", "token", i, "error", err)
		if hsm.RemedyFor(err) != hsm.Fatal {
			retry = append(retry, cfg)
		}
	}
	if len(open) == 0 {
		return nil, nil, errors.Join(errs...)
	}
	return open, retry, nil
}

func (s *Signer) openToken(ctx context.Context, cfg hsm.Config) (Token, error) {
	t, err := s.openings.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	token := &hsmToken{Token: t}
	s.mu.Lock()
	s.configs[token] = cfg
	s.mu.Unlock()
	return token, nil
}

// unsampled is the parent of requests that no caller traces: without it every one of
// them would begin a trace of its own.
var unsampled = trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{15: 1}, SpanID: trace.SpanID{7: 1}, Remote: true})

// serve runs on opened parts. It closes the tokens.
func (s *Signer) serve(ctx context.Context, p parts, tokens []Token, retry []hsm.Config) error {
	s.parts = p
	s.gate.answers = s.ledgerAnswers
	work, cancelWork := context.WithCancel(trace.ContextWithRemoteSpanContext(context.WithoutCancel(ctx), unsampled))
	defer cancelWork()
	s.work = work
	s.mu.Lock()
	s.tokens = tokens
	s.mu.Unlock()

	background, stopBackground := context.WithCancel(work)
	s.crew = newCrew(background.Done())
	g, gctx := errgroup.WithContext(ctx)
	var keep sync.WaitGroup
	for _, fn := range []func(context.Context) error{s.showProgress, s.gate.keep, s.reportEpochs, s.keepAccount, s.report, s.watchClock} {
		keep.Go(func() { _ = fn(background) }) // they end with their context, without an error
	}
	g.Go(func() error { return s.serveIssuers(gctx, retry) })
	g.Go(func() error { return s.watchConnection(gctx) })
	err := g.Wait() // ctx has ended, a token is stuck, or the ledger is another one

	s.serving.Store(false)
	if errors.Is(err, errRestored) {
		cancelWork() // nothing more is committed under the old epochs
	}
	s.stopLines(cancelWork)
	stopBackground()
	keep.Wait()
	s.writing.Wait()
	s.within(context.WithoutCancel(ctx), s.reportFinal)
	s.within(context.WithoutCancel(ctx), s.closeTokens)
	return err
}

// within gives fn as long as a part of the shutdown may take.
func (s *Signer) within(ctx context.Context, fn func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ShutdownTimeout)
	defer cancel()
	fn(ctx)
}

// serveIssuers settles the streams, then keeps the lines as the ledger's issuers are,
// until ctx ends, a token is stuck or the ledger was restored.
func (s *Signer) serveIssuers(ctx context.Context, retry []hsm.Config) error {
	tick := time.NewTicker(s.cfg.IssuerRefresh)
	defer tick.Stop()
	settled := false
	for {
		if !settled {
			// A clock that cannot be compared yet is compared before the issuers can be
			// read: both ask the ledger.
			settled = s.settle(ctx) == nil && s.measureClock(ctx) == nil && s.sameLedger(ctx) == nil
		} else if err := s.sameLedger(ctx); errors.Is(err, errRestored) {
			return err
		}
		if settled {
			s.mend(ctx)
			retry = s.reopen(ctx, s.missingTokens(retry))
			if err := s.refresh(ctx); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("the issuers could not be refreshed", "error", err)
				}
			} else {
				s.removeTokens(ctx) // the others have the work by now
			}
			s.serving.Store(ctx.Err() == nil)
			s.sweepReplies()
		}
		if t := s.stuckToken(ctx, tick.C); t != nil {
			return fmt.Errorf("token %s is stuck; a new process must take its place", t.Serial())
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// stuckToken waits for the next tick or the end of ctx; it returns a token that got
// stuck before.
func (s *Signer) stuckToken(ctx context.Context, tick <-chan time.Time) Token {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stuck := make(chan Token, 1)
	var wait sync.WaitGroup
	for _, t := range s.openTokens() {
		wait.Go(func() {
			select {
			case <-t.Stuck():
				select {
				case stuck <- t:
				default:
				}
			case <-ctx.Done():
			}
		})
	}
	defer wait.Wait()
	defer cancel()
	select {
	case t := <-stuck:
		return t
	case <-tick:
	case <-ctx.Done():
	}
	return nil
}

// settle waits for the connection and makes the streams.
func (s *Signer) settle(ctx context.Context) error {
	if err := s.conn.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := queue.EnsureStreams(ctx, s.conn.JetStream, s.conn.Settings)
	if err != nil {
		s.log.Warn("the queue's streams cannot be made yet", "error", err)
	}
	return err
}

// reopen tries the tokens that could not be opened, and returns those that still cannot.
func (s *Signer) reopen(ctx context.Context, retry []hsm.Config) (left []hsm.Config) {
	for _, cfg := range retry {
		t, err := s.openToken(ctx, cfg)
		switch {
		case err == nil:
			s.mu.Lock()
			s.tokens = append(s.tokens[:len(s.tokens):len(s.tokens)], t)
			s.mu.Unlock()
		case hsm.RemedyFor(err) != hsm.Fatal:
			left = append(left, cfg)
		default:
			s.log.Error("a token could not be opened and is not tried again", "error", err)
		}
	}
	return left
}

// watchConnection tells the lines of every new connection: their pulls went with the
// old one.
func (s *Signer) watchConnection(ctx context.Context) error {
	up := s.conn.NATS.StatusChanged(nats.CONNECTED)
	defer s.conn.NATS.RemoveStatusListener(up)
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-up:
			if !ok {
				up = nil // the connection is closed
				continue
			}
			for _, l := range s.allLines() {
				select {
				case l.again <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (s *Signer) closeTokens(ctx context.Context) {
	for _, t := range s.openTokens() {
		if err := t.Close(ctx); err != nil {
			s.log.Warn("a token could not be closed", "token", t.Serial(), "error", err)
		}
	}
}
