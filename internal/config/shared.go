package config

import "time"

// Ledger says where the database is.
type Ledger struct {
	// URL is a PostgreSQL connection string, for CockroachDB too, without a password:
	// postgres://certmill@db.example:26257/certmill?sslmode=verify-full&sslrootcert=…
	URL string `yaml:"url"`
	// PasswordFile holds the password; the environment's PGPASSWORD serves too.
	PasswordFile string `yaml:"password_file"`
	// MaxConnections bounds the pool.
	MaxConnections int `yaml:"max_connections"`
}

// NATS says how to reach the message broker.
type NATS struct {
	// URL lists the servers, separated by commas: nats://… or tls://….
	URL string `yaml:"url"`
	// CAFile holds the roots for the servers' certificates.
	CAFile string `yaml:"ca_file"`
	// CertFile and key_file hold a client certificate, where the servers want one.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// CredsFile holds a user JWT with its nkey seed; nkey_file holds a bare nkey seed.
	CredsFile string `yaml:"creds_file"`
	NKeyFile  string `yaml:"nkey_file"`
	// QueueKeyFile holds the keys that authenticate messages between gateways and
	// signers: 64 hexadecimal digits a line, the first seals, all open. A line
	// "events <digits>" holds a key for events alone, which is all that a presigner needs.
	QueueKeyFile string `yaml:"queue_key_file"`
	// Replicas is how many servers keep each stream: 1 on one machine, 3 on a cluster.
	Replicas int `yaml:"replicas"`
	// MaxPending bounds the messages that wait for a signer. Each issuer and priority may
	// have a quarter of it.
	MaxPending int64 `yaml:"max_pending"`
	// MaxPendingBytes bounds their size.
	MaxPendingBytes int64 `yaml:"max_pending_bytes"`
	// Memory keeps the queue in the broker's memory instead of on its disk.
	Memory bool `yaml:"memory"`
	// AckWait is how long a signer may hold a message before another gets it.
	AckWait time.Duration `yaml:"ack_wait"`
	// MaxDeliver is how often a message is handed out before it is dropped.
	MaxDeliver int `yaml:"max_deliver"`
}

// DefaultNATS returns the defaults of NATS.
func DefaultNATS() NATS {
	return NATS{
		URL: "nats://127.0.0.1:4222", Replicas: 1,
		MaxPending: 20_000, MaxPendingBytes: 256 << 20,
		AckWait: 5 * time.Second, MaxDeliver: 5,
	}
}

// Redis says where the OCSP answers are.
type Redis struct {
	// Addresses are host:port; several mean Redis Cluster, or Sentinel with MasterName.
	Addresses []string `yaml:"addresses"`
	// MasterName selects Sentinel.
	MasterName string `yaml:"master_name"`
	Username   string `yaml:"username"`
	// PasswordFile holds the password.
	PasswordFile string `yaml:"password_file"`
	// CAFile switches TLS on and holds the roots for the servers' certificates.
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// PoolSize bounds the connections.
	PoolSize int `yaml:"pool_size"`
}

// Telemetry says what a role tells of itself.
type Telemetry struct {
	// Listen is the address of /metrics, /healthz, /readyz and /debug/pprof. It is for
	// operators: keep it off public networks. Empty switches it off.
	Listen string `yaml:"listen"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
	// LogFormat is json or text.
	LogFormat string `yaml:"log_format"`
	// TraceEndpoint is the host:port of an OTLP gRPC collector. Empty: no traces leave.
	TraceEndpoint string `yaml:"trace_endpoint"`
	// TraceRatio is the share of requests traced, 0 to 1, where the caller has not decided.
	TraceRatio float64 `yaml:"trace_ratio"`
}

// DefaultTelemetry returns the defaults of Telemetry.
func DefaultTelemetry() Telemetry {
	return Telemetry{LogLevel: "info", LogFormat: "json", TraceRatio: 0.01}
}
