package queue

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
)

const (
	// reconnectBuffer bounds what is written while the connection is away. It carries
	// replies and acknowledgements over a blip; what does not fit fails at once, and
	// redelivery mends it.
	reconnectBuffer = 4 << 20
	reconnectMin    = 100 * time.Millisecond
	reconnectMax    = 5 * time.Second
	// pingEvery finds a dead peer within two pings: half-open connections otherwise
	// live until TCP gives up.
	pingEvery = 10 * time.Second
)

// Conn is a role's connection to NATS with the keys of its envelope. It is safe for
// concurrent use and reconnects for ever; Ready tells whether it is up.
type Conn struct {
	NATS      *nats.Conn
	JetStream jetstream.JetStream
	Keys      *Keys
	Settings  Settings

	closed chan struct{}
	lost   atomic.Int64 // when the connection was lost, Unix nanoseconds; 0 while it stands
}

// SettingsOf returns the stream settings in a configuration.
func SettingsOf(cfg config.NATS) Settings {
	return Settings{
		Replicas: cfg.Replicas, MaxPending: cfg.MaxPending, MaxPendingBytes: cfg.MaxPendingBytes,
		Memory: cfg.Memory, AckWait: cfg.AckWait, MaxDeliver: cfg.MaxDeliver,
	}
}

// Validate reports every bound in a configuration that is missing or out of range.
func Validate(cfg config.NATS) error {
	var errs []error
	between := func(key string, v, lo, hi int64) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("nats.%s must be %d to %d, not %d", key, lo, hi, v))
		}
	}
	between("replicas", int64(cfg.Replicas), 1, 5)
	between("max_pending", cfg.MaxPending, 1, 10_000_000)
	between("max_pending_bytes", cfg.MaxPendingBytes, MaxMessageBytes, 1<<40)
	between("max_deliver", int64(cfg.MaxDeliver), 1, 100)
	if cfg.AckWait < 100*time.Millisecond || cfg.AckWait > MaxAge {
		errs = append(errs, fmt.Errorf("nats.ack_wait must be 100ms to %s, not %s", MaxAge, cfg.AckWait))
	}
	return errors.Join(errs...)
}

// Connect reads the key file and connects. It does not wait for the server: a broker
// that is down, or that refuses the credentials, is tried again for ever with jitter
// and logged each time the state changes, so that a role starts, answers its health
// check and comes up by itself. Wait blocks until the first connection stands. name is
// what the server's operator sees. It fails only for what waiting cannot mend: a
// bound that is out of range, a missing or malformed file.
func Connect(cfg config.NATS, name string, log *slog.Logger) (*Conn, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := Validate(cfg); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(cfg.QueueKeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading nats.queue_key_file: %w", err)
	}
	keys, err := ParseKeys(string(text))
	if err != nil {
		return nil, fmt.Errorf("nats.queue_key_file: %w", err)
	}
	c := &Conn{Keys: keys, Settings: SettingsOf(cfg), closed: make(chan struct{})}
	c.lost.Store(time.Now().UnixNano())
	opts, err := c.options(cfg, name, log)
	if err != nil {
		return nil, err
	}
	if c.NATS, err = nats.Connect(cfg.URL, opts...); err != nil {
		if _, ok := errors.AsType[*url.Error](err); ok {
			// It quotes the URL, in which there may be a password, whole or in part.
			err = errors.New("not a list of nats:// or tls:// URLs, with user and password percent-encoded")
		}
		return nil, fmt.Errorf("nats.url: %w", err)
	}
	if c.JetStream, err = jetstream.New(c.NATS); err != nil {
		c.NATS.Close()
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	return c, nil
}

func (c *Conn) options(cfg config.NATS, name string, log *slog.Logger) ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name(name),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		// A credential that is being rotated is refused for a while: go on trying.
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(reconnectBuffer),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(2),
		nats.Timeout(5 * time.Second),
		nats.ConnectHandler(func(nc *nats.Conn) {
			c.lost.Store(0)
			log.Info("connected to NATS", "server", nc.ConnectedUrlRedacted())
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.lost.Store(0)
			log.Info("connected to NATS again", "server", nc.ConnectedUrlRedacted())
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.lost.CompareAndSwap(0, time.Now().UnixNano())
			log.Warn("lost NATS", "error", err)
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { log.Debug("NATS still away", "error", err) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			log.Warn("NATS reports", "subject", subject, "error", err)
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
	}
	if cfg.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	}
	if cfg.NKeyFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("nats.nkey_file: %w", err)
		}
		var user nats.Options
		if err := nkey(&user); err != nil {
			return nil, fmt.Errorf("nats.nkey_file: %w", err)
		}
		opts = append(opts, nkey, nats.CustomInboxPrefix(InboxPrefix(user.Nkey)))
	}
	conf, err := tlsConfig(cfg)
	if err != nil {
		return nil, err
	}
	if conf != nil {
		opts = append(opts, nats.Secure(conf))
	}
	return opts, nil
}

