// Package crl makes CRLs (RFC 5280 section 5): for every distribution point that
// profiles put into certificates, on schedule and soon after a revocation.
//
// Makers run inside signers, where the issuers' keys are, and nobody sends them work:
// what is due they see in the ledger, and what a CRL says they read there. So there is
// no message by which a broker, a gateway or anybody else could have an issuer's key
// sign something; the worst that can be asked for is a CRL that is true. Makers share
// the work by claims in the ledger.
//
// The files are the steps: due.go finds what is to be made, make.go claims it, reads
// the revocations and publishes, stream.go and encode.go write the DER.
package crl

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/ledger"
)

// Config says how CRLs are made. The comments are its manual.
type Config struct {
	// Interval is how often every CRL is made anew without a reason.
	Interval time.Duration `yaml:"interval"`
	// Validity is from making a CRL to its nextUpdate, cut at the issuer's notAfter. The
	// time beyond interval is what there is to mend a failure.
	Validity time.Duration `yaml:"validity"`
	// Backdate is by how much thisUpdate lies before the making, for relying parties
	// whose clocks are late.
	Backdate time.Duration `yaml:"backdate"`
	// AfterRevocation is how long revocations are gathered before their CRL is made. No
	// CRL is made more often than that, so raise it for a complete CRL of very many
	// entries.
	AfterRevocation time.Duration `yaml:"after_revocation"`
	// Poll is how often the ledger is asked for revocations and CRLs that are due.
	Poll time.Duration `yaml:"poll"`
	// Concurrency bounds the CRLs that this signer makes at one time. Each holds about
	// 1 MB, and one HSM session for the moment of its signature.
	Concurrency int `yaml:"concurrency"`
	// Claim bounds the making of one CRL. After it another signer may make it.
	Claim time.Duration `yaml:"claim"`
	// CompleteURL is where one CRL of all certificates of an issuer is served, for those
	// who want it beside the CRLs of the profiles: for example
	// http://crl.example.com/{issuer}.crl. Empty: none is made.
	CompleteURL string `yaml:"complete_url"`
	// Delta makes delta CRLs, for CRLs too large to be made anew for every revocation:
	// a revocation is then in the delta alone until the next scheduled CRL, so switch it
	// on only where the relying parties know deltas (RFC 5280 section 5.2.4). A delta is
	// served beside its CRL, under …-delta.crl, and is one to the last scheduled CRL. The
	// same for all signers.
	Delta bool `yaml:"delta"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Interval: time.Hour, Validity: 24 * time.Hour, Backdate: 5 * time.Minute, AfterRevocation: 5 * time.Second,
		Poll: time.Second, Concurrency: 2, Claim: time.Minute,
	}
}

// Validate reports everything that is wrong, with the keys' names.
func (c Config) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for _, d := range []struct {
		key      string
		v        time.Duration
		min, max time.Duration
	}{
		// An entry must be in one scheduled CRL after the certificate's end, and the
		// ledger forgets the revocation ledger.Grace after it.
		{"interval", c.Interval, time.Second, ledger.Grace / 3},
		{"validity", c.Validity, time.Second, 30 * 24 * time.Hour},
		{"backdate", c.Backdate, 0, time.Hour},
		{"after_revocation", c.AfterRevocation, 0, time.Hour},
		{"poll", c.Poll, 10 * time.Millisecond, time.Minute},
		{"claim", c.Claim, time.Second, time.Hour},
	} {
		require(d.v >= d.min && d.v <= d.max, "%s must be %s to %s", d.key, d.min, d.max)
	}
	require(c.Validity >= 2*c.Interval, "validity must be at least twice the interval")
	require(c.Concurrency >= 1 && c.Concurrency <= 64, "concurrency must be 1 to 64")
	if c.CompleteURL != "" {
		require(strings.HasPrefix(c.CompleteURL, "http://"), "complete_url must be an http:// URL")
		if err := (crldp.Point{URL: c.CompleteURL, Shards: 1}).Check(); err != nil {
			errs = append(errs, fmt.Errorf("complete_url: %w", err))
		}
	}
	return errors.Join(errs...)
}
