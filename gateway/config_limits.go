package gateway

import (
	"fmt"
	"time"
)

// Limits bounds what callers can cost.
type Limits struct {
	// MaxInFlight bounds the certificates being issued and calls being served at one
	// time; beyond it the answer is Overloaded at once.
	MaxInFlight int `yaml:"max_in_flight"`
	// MaxWait is how long a request may wait for the signers while there are more than
	// they can serve: max_in_flight is lowered to what they have served lately within this
	// time, so that callers are refused at once who would wait longer, and the queue is
	// gone as soon as the flood is. It is never lowered below max_batch. 0 lowers nothing.
	MaxWait time.Duration `yaml:"max_wait"`
	// CSRWait is how long a CSR of a P-256 key waits at most for others, of which eight are
	// checked in the time of one where the processor has AVX-512 IFMA. It waits so long
	// where 32 other requests are in work, the less of it the fewer, and not at all where
	// they are fewer than 4. 0 checks each alone.
	CSRWait time.Duration `yaml:"csr_wait"`
	// RenewalShare is the share of max_in_flight that renewals may take, above 0 and at
	// most 1. The rest is kept for first certificates: who renews has a certificate
	// meanwhile, who starts has none. A renewal is a request whose caller shows a valid
	// certificate of this CA that has the same names, or the same key.
	RenewalShare float64 `yaml:"renewal_share"`
	// RetryAfter is advised to callers who were refused at one of these bounds, spread
	// from half of it to one and a half, so that they do not come back together.
	RetryAfter time.Duration `yaml:"retry_after"`
	// CallerShare bounds what one caller may hold of max_in_flight, max_streams and
	// orders.max_waiting: this share, 0.1 to 1, while nobody else is there, and less the
	// fuller it is, so that a flood of one leaves room for the others. 1 sets no bound.
	CallerShare float64 `yaml:"caller_share"`
	// CallerRate bounds the certificates a second that one caller may ask for at this
	// gateway, retries included; several gateways allow that many times as much. 0 sets
	// no bound.
	CallerRate float64 `yaml:"caller_rate"`
	// CallerBurst is how many a caller may ask for at once after a pause.
	CallerBurst int `yaml:"caller_burst"`
	// NamesRate bounds the certificates an hour for one set of names under one profile
	// at this gateway; a retry counts once. It stops clients that ask in a loop. Leave it
	// at 0, no bound, where many workloads share a name.
	NamesRate float64 `yaml:"names_rate"`
	// NamesBurst is how many a set of names may get at once after a pause.
	NamesBurst int `yaml:"names_burst"`
	// RateEntries bounds the callers and the sets of names that are remembered for
	// caller_rate and names_rate, each. A caller takes about 200 bytes, a set of names
	// up to 500.
	RateEntries int `yaml:"rate_entries"`
	// MaxConnections bounds the connections of each listener; beyond it a new one is
	// closed at once.
	MaxConnections int `yaml:"max_connections"`
	// MaxConnectionsPerAddress bounds those of one IP address, at each listener. Behind
	// a balancer that hides its clients' addresses make it as large as max_connections.
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`
	// MaxStreams bounds the IssueStream calls that are open at one time.
	MaxStreams int `yaml:"max_streams"`
	// MaxBodyBytes bounds the body of a request.
	MaxBodyBytes int64 `yaml:"max_body_bytes"`
	// MaxBatchBytes bounds the body of a batch and of one gRPC message.
	MaxBatchBytes int64 `yaml:"max_batch_bytes"`
	// MaxBatch bounds the requests of a batch; at most 256.
	MaxBatch int `yaml:"max_batch"`
	// MaxHeaderBytes bounds the header of a request.
	MaxHeaderBytes int `yaml:"max_header_bytes"`
	// MaxConcurrentStreams bounds the requests at one time of one HTTP/2 connection.
	MaxConcurrentStreams int `yaml:"max_concurrent_streams"`
	// StreamConcurrency bounds the certificates in work for one IssueStream.
	StreamConcurrency int `yaml:"stream_concurrency"`
	// HeaderTimeout is how long a caller may take to send a header and, on gRPC, to
	// finish its handshake.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// ReadTimeout is how long a caller may take to send a whole request.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// IdleTimeout is how long a connection without a request is kept.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// CallTimeout is the deadline of a call that brings none of its own.
	CallTimeout time.Duration `yaml:"call_timeout"`
	// MaxCallTimeout is the longest deadline that a call can have; at most 5m.
	MaxCallTimeout time.Duration `yaml:"max_call_timeout"`
	// ShutdownTimeout is how long running calls may take to end at shutdown.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
	// ShutdownDelay lies between saying that the gateway is not ready and closing its
	// listeners: as long as the balancer in front needs to notice, so that no call is
	// refused in a rolling restart.
	ShutdownDelay time.Duration `yaml:"shutdown_delay"`
}

func (l Limits) validate(e *keyErrors) {
	for _, n := range []struct {
		key      string
		value    int64
		min, max int64
	}{
		{"limits.max_in_flight", int64(l.MaxInFlight), 1, 1_000_000},
		{"limits.caller_burst", int64(l.CallerBurst), 1, 1_000_000},
		{"limits.names_burst", int64(l.NamesBurst), 1, 1_000_000},
		{"limits.rate_entries", int64(l.RateEntries), 1, 10_000_000},
		{"limits.max_connections", int64(l.MaxConnections), 1, 1_000_000},
		{"limits.max_connections_per_address", int64(l.MaxConnectionsPerAddress), 1, 1_000_000},
		{"limits.max_streams", int64(l.MaxStreams), 1, 1_000_000},
		{"limits.max_body_bytes", l.MaxBodyBytes, 1 << 10, 1 << 20},
		{"limits.max_batch_bytes", l.MaxBatchBytes, 1 << 10, 32 << 20},
		{"limits.max_batch", int64(l.MaxBatch), 1, 256},
		{"limits.max_header_bytes", int64(l.MaxHeaderBytes), 4 << 10, 1 << 20},
		{"limits.max_concurrent_streams", int64(l.MaxConcurrentStreams), 1, 10_000},
		{"limits.stream_concurrency", int64(l.StreamConcurrency), 1, 10_000},
	} {
		e.require(n.value >= n.min && n.value <= n.max, n.key, fmt.Sprintf("must be %d to %d", n.min, n.max))
	}
	e.require(l.RenewalShare > 0 && l.RenewalShare <= 1, "limits.renewal_share", "must be above 0 and at most 1")
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"limits.retry_after", l.RetryAfter},
		{"limits.header_timeout", l.HeaderTimeout},
		{"limits.read_timeout", l.ReadTimeout},
		{"limits.idle_timeout", l.IdleTimeout},
		{"limits.call_timeout", l.CallTimeout},
		{"limits.max_call_timeout", l.MaxCallTimeout},
		{"limits.shutdown_timeout", l.ShutdownTimeout},
	} {
		e.between(d.key, d.value, 10*time.Millisecond, 5*time.Minute)
	}
	e.between("limits.max_wait", l.MaxWait, 0, time.Minute)
	e.between("limits.csr_wait", l.CSRWait, 0, 100*time.Millisecond)
	e.between("limits.shutdown_delay", l.ShutdownDelay, 0, time.Minute)
	e.require(l.CallerShare >= 0.1 && l.CallerShare <= 1, "limits.caller_share", "must be 0.1 to 1")
	e.require(l.CallerRate >= 0 && l.CallerRate <= 1e6, "limits.caller_rate", "must be 0 to 1000000 a second")
	e.require(l.NamesRate >= 0 && l.NamesRate <= 1e9, "limits.names_rate", "must be 0 to 1000000000 an hour")
	e.require(l.MaxInFlight >= l.MaxBatch, "limits.max_in_flight", "must not be less than limits.max_batch")
	e.require(l.CallTimeout <= l.MaxCallTimeout, "limits.call_timeout", "must not exceed limits.max_call_timeout")
}

// maxRenewals is what renewal_share leaves renewals; at least one.
func (l Limits) maxRenewals() int { return max(1, int(l.RenewalShare*float64(l.MaxInFlight))) }
