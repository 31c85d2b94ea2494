package staple

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// fetchers bounds the certificates that are worked on at one time.
const fetchers = 8

// Deps are what a Stapler takes from its process; all may be nil.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	Now      func() time.Time
}

// Stapler keeps staples fresh. Make it with New; then call Run once, or Once or Check
// any number of times, from one goroutine.
type Stapler struct {
	cfg     Config
	deps    Deps
	client  *http.Client
	metrics *metrics
	entries []*entry

	mu       sync.Mutex // guards reloadAt and the entries' state
	reloadAt time.Time  // when a reload is due; zero: none
	failed   int        // reloads in a row
}

// entry is one certificate at work.
type entry struct {
	Certificate
	// One goroutine works on an entry at a time; the stapler's mutex guards all below
	// for those who look.
	material *material
	staple   *Staple // the last valid one, nil before
	next     time.Time
	failures int
	pushed   []bool // by socket, of the staple
	problem  error  // of the last try
	state    State  // as it was last told
}

// New checks cfg and makes a Stapler; it opens nothing.
func New(cfg Config, deps Deps) (*Stapler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
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
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http says so
	transport.MaxIdleConnsPerHost = fetchers
	s := &Stapler{cfg: cfg, deps: deps, client: &http.Client{Transport: transport, Timeout: cfg.Timeout}}
	for _, c := range cfg.Certificates {
		s.entries = append(s.entries, &entry{Certificate: c, pushed: make([]bool, len(c.HAProxy))})
	}
	s.metrics = newMetrics(deps.Registry, s)
	return s, nil
}

// Run keeps the staples fresh until ctx ends and returns nil then.
func (s *Stapler) Run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	tick := time.NewTicker(s.cfg.Look)
	defer tick.Stop()
	for {
		s.pass(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Once brings every staple up to date and returns what failed.
func (s *Stapler) Once(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	for _, e := range s.entries {
		e.next = time.Time{}
	}
	s.pass(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range s.entries {
		if e.problem != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.Chain, e.problem))
		}
	}
	if s.failed > 0 {
		errs = append(errs, errors.New("the reload command failed"))
	}
	return errors.Join(errs...)
}

// Ready returns nil while every certificate has a valid staple, and else says which has not.
func (s *Stapler) Ready() error {
	now := s.deps.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range s.entries {
		if e.staple == nil || !now.Before(e.staple.NextUpdate) {
			errs = append(errs, fmt.Errorf("%s has no valid staple: %w", e.Chain, e.problem))
		}
	}
	return errors.Join(errs...)
}

// pass looks at every certificate, works on those that are due, and then reloads.
func (s *Stapler) pass(ctx context.Context) {
	var wait sync.WaitGroup
	slots := make(chan struct{}, fetchers)
	for _, e := range s.entries {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			s.work(ctx, e)
		})
	}
	wait.Wait()
	if ctx.Err() == nil {
		s.reload(ctx)
	}
}

// work brings one certificate up to date.
func (s *Stapler) work(ctx context.Context, e *entry) {
	now := s.deps.Now()
	m, err := e.read()
	s.mu.Lock()
	if err == nil && (e.material == nil || e.material.digest != m.digest) {
		s.begin(e, m, now)
	}
	due := !now.Before(e.next)
	s.mu.Unlock()
	if err == nil && due {
		err = s.renew(ctx, e, now)
	} else if err == nil && !due {
		err = e.problem
	}
	if ctx.Err() != nil {
		return
	}
	s.tell(e, err, due, now)
}

// begin starts on a certificate that is new: with the staple in its file, if that is a
// valid one.
func (s *Stapler) begin(e *entry, m *material, now time.Time) {
	e.material, e.staple, e.next, e.failures = m, nil, time.Time{}, 0
	clear(e.pushed)
	der, err := readBounded(e.path(), maxStapleBytes)
	if err != nil {
		return
	}
	if there, err := verify(der, m, now); err == nil {
		e.staple = there
	}
}

