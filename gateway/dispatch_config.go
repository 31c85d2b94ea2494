package gateway

import (
	"errors"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/queue"
)

// DispatcherConfig bounds the way from the gateway to the signers.
type DispatcherConfig struct {
	// MaxPending bounds the calls that wait for a signer's answer; beyond it the answer
	// is Overloaded at once. The last quarter is kept for first certificates.
	MaxPending int `yaml:"max_pending"`
	// MaxInFlight bounds, for each issuer and priority, the requests that are with the
	// queue or a signer. What is beyond waits here, callers taking turns, so that one
	// caller's flood does not stand before the others.
	MaxInFlight int `yaml:"max_in_flight"`
	// MaxBatch bounds the requests in one message, 1 to 32. Requests that wait together
	// travel together.
	MaxBatch int `yaml:"max_batch"`
	// Gather is how long a message waits at most for company: for requests whose CSRs are
	// being checked at that moment, and until it has half as many requests as are with the
	// queue and the signers. It waits so long where twice MaxBatch requests are under way, and
	// the less of it the fewer. One that comes alone never waits. 0 switches it off.
	Gather time.Duration `yaml:"gather"`
	// MaxBatchBytes bounds the size of a message with several requests.
	MaxBatchBytes int `yaml:"max_batch_bytes"`
	// Publishers is how many messages of one issuer and priority may be on their way to
	// the broker at a time.
	Publishers int `yaml:"publishers"`
	// PublishTimeout is how long the broker may take to accept a message.
	PublishTimeout time.Duration `yaml:"publish_timeout"`
	// CallTimeout is the deadline of a call that brings none.
	CallTimeout time.Duration `yaml:"call_timeout"`
	// MaxResends is how often a request whose answer is late is sent again within its
	// deadline: after a third of it, and so on.
	MaxResends int `yaml:"max_resends"`
	// ResendBudget bounds the requests sent again to a share of those sent, 0 to 1, so
	// that a slow system is not made slower.
	ResendBudget float64 `yaml:"resend_budget"`
	// FailoverAfter is how long the signers of an issuer may answer nothing, while
	// requests wait for them, until requests of profiles with several issuers go over to
	// another one. What signers report of themselves counts beside it.
	FailoverAfter time.Duration `yaml:"failover_after"`
	// DownGrace is how long calls are still taken when the broker is away: a blip costs
	// latency, an outage is told at once.
	DownGrace time.Duration `yaml:"down_grace"`
	// RetryAfter is what callers are told to wait when something is full, spread from
	// half of it to one and a half.
	RetryAfter time.Duration `yaml:"retry_after"`
	// RecentKeys is how many request keys are remembered as sent, so that a signer looks
	// into the ledger before it signs a retry. It takes about 50 bytes for each.
	RecentKeys int `yaml:"recent_keys"`
	// SampleInterval is how often the depth of the queue is measured.
	SampleInterval time.Duration `yaml:"sample_interval"`
}

// DefaultDispatcherConfig returns the defaults.
func DefaultDispatcherConfig() DispatcherConfig {
	return DispatcherConfig{
		MaxPending:     4096,
		MaxInFlight:    1024,
		MaxBatch:       queue.MaxBatch,
		Gather:         5 * time.Millisecond,
		MaxBatchBytes:  256 << 10,
		Publishers:     2,
		PublishTimeout: 2 * time.Second,
		CallTimeout:    10 * time.Second,
		MaxResends:     2,
		ResendBudget:   0.1,
		FailoverAfter:  time.Second,
		DownGrace:      time.Second,
		RetryAfter:     time.Second,
		RecentKeys:     100_000,
		SampleInterval: 5 * time.Second,
	}
}

// Validate returns every error of the configuration, joined, with the keys' names.
func (c DispatcherConfig) Validate() error {
	var errs []error
	count := func(key string, v, lo, hi int) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("%s must be %d to %d, not %d", key, lo, hi, v))
		}
	}
	span := func(key string, v, lo, hi time.Duration) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("%s must be %s to %s, not %s", key, lo, hi, v))
		}
	}
	count("max_pending", c.MaxPending, 1, 1_000_000)
	count("max_in_flight", c.MaxInFlight, 1, 1_000_000)
	count("max_batch", c.MaxBatch, 1, queue.MaxBatch)
	count("max_batch_bytes", c.MaxBatchBytes, 1, queue.MaxRequestBytes)
	count("publishers", c.Publishers, 1, 64)
	count("max_resends", c.MaxResends, 0, 10)
	count("recent_keys", c.RecentKeys, 1, 10_000_000)
	span("gather", c.Gather, 0, time.Second)
	span("publish_timeout", c.PublishTimeout, 10*time.Millisecond, time.Minute)
	span("call_timeout", c.CallTimeout, 10*time.Millisecond, 5*time.Minute)
	span("failover_after", c.FailoverAfter, 50*time.Millisecond, time.Minute)
	span("down_grace", c.DownGrace, 0, time.Minute)
	span("retry_after", c.RetryAfter, time.Millisecond, 5*time.Minute)
	span("sample_interval", c.SampleInterval, 100*time.Millisecond, time.Hour)
	if c.ResendBudget < 0 || c.ResendBudget > 1 {
		errs = append(errs, fmt.Errorf("resend_budget must be 0 to 1, not %g", c.ResendBudget))
	}
	return errors.Join(errs...)
}
