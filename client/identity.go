package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// Identity is a certificate that is renewed in good time, with the roots that its peers
// are judged by. It is safe for concurrent use.
type Identity struct {
	cfg     Config
	request Request
	trust   *gatewayTrust

	current atomic.Pointer[Certificate]
	bundle  atomic.Pointer[Bundle]

	mu      sync.Mutex // guards changed and failure
	changed chan struct{}
	failure error

	cancel context.CancelFunc
	done   chan struct{}
}

// Open gets a certificate and the trust bundle, and keeps both fresh until ctx ends or
// Close is called. It waits for the first certificate until two minutes have passed or ctx
// ends, and gives up at once only where repeating is no use.
//
// Which credential is used: for the first certificate the token or the certificate that
// cfg names. To renew, the certificate that is held; where cfg names a JSON Web Token,
// that token, read anew from its file, with the certificate shown beside it, and the
// certificate alone where the token is refused. So an enrollment token is needed once,
// and a certificate that was revoked does not renew itself.
func Open(ctx context.Context, cfg Config, request Request) (*Identity, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if request.CSR != nil || request.RequestID != "" {
		return nil, errors.New("CSR and RequestID are for Issue: what renews makes new ones")
	}
	if cfg.TokenFile == "" && cfg.CertFile == "" {
		return nil, errNoCredential
	}
	i := &Identity{cfg: cfg, request: request, trust: &gatewayTrust{caFile: cfg.CAFile}, changed: make(chan struct{}), done: make(chan struct{})}
	ctx, i.cancel = context.WithCancel(ctx)
	if err := i.first(ctx); err != nil {
		i.cancel()
		return nil, err
	}
	go i.run(ctx)
	return i, nil
}

// firstTime bounds the wait for the first certificate.
const firstTime = 2 * time.Minute

func (i *Identity) first(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstTime)
	defer cancel()
	c, err := New(i.cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	c.cfg.Timeout = firstTime
	bundle, err := c.TrustBundle(ctx)
	if err != nil {
		return fmt.Errorf("getting the trust bundle: %w", err)
	}
	i.takeBundle(bundle)
	cert, err := c.Issue(ctx, i.request)
	if err != nil {
		return fmt.Errorf("getting the first certificate: %w", err)
	}
	i.current.Store(cert)
	return nil
}

// Close ends the renewal and returns when nothing of it runs any more. The certificate
// stays in use until its end.
func (i *Identity) Close() error {
	i.cancel()
	<-i.done
	return nil
}

// Done is closed when the renewal has ended, with ctx or by Close.
func (i *Identity) Done() <-chan struct{} { return i.done }

// Certificate returns the certificate in use. It must not be changed.
func (i *Identity) Certificate() *Certificate { return i.current.Load() }

// Bundle returns the roots in use.
func (i *Identity) Bundle() *Bundle { return i.bundle.Load() }

// Changed returns a channel that is closed at the next change of the certificate or of
// the bundle.
func (i *Identity) Changed() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changed
}

// Err returns why the last renewal has not succeeded yet, and nil when it has. The
// renewal is tried again all the same.
func (i *Identity) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.failure
}

func (i *Identity) failed(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failure = err
}

func (i *Identity) tell() {
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *Identity) takeBundle(b *Bundle) {
	i.trust.follow(b)
	old := i.bundle.Swap(b)
	if old == nil || string(old.PEM()) != string(b.PEM()) {
		i.tell()
	}
}

// run renews and asks until ctx ends.
func (i *Identity) run(ctx context.Context) {
	defer close(i.done)
	for {
		cert := i.Certificate()
		ask := askAfter(cert)
		if wait := time.Until(cert.RenewAt); wait > ask {
			if !sleep(ctx, ask) {
				return
			}
			i.askAgain(ctx)
			continue
		} else if !sleep(ctx, wait) {
			return
		}
		if !i.renew(ctx) {
			return
		}
	}
}

// The advice and the bundle are asked for ten to twenty times in a certificate's life.
func askAfter(c *Certificate) time.Duration {
	life := c.Leaf().NotAfter.Sub(c.Leaf().NotBefore)
	return jitter(min(max(life/10, time.Second), 12*time.Hour))
}

