package signer

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Config is the signer's configuration. The comments are its manual.
type Config struct {
	// Name tells this signer from the others in epochs, logs and metrics; it need not
	// be unique. Empty means the host's name.
	Name string `yaml:"name"`
	// Tokens are the HSM tokens to sign with. Several that hold an issuer's key share
	// its work; one that fails takes none of it down. At SIGHUP the list is read again:
	// tokens may be added and taken out while the signer works.
	Tokens []hsm.Config `yaml:"tokens"`
	// Issuers names the issuers to serve. Empty means every active issuer of the ledger
	// whose key is in one of the tokens.
	Issuers []string `yaml:"issuers"`
	// IssuerRefresh is how often the issuers are read from the ledger again, and a token
	// that could not be opened is tried again.
	IssuerRefresh time.Duration `yaml:"issuer_refresh"`
	// ProfilesDir holds the certificate profiles, one YAML file each, read at the start.
	// Every request is held to them again here, whatever the gateway has let through.
	ProfilesDir string `yaml:"profiles_dir"`
	// LintShare is the share of certificates, 0 to 1, that zlint checks before they are
	// signed. Every profile is linted when it is loaded.
	LintShare float64 `yaml:"lint_share"`
	// MaxInFlight bounds the requests held at one time, from the pull to the reply: with
	// so many nothing more is asked for. What was asked for may exceed it by one message
	// (32 requests) for each issuer and priority.
	MaxInFlight int `yaml:"max_in_flight"`
	// RunAhead is how many requests may be in hand for each HSM session before they are
	// signed. 1 keeps the least in hand; 2 keeps fast tokens busy while the next message
	// is on its way.
	RunAhead float64 `yaml:"run_ahead"`
	// DeadlineSlack is what must be left of a request's deadline to begin its signature:
	// about what commit and reply take.
	DeadlineSlack time.Duration `yaml:"deadline_slack"`
	// CommitTimeout bounds the wait for the ledger after a signature.
	CommitTimeout time.Duration `yaml:"commit_timeout"`
	// Committer groups certificates into commits.
	Committer ledger.CommitterConfig `yaml:"committer"`
	// EpochReportInterval is how often the number of signatures made is written into
	// the ledger, for the reconciliation of signatures with rows.
	EpochReportInterval time.Duration `yaml:"epoch_report_interval"`
	// StateDir is where the signer keeps, in files of a few hundred KiB, the serials that
	// it has in hand, so that after its death the next signer with this directory closes
	// its account to the signature. Any number of signers on a machine may share it. It is
	// no memory: nothing is lost with it but the exactness of that account. Empty: none.
	StateDir string `yaml:"state_dir"`
	// MaxClockSkew is by how much this clock may differ from the database's. Beyond it the
	// signer takes no work and is not ready: it would issue certificates that are not
	// valid yet, or too short.
	MaxClockSkew time.Duration `yaml:"max_clock_skew"`
	// ClockOffset sets this signer's clock wrong by so much, for drills: certmill chaos
	// uses it to show that a signer with a wrong clock takes no work.
	ClockOffset time.Duration `yaml:"clock_offset"`
	// ShutdownTimeout bounds the end of what is in flight at shutdown.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
	// NATS is the broker between gateways and signers.
	NATS config.NATS `yaml:"nats"`
	// Ledger is the database.
	Ledger config.Ledger `yaml:"ledger"`
	// Telemetry is what the signer tells of itself.
	Telemetry config.Telemetry `yaml:"telemetry"`
}

// DefaultConfig returns the defaults; tokens, profiles_dir, the queue key and the
// ledger's URL have none.
func DefaultConfig() Config {
	return Config{
		IssuerRefresh:       5 * time.Second,
		LintShare:           0.01,
		MaxInFlight:         512,
		RunAhead:            2,
		DeadlineSlack:       20 * time.Millisecond,
		CommitTimeout:       10 * time.Second,
		Committer:           ledger.DefaultCommitterConfig(),
		EpochReportInterval: 10 * time.Second,
		MaxClockSkew:        5 * time.Second,
		ShutdownTimeout:     20 * time.Second,
		NATS:                config.DefaultNATS(),
		Ledger:              config.Ledger{MaxConnections: 8},
		Telemetry:           config.DefaultTelemetry(),
	}
}

// signerName is what an epoch row may call a signer.
var signerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Validate reports everything that is wrong, with the keys' names. It opens no file.
func (c Config) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(c.Name == "" || signerName.MatchString(c.Name), "name must be 1 to 63 letters, digits, dots, dashes or underscores")
	require(len(c.Tokens) > 0, "tokens must list at least one token")
	for i, t := range c.Tokens {
		if err := t.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("tokens[%d]: %w", i, err))
		}
	}
	for i, name := range c.Issuers {
		require(queue.ValidIssuer(name), "issuers[%d]: %q cannot be an issuer's name", i, name)
	}
	require(c.ProfilesDir != "", "profiles_dir is missing")
	require(c.LintShare >= 0 && c.LintShare <= 1, "lint_share must be 0 to 1")
	require(c.MaxInFlight >= 1 && c.MaxInFlight <= 100_000, "max_in_flight must be 1 to 100000")
	require(c.RunAhead >= 1 && c.RunAhead <= 64, "run_ahead must be 1 to 64")
	if err := queue.Validate(c.NATS); err != nil {
		errs = append(errs, err)
	}
	if err := c.Committer.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("committer: %w", err))
	}
	for _, d := range []struct {
		key    string
		v      time.Duration
		lo, hi time.Duration
	}{
		{"issuer_refresh", c.IssuerRefresh, 100 * time.Millisecond, time.Hour},
		{"deadline_slack", c.DeadlineSlack, 0, 10 * time.Second},
		{"commit_timeout", c.CommitTimeout, 100 * time.Millisecond, time.Minute},
		{"epoch_report_interval", c.EpochReportInterval, 100 * time.Millisecond, time.Hour},
		{"max_clock_skew", c.MaxClockSkew, 100 * time.Millisecond, time.Hour},
		{"clock_offset", c.ClockOffset, -24 * time.Hour, 24 * time.Hour},
		{"shutdown_timeout", c.ShutdownTimeout, 100 * time.Millisecond, 5 * time.Minute},
	} {
		require(d.v >= d.lo && d.v <= d.hi, "%s must be %s to %s", d.key, d.lo, d.hi)
	}
	return errors.Join(errs...)
}
