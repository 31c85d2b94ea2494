package ocsp

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/config"
)

// Config is the OCSP responder's configuration. The comments are its manual.
type Config struct {
	// Listen is the address of the responder, host:port, plain HTTP: answers are signed
	// and OCSP clients ask without TLS.
	Listen string `yaml:"listen"`
	// Path is where OCSP is mounted: "/" or for example "/ocsp/".
	Path string `yaml:"path"`
	// Namespace is the first part of every key in Redis, the same for all presigners
	// and responders of one CA.
	Namespace string `yaml:"namespace"`
	// CacheBytes bounds the memory of the records kept in the process; about 290 bytes
	// are one certificate.
	CacheBytes int64 `yaml:"cache_bytes"`
	// CacheCheck is after how long a cached record is looked up in Redis again, at the
	// latest. Revocations do not wait for it.
	CacheCheck time.Duration `yaml:"cache_check"`
	// MaxAge bounds the max-age of the HTTP caching headers. Caches on the way may give
	// an answer for so long after the certificate was revoked. It never goes beyond the
	// time at which the presigner has the next answer ready.
	MaxAge time.Duration `yaml:"max_age"`
	// CRLMaxAge is the max-age of CRLs, which are served under the paths of their URLs:
	// how long HTTP caches may give an old one after a new one is there.
	CRLMaxAge time.Duration `yaml:"crl_max_age"`
	// CRLCacheBytes bounds the memory of the CRLs kept in the process. One larger than
	// an eighth of it is passed on from Redis piece by piece.
	CRLCacheBytes int64 `yaml:"crl_cache_bytes"`
	// RedisTimeout is how long Redis may take for an answer; after it the cache answers
	// or the client is told to try later.
	RedisTimeout time.Duration `yaml:"redis_timeout"`
	// RedisPipelines is how many pipelines of reads run side by side.
	RedisPipelines int `yaml:"redis_pipelines"`
	// RedisWaiting bounds the requests that wait for Redis; beyond it the answer is
	// tryLater at once.
	RedisWaiting int `yaml:"redis_waiting"`
	// ChangesTimeout is how long the stream of changes may be silent before cached
	// records are no longer trusted without asking Redis. It is a part of the second
	// within which a revocation is visible.
	ChangesTimeout time.Duration `yaml:"changes_timeout"`
	// MaxConnections bounds the connections; beyond it a new one is closed at once.
	MaxConnections int `yaml:"max_connections"`
	// MaxConnectionsPerAddress bounds those of one IP address. Behind a balancer or a
	// proxy that hides its clients' addresses make it as large as max_connections.
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`
	// ReadTimeout is how long a client may take to send a request.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// WriteTimeout is how long a client may take to receive an answer.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// IdleTimeout is how long a connection without a request is kept.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// ShutdownTimeout is how long running requests may take to end at shutdown.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
	// ShutdownDelay lies between saying that the responder is not ready and closing its
	// listener: as long as the balancer in front needs to notice.
	ShutdownDelay time.Duration `yaml:"shutdown_delay"`
	// Redis is where the answers are.
	Redis config.Redis `yaml:"redis"`
	// ReportTo lists the addresses of a Redis that can be written, in place of
	// redis.addresses where those are replicas: a responder leaves word there of how it is,
	// for `certmill status`, and nothing else. User, TLS and master_name are those of redis.
	ReportTo []string `yaml:"report_to"`
	// Telemetry is what the responder tells of itself.
	Telemetry config.Telemetry `yaml:"telemetry"`
}

// DefaultConfig returns the defaults, for a Redis on the same machine.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:8080", Path: "/", Namespace: DefaultNamespace,
		CacheBytes: 256 << 20, CacheCheck: 10 * time.Minute, MaxAge: time.Hour,
		CRLMaxAge: 5 * time.Minute, CRLCacheBytes: 64 << 20,
		RedisTimeout: 500 * time.Millisecond, RedisPipelines: 2, RedisWaiting: 4096,
		ChangesTimeout: 700 * time.Millisecond,
		MaxConnections: 20_000, MaxConnectionsPerAddress: 5_000, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
		IdleTimeout: 2 * time.Minute, ShutdownTimeout: 5 * time.Second,
		Redis:     config.Redis{Addresses: []string{"127.0.0.1:6379"}},
		Telemetry: config.DefaultTelemetry(),
	}
}

// DefaultNamespace is the default of the key "namespace" of presigner and responder.
const DefaultNamespace = "certmill"

var namespaceForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,32}$`)

// ValidNamespace reports whether s can be the first part of keys in Redis: 1–32
// letters, digits, ".", "_" and "-".
func ValidNamespace(s string) bool { return namespaceForm.MatchString(s) }

// reports says where the responder leaves word of itself.
func (c *Config) reports() config.Redis {
	to := c.Redis
	if len(c.ReportTo) > 0 {
		to.Addresses, to.PoolSize = c.ReportTo, 1
	}
	return to
}

// Validate reports everything that is wrong, with the keys' names. It opens no file.
func (c Config) Validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	_, _, err := net.SplitHostPort(c.Listen)
	require(err == nil, "listen must be host:port")
	require(strings.HasPrefix(c.Path, "/") && strings.HasSuffix(c.Path, "/") && !strings.ContainsAny(c.Path, "%?# "),
		`path must start and end with "/" and hold no escapes`)
	require(ValidNamespace(c.Namespace), "namespace must be 1 to 32 letters, digits, '.', '_' or '-'")
	require(c.CacheBytes >= 1<<20, "cache_bytes must be at least 1048576")
	require(c.CRLCacheBytes >= 0, "crl_cache_bytes must not be negative")
	require(c.RedisPipelines >= 1 && c.RedisPipelines <= 64, "redis_pipelines must be 1 to 64")
	require(c.RedisWaiting >= 1, "redis_waiting must be at least 1")
	require(c.MaxConnections >= 1, "max_connections must be at least 1")
	require(c.MaxConnectionsPerAddress >= 1, "max_connections_per_address must be at least 1")
	for _, d := range []struct {
		key      string
		v        time.Duration
		min, max time.Duration
	}{
		{"cache_check", c.CacheCheck, time.Second, 24 * time.Hour},
		{"max_age", c.MaxAge, 0, 7 * 24 * time.Hour},
		{"crl_max_age", c.CRLMaxAge, 0, 7 * 24 * time.Hour},
		{"redis_timeout", c.RedisTimeout, time.Millisecond, 10 * time.Second},
		{"changes_timeout", c.ChangesTimeout, 300 * time.Millisecond, time.Minute},
		{"read_timeout", c.ReadTimeout, 100 * time.Millisecond, time.Minute},
		{"write_timeout", c.WriteTimeout, 100 * time.Millisecond, time.Minute},
		{"idle_timeout", c.IdleTimeout, 100 * time.Millisecond, time.Hour},
		{"shutdown_timeout", c.ShutdownTimeout, 0, time.Minute},
		{"shutdown_delay", c.ShutdownDelay, 0, time.Minute},
	} {
		require(d.v >= d.min && d.v <= d.max, "%s must be %s to %s", d.key, d.min, d.max)
	}
	for _, address := range c.ReportTo {
		_, _, err := net.SplitHostPort(address)
		require(err == nil, "report_to: %q is not host:port", address)
	}
	return errors.Join(append(errs, ValidateRedis(c.Redis))...)
}