// askAgain looks whether the renewal was pulled forward and the bundle has changed. What
// fails is asked again next time.
func (i *Identity) askAgain(ctx context.Context) {
	cert := i.Certificate()
	err := i.with(ctx, func(ctx context.Context, c *Client) error {
		bundle, err := c.TrustBundle(ctx)
		if err != nil {
			return err
		}
		i.takeBundle(bundle)
		info, err := c.RenewalInfo(ctx, cert.Serial)
		if err != nil {
			return err
		}
		if at := info.GetRenewAt().AsTime(); info.GetRenewAt() != nil && !at.Equal(cert.RenewAt) {
			moved := *cert
			moved.RenewAt = at
			i.current.Store(&moved) // this goroutine alone stores
			i.cfg.Log.Info("the renewal was moved", "serial", cert.Serial, "to", at, "reason", info.GetReason())
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		i.cfg.Log.Warn("the advice to renew could not be asked for", "serial", cert.Serial, "error", err)
	}
}

// renew gets the next certificate, however long that takes. Its key and idempotency key
// are kept for as long as the outcome is open: a try whose answer was lost is the same
// certificate. It reports whether ctx lasted.
func (i *Identity) renew(ctx context.Context) bool {
	var p *prepared
	old := i.Certificate()
	for pause := time.Second; ; pause *= 2 {
		err := i.tryRenew(ctx, &p)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		i.failed(err)
		i.cfg.Log.Warn("the certificate could not be renewed yet", "serial", old.Serial, "not_after", old.Leaf().NotAfter, "error", err)
		e := problem.From(err)
		if !worthRepeating(e) {
			p = nil // this one was judged
			i.refreshBundle(ctx)
		}
		// A tenth of what is left, so that an outage costs tries and not the certificate.
		pause = min(pause, max(time.Until(old.Leaf().NotAfter)/10, 5*time.Second), 10*time.Minute)
		if !sleep(ctx, e.RetryAfter+jitter(pause)) {
			return false
		}
	}
}

// refreshBundle goes on judging peers by the roots of the moment while the renewal is
// refused.
func (i *Identity) refreshBundle(ctx context.Context) {
	held := i.Certificate().TLS
	_ = i.dialled(ctx, credential{held: &held}, func(ctx context.Context, c *Client) error {
		bundle, err := c.TrustBundle(ctx)
		if err == nil {
			i.takeBundle(bundle)
		}
		return err
	})
}

func (i *Identity) tryRenew(ctx context.Context, p **prepared) (err error) {
	if *p == nil {
		if *p, err = i.request.prepare(); err != nil {
			return err
		}
	}
	return i.with(ctx, func(ctx context.Context, c *Client) error {
		cert, err := c.issue(ctx, *p)
		if err != nil {
			return err
		}
		if bundle, err := c.TrustBundle(ctx); err == nil {
			i.takeBundle(bundle) // before the certificate, whose root it has
		}
		// A CA that says "now" of what it has just made must not be asked without end.
		if least := time.Now().Add(time.Until(cert.Leaf().NotAfter) / 20); cert.RenewAt.Before(least) {
			cert.RenewAt = least
		}
		i.current.Store(cert)
		i.failed(nil)
		i.tell()
		i.cfg.Log.Info("the certificate was renewed", "serial", cert.Serial, "not_after", cert.Leaf().NotAfter, "renew_at", cert.RenewAt)
		return nil
	})
}

// with makes a call on a connection of its own that shows the certificate in use: a
// connection would show the one that it was made with until it ends. Between the calls,
// minutes or hours, a gateway has no connection of a thousand agents to keep.
func (i *Identity) with(ctx context.Context, call func(context.Context, *Client) error) error {
	held := i.Certificate().TLS
	shown := credential{held: &held, certFile: i.cfg.CertFile, keyFile: i.cfg.KeyFile}
	err := errNoToken
	if i.cfg.TokenFile != "" {
		err = i.withToken(ctx, shown, call)
	}
	if err == nil || !errors.Is(err, errNoToken) && problem.KindOf(err) != Unauthenticated {
		return err
	}
	if errors.Is(err, errNoToken) || time.Now().Before(held.Leaf.NotAfter) {
		return i.dialled(ctx, shown, call)
	}
	return err
}

// errNoToken says that there is no token with which a renewal should be tried.
var errNoToken = errors.New("no token to renew with")

func (i *Identity) withToken(ctx context.Context, shown credential, call func(context.Context, *Client) error) error {
	token, err := readToken(i.cfg.TokenFile)
	if err != nil || len(token) > len(enrollmentPrefix) && token[:len(enrollmentPrefix)] == enrollmentPrefix {
		return errNoToken
	}
	shown.tokenFile = i.cfg.TokenFile
	return i.dialled(ctx, shown, call)
}

// dialled bounds each call by a quarter of what is left of the certificate's life too, so
// that a short life is not spent on waiting for one gateway.
func (i *Identity) dialled(ctx context.Context, shown credential, call func(context.Context, *Client) error) error {
	cfg := i.cfg
	cfg.Timeout = min(cfg.Timeout, max(time.Until(shown.held.Leaf.NotAfter)/4, time.Second))
	c, err := dial(cfg, i.trust, shown)
	if err != nil {
		return err
	}
	defer c.Close()
	return call(ctx, c)
}

var errExpired = errors.New("the certificate has expired and could not be renewed")

// usable returns the certificate for a handshake.
func (i *Identity) usable() (*tls.Certificate, error) {
	cert := i.Certificate()
	if time.Now().After(cert.Leaf().NotAfter) {
		if err := i.Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", errExpired, err)
		}
		return nil, errExpired
	}
	return &cert.TLS, nil
}
