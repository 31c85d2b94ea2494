//go:build cgo

package roles

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/presign"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
	"github.com/certmill/certmill/signer/hsm"
)

// PresignerConfig is the presigner's whole configuration.
type PresignerConfig struct {
	presign.Config `yaml:",inline"`
	// Tokens are the HSM tokens that hold the keys of the OCSP signers. Empty: all keys
	// are files.
	Tokens []hsm.Config `yaml:"tokens"`
}

// DefaultPresigner returns the defaults.
func DefaultPresigner() PresignerConfig { return PresignerConfig{Config: presign.DefaultConfig()} }

// Validate reports everything that is wrong.
func (c PresignerConfig) Validate() error {
	errs := []error{c.Config.Validate()}
	for i, t := range c.Tokens {
		if err := t.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("tokens[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func presignerRole() Role {
	return Role{
		Name: "presigner", Command: "certmill ocsp presigner", Summary: "Signs OCSP answers ahead of time and at once on revocation.",
		Defaults: DefaultPresigner(), Elements: hsmElements,
		Check: func(s Source) error {
			_, err := load("presigner", DefaultPresigner(), hsmElements, s)
			return err
		},
	}
}

// Presigner runs a presigner until ctx ends.
func Presigner(ctx context.Context, s Source) error {
	cfg, err := load("presigner", DefaultPresigner(), hsmElements, s)
	if err != nil {
		return err
	}
	return serve(ctx, "presigner", cfg.Telemetry, func(ctx context.Context, tel *telemetry.Telemetry, running func(part)) error {
		return runPresigner(ctx, cfg, tel, running)
	})
}

// VerifyOCSP compares the ledger with what the responders serve from; see
// presign.Verify. It reads a presigner's configuration and changes nothing.
func VerifyOCSP(ctx context.Context, s Source, grace time.Duration, report func(presign.Difference)) (sum presign.Verified, err error) {
	cfg, err := load("presigner", DefaultPresigner(), hsmElements, s)
	if err != nil {
		return sum, err
	}
	book, err := ledger.Open(ctx, cfg.Ledger, ledger.Deps{})
	if err != nil {
		return sum, err
	}
	defer book.Close()
	store, err := ocsp.OpenStore(cfg.Redis, cfg.Namespace)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return presign.Verify(ctx, book, store, grace, report)
}

func runPresigner(ctx context.Context, cfg PresignerConfig, tel *telemetry.Telemetry, running func(part)) error {
	book, err := openLedger(ctx, cfg.Ledger, tel)
	if err != nil {
		return err
	}
	defer book.Close()
	conn, err := queue.Connect(cfg.NATS, "certmill presigner", tel.Log)
	if err != nil {
		return err
	}
	defer closeQueue(ctx, conn)
	deps := presign.Deps{Ledger: book, CRLs: book, Queue: conn, Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer}
	tokens := newTokens(cfg.Tokens, tel)
	defer tokens.close(ctx)
	deps.Tokens = tokens.statuses
	if len(cfg.Tokens) > 0 {
		deps.Key = tokens.key
	}
	p, err := presign.New(cfg.Config, deps)
	if err != nil {
		return err
	}
	running(p)
	return inOrder(ctx, tokens.watch, p.Run)
}

// tokens opens HSM tokens when a key is first asked of them, and again when that
// failed. It is safe for concurrent use.
type tokens struct {
	configs  []hsm.Config
	openings *hsm.Openings
	log      *slog.Logger

	opening sync.Mutex         // held while one is opened, which may take long
	mu      sync.Mutex         // guards open
	open    map[int]*hsm.Token // by the index in configs
}

func newTokens(configs []hsm.Config, tel *telemetry.Telemetry) *tokens {
	return &tokens{configs: configs, log: tel.Log, open: map[int]*hsm.Token{},
		openings: hsm.NewOpenings(hsm.Deps{Log: tel.Log, Registry: tel.Registry, Tracer: tel.Tracer})}
}

// key finds a key in the first token that holds it.
func (t *tokens) key(ctx context.Context, uri string, public crypto.PublicKey) (presign.ContextSigner, error) {
	var errs []error
	for i := range t.configs {
		token, err := t.token(ctx, i)
		if err == nil {
			var key *hsm.Key
			if key, err = token.KeyFor(ctx, uri, public); err == nil {
				return key, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (t *tokens) token(ctx context.Context, i int) (*hsm.Token, error) {
	if token := t.opened(i); token != nil {
		return token, nil
	}
	t.opening.Lock()
	defer t.opening.Unlock()
	if token := t.opened(i); token != nil {
		return token, nil
	}
	token, err := t.openings.Open(ctx, t.configs[i])
	if err != nil {
		return nil, fmt.Errorf("tokens[%d]: %w", i, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[i] = token
	return token, nil
}

func (t *tokens) opened(i int) *hsm.Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open[i]
}

// statuses describes the tokens, those that could not be opened too.
func (t *tokens) statuses() (all []*certmillv1.TokenStatus) {
	for i := range t.configs {
		if token := t.opened(i); token != nil {
			all = append(all, token.Status())
		}
	}
	return append(all, t.openings.Unopened()...)
}

// watch fails as soon as a token can only be used again by a new process.
func (t *tokens) watch(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		t.mu.Lock()
		for i, token := range t.open {
			select {
			case <-token.Stuck():
				t.mu.Unlock()
				return fmt.Errorf("tokens[%d] is stuck; only a new process can use it again", i)
			default:
			}
		}
		t.mu.Unlock()
	}
}

func (t *tokens) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, token := range t.open {
		if err := token.Close(ctx); err != nil {
			t.log.Warn("closing the token", "error", err)
		}
	}
}
