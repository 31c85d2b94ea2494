// Package presign signs OCSP answers before anybody asks for them and keeps them in
// Redis: at issue, again at half of their validity, and at once on revocation. The
// ledger is the truth; Redis can be emptied at any time and is filled again from it.
//
// Any number of presigners work side by side. Events (events.go) reach one of them
// each; the sweep of the ledger (sweep.go) is shared out by leases (lease.go). What
// they write goes through ocsp.Store.Put, under which a good answer never replaces a
// revoked one, whoever is late.
package presign

import (
	"errors"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/ocsp"
)

// Config is the presigner's configuration. The comments are its manual.
type Config struct {
	// Name tells this presigner from the others; it must be unique. Empty means the
	// host's name and the process id.
	Name string `yaml:"name"`
	// Namespace is the first part of every key in Redis, the same for all presigners
	// and responders of one CA.
	Namespace string `yaml:"namespace"`
	// Validity is from signing to nextUpdate, cut at the certificate's and the OCSP
	// signer's notAfter. It is how long a proxy may staple an answer that a revocation
	// has overtaken. 1m to 10 days.
	Validity time.Duration `yaml:"validity"`
	// Backdate is by how much thisUpdate lies before the signature, for clients whose
	// clocks are slow. Clients tolerate about 5m themselves.
	Backdate time.Duration `yaml:"backdate"`
	// RefreshAt is the share of the validity after which an answer is signed again, 0.2
	// to 0.5. Responders expect the new one at 0.55.
	RefreshAt float64 `yaml:"refresh_at"`
	// Spread is by how large a share of the validity answers are refreshed earlier than
	// refresh_at, each by its own amount, so that certificates issued together are not
	// refreshed together. Less than refresh_at.
	Spread float64 `yaml:"spread"`
	// Concurrency bounds the signatures made at one time. With keys in an HSM, a little
	// more than its sessions.
	Concurrency int `yaml:"concurrency"`
	// CheckShare is the share of signatures that are verified after signing, 0 to 1.
	// The first signature of every key is verified in any case.
	CheckShare float64 `yaml:"check_share"`
	// SweepInterval is how often the whole ledger is compared with Redis, at least.
	// Answers are refreshed by it, so it must be at most a tenth of the validity.
	SweepInterval time.Duration `yaml:"sweep_interval"`
	// SweepShare is the share of its time that a presigner may spend on sweeps that
	// nothing asks for: the next one begins sooner than after sweep_interval, but not
	// sooner than 5s. A certificate whose event of issue was lost has no answer until
	// then: seconds at 100,000 certificates, sweep_interval at millions. 0: sweep_interval
	// alone.
	SweepShare float64 `yaml:"sweep_share"`
	// SweepRate bounds the certificates signed by the sweep of this presigner, per
	// second. Events and revocations are not held up by it.
	SweepRate int `yaml:"sweep_rate"`
	// SweepPage is how many certificates the sweep reads from the ledger at once.
	SweepPage int `yaml:"sweep_page"`
	// RevocationPoll is how often the ledger is asked for revocations whose event did
	// not arrive. It bounds the delay of a revocation while NATS is down.
	RevocationPoll time.Duration `yaml:"revocation_poll"`
	// CRLPoll is how often the ledger is asked for new CRLs, which are brought to Redis.
	CRLPoll time.Duration `yaml:"crl_poll"`
	// HealthPoll is how often Redis is asked whether it was restarted, has failed over
	// or was emptied.
	HealthPoll time.Duration `yaml:"health_poll"`
	// SharedPoll is how often issuers, OCSP signers and epochs are read from the ledger.
	// A new epoch in an event is read at once.
	SharedPoll time.Duration `yaml:"shared_poll"`
	// Lease is how long a presigner that died keeps its share of the sweep.
	Lease time.Duration `yaml:"lease"`
	// EventHandlers is how many events are worked on at one time.
	EventHandlers int `yaml:"event_handlers"`
	// RedisTimeout bounds one call to Redis.
	RedisTimeout time.Duration `yaml:"redis_timeout"`
	// Redis is where the answers go.
	Redis config.Redis `yaml:"redis"`
	// NATS brings the events.
	NATS config.NATS `yaml:"nats"`
	// Ledger is the database.
	Ledger config.Ledger `yaml:"ledger"`
	// Telemetry is what the presigner tells of itself.
	Telemetry config.Telemetry `yaml:"telemetry"`
}