// renew fetches an answer and delivers it; without a better one it delivers what there
// is, where that is not done yet.
func (s *Stapler) renew(ctx context.Context, e *entry, now time.Time) error {
	fctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	der, err := fetch(fctx, s.client, e.material)
	var fresh *Staple
	if err == nil {
		fresh, err = verify(der, e.material, s.deps.Now())
	}
	if err == nil {
		err = better(fresh, e.staple)
	}
	s.metrics.fetched(err)
	s.mu.Lock()
	if err == nil {
		if e.staple == nil || string(e.staple.DER) != string(fresh.DER) {
			clear(e.pushed)
		}
		e.staple = fresh
	}
	standing := e.staple
	s.mu.Unlock()
	if standing == nil || !now.Before(standing.NextUpdate) {
		return err
	}
	return errors.Join(err, s.deliver(ctx, e, standing, now))
}

// deliver writes the file, has a reload done if it has changed, and hands the staple to
// the HAProxys that do not have it.
func (s *Stapler) deliver(ctx context.Context, e *entry, staple *Staple, now time.Time) error {
	changed, err := write(e.path(), staple.DER)
	if err != nil {
		return fmt.Errorf("writing %s: %w", e.path(), err)
	}
	if changed {
		s.metrics.written.Inc()
		s.deps.Log.Info("a staple was written", "file", e.path(), "revoked", staple.Revoked, "next_update", staple.NextUpdate)
		s.mu.Lock()
		if s.reloadAt.IsZero() {
			s.reloadAt = now
		}
		s.mu.Unlock()
	}
	var errs []error
	for i, socket := range e.HAProxy {
		if e.pushed[i] {
			continue
		}
		pctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
		err := push(pctx, socket, staple.DER)
		cancel()
		e.pushed[i] = err == nil
		errs = append(errs, err)
		s.metrics.push(err)
	}
	return errors.Join(errs...)
}

// tell plans the next try, and says what has changed.
func (s *Stapler) tell(e *entry, err error, tried bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tried || err != nil {
		if tried && err == nil {
			e.failures, e.next = 0, s.after(e.staple, now)
		} else if tried {
			wait := s.cfg.Retry << min(e.failures, 20)
			if wait <= 0 || wait > s.cfg.Interval {
				wait = s.cfg.Interval
			}
			e.failures++
			e.next = now.Add(wait)
		}
	}
	before, first := e.state, e.problem == nil
	e.problem = err
	e.state = s.state(e.staple, now)
	if err != nil && (first || tried && e.failures%10 == 1) {
		s.deps.Log.Warn("a staple could not be renewed or delivered; the last valid one stays", "chain", e.Chain, "error", err, "tries", e.failures)
	} else if err == nil && !first {
		s.deps.Log.Info("a staple is renewed and delivered again", "chain", e.Chain)
	}
	if e.state != before {
		level := slog.LevelInfo
		if e.state != Fresh {
			level = slog.LevelError
		}
		s.deps.Log.Log(context.Background(), level, "the state of a staple has changed", "chain", e.Chain, "state", string(e.state))
	}
}

// after is when the next answer is asked for: after the interval, but not later than at
// half of the validity, with a tenth taken off at random.
func (s *Stapler) after(staple *Staple, now time.Time) time.Time {
	wait := s.cfg.Interval
	half := staple.ThisUpdate.Add(staple.NextUpdate.Sub(staple.ThisUpdate) / 2).Sub(now)
	if half < wait {
		wait = max(half, s.cfg.Retry)
	}
	return now.Add(wait - time.Duration(rand.Float64()*float64(wait)/10))
}

// reload runs the command if files have changed, and again after it has failed.
func (s *Stapler) reload(ctx context.Context) {
	now := s.deps.Now()
	s.mu.Lock()
	due := !s.reloadAt.IsZero() && !now.Before(s.reloadAt)
	if len(s.cfg.Reload) == 0 {
		due, s.reloadAt = false, time.Time{}
	}
	s.mu.Unlock()
	if !due {
		return
	}
	err := reload(ctx, s.cfg.Reload, s.cfg.ReloadTimeout)
	s.metrics.reloaded(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.reloadAt, s.failed = time.Time{}, 0
		return
	}
	s.failed++
	s.reloadAt = now.Add(min(s.cfg.Retry<<min(s.failed, 10), s.cfg.Interval))
	s.deps.Log.Error("the proxies could not be reloaded; it is tried again", "error", err)
}