// tlsConfig returns nil where neither the URL nor a file asks for TLS.
func tlsConfig(cfg config.NATS) (*tls.Config, error) {
	if cfg.CAFile == "" && cfg.CertFile == "" && !strings.Contains(cfg.URL, "tls://") {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading nats.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("nats.ca_file %s holds no certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("nats.cert_file and nats.key_file: %w", err)
		}
		// Read again for every connection, so that a renewed certificate is used.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
			return &pair, err
		}
	}
	return conf, nil
}

// reconnectDelay doubles from 100 ms to 5 s and is spread over half of that, so that
// a fleet does not come back in step.
func reconnectDelay(attempts int) time.Duration {
	d := reconnectMin << min(max(attempts, 0), 10)
	d = min(d, reconnectMax)
	return d/2 + rand.N(d/2)
}

// Wait blocks until the connection stands or ctx ends.
func (c *Conn) Wait(ctx context.Context) error {
	up := c.NATS.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer c.NATS.RemoveStatusListener(up)
	for !c.NATS.IsConnected() {
		if c.NATS.IsClosed() {
			return problem.Down("nats", time.Second, nats.ErrConnectionClosed)
		}
		select {
		case <-up:
		case <-ctx.Done():
			return problem.Down("nats", time.Second, fmt.Errorf("waiting for a connection: %w", errors.Join(ctx.Err(), c.NATS.LastError())))
		}
	}
	return nil
}

// Ready returns nil while the connection stands.
func (c *Conn) Ready() error {
	if c.NATS.IsConnected() {
		return nil
	}
	return problem.Down("nats", time.Second, c.NATS.LastError())
}

// Away returns for how long the connection has been away, and 0 while it stands.
func (c *Conn) Away() time.Duration {
	if c.NATS.IsConnected() {
		return 0
	}
	lost := c.lost.Load()
	if lost == 0 {
		return 1 // just now: the client tells of it a moment later
	}
	return max(1, time.Since(time.Unix(0, lost)))
}

// Publish seals m for subject and writes it without waiting for an answer: for
// replies and events, which have another way to be made good.
func (c *Conn) Publish(subject string, m proto.Message) error {
	data, err := c.Keys.Seal(subject, m)
	if err != nil {
		return err
	}
	if err := c.NATS.Publish(subject, data); err != nil {
		return fmt.Errorf("publishing on %s: %w", subject, err)
	}
	return nil
}

// Close writes out what is buffered, for as long as ctx allows, closes the connection
// and waits until its goroutines are done with their callbacks.
func (c *Conn) Close(ctx context.Context) {
	if c.NATS.IsConnected() {
		// The error is of no use here: what was not flushed is made good by redelivery.
		_ = c.NATS.FlushWithContext(ctx)
	}
	c.NATS.Close()
	<-c.closed
}