// DefaultConfig returns the defaults, for servers on the same machine.
func DefaultConfig() Config {
	return Config{
		Namespace: ocsp.DefaultNamespace,
		Validity:  24 * time.Hour, Backdate: 5 * time.Minute, RefreshAt: 0.5, Spread: 0.15,
		Concurrency: 8, CheckShare: 0.01,
		SweepInterval: 10 * time.Minute, SweepShare: 0.05, SweepRate: 4000, SweepPage: 1000,
		RevocationPoll: 400 * time.Millisecond, CRLPoll: time.Second, HealthPoll: time.Second, SharedPoll: 5 * time.Second,
		Lease: 6 * time.Second, EventHandlers: 4, RedisTimeout: 2 * time.Second,
		Redis:     config.Redis{Addresses: []string{"127.0.0.1:6379"}},
		NATS:      config.DefaultNATS(),
		Ledger:    config.Ledger{MaxConnections: 4},
		Telemetry: config.DefaultTelemetry(),
	}
}

// Validate reports everything that is wrong, with the keys' names. It opens no file.
// NATS and the ledger are checked by what opens them.
func (c Config) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(ocsp.ValidNamespace(c.Namespace), "namespace must be 1 to 32 letters, digits, '.', '_' or '-'")
	require(len(c.Name) <= 128, "name must have at most 128 bytes")
	require(c.RefreshAt >= 0.2 && c.RefreshAt <= 0.5, "refresh_at must be 0.2 to 0.5")
	require(c.Spread >= 0 && c.Spread < c.RefreshAt, "spread must be at least 0 and less than refresh_at")
	require(c.CheckShare >= 0 && c.CheckShare <= 1, "check_share must be 0 to 1")
	require(c.SweepShare >= 0 && c.SweepShare <= 0.5, "sweep_share must be 0 to 0.5")
	require(c.SweepInterval*10 <= c.Validity, "sweep_interval must be at most a tenth of validity")
	for _, d := range []struct {
		key      string
		v        time.Duration
		min, max time.Duration
	}{
		{"validity", c.Validity, time.Second, 240 * time.Hour},
		{"backdate", c.Backdate, 0, time.Hour},
		{"sweep_interval", c.SweepInterval, 10 * time.Millisecond, 24 * time.Hour},
		{"revocation_poll", c.RevocationPoll, 10 * time.Millisecond, time.Minute},
		{"crl_poll", c.CRLPoll, 10 * time.Millisecond, time.Minute},
		{"health_poll", c.HealthPoll, 10 * time.Millisecond, time.Minute},
		{"shared_poll", c.SharedPoll, 10 * time.Millisecond, time.Minute},
		{"lease", c.Lease, 300 * time.Millisecond, 5 * time.Minute},
		{"redis_timeout", c.RedisTimeout, 10 * time.Millisecond, time.Minute},
	} {
		require(d.v >= d.min && d.v <= d.max, "%s must be %s to %s", d.key, d.min, d.max)
	}
	for _, n := range []struct {
		key         string
		v, min, max int
	}{
		{"concurrency", c.Concurrency, 1, 4096},
		{"sweep_rate", c.SweepRate, 1, 1_000_000},
		{"sweep_page", c.SweepPage, 1, 10_000},
		{"event_handlers", c.EventHandlers, 1, 256},
	} {
		require(n.v >= n.min && n.v <= n.max, "%s must be %d to %d", n.key, n.min, n.max)
	}
	return errors.Join(append(errs, ocsp.ValidateRedis(c.Redis))...)
}
