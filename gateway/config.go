package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/ledger"
)

// Config is the gateway's configuration. The comments are its manual.
type Config struct {
	// Name tells this gateway from the others in `certmill status`; it need not be
	// unique. Empty means the host's name.
	Name string `yaml:"name"`
	// Listen is the address of the HTTPS API, host:port.
	Listen string `yaml:"listen"`
	// GRPCListen is the address of the gRPC API, host:port. Empty switches it off.
	GRPCListen string `yaml:"grpc_listen"`
	// TLS is what the gateway shows to callers and which client certificates it takes.
	TLS TLS `yaml:"tls"`
	// Auth says who may call and by which credential.
	Auth Auth `yaml:"auth"`
	// Operators maps caller ids to roles. All entries that match count.
	Operators []Operator `yaml:"operators"`
	// ProfilesDir holds the certificate profiles, one YAML file each.
	ProfilesDir string `yaml:"profiles_dir"`
	// DefaultProfile serves requests that name no profile. Empty: a profile must be named.
	DefaultProfile string `yaml:"default_profile"`
	// DuplicateWindow is how long a request without an idempotency key is taken for a
	// retry of an earlier one with the same caller, CSR and profile: 1s to 24h.
	DuplicateWindow time.Duration `yaml:"duplicate_window"`
	// RequestIDWindow is how long an idempotency key stands for its certificate: 1s to
	// 24h, and never past the certificate's end.
	RequestIDWindow time.Duration `yaml:"request_id_window"`
	// RenewAt is the share of a certificate's life after which its holder is advised
	// to renew, 0.1 to 0.9. The advice is spread by a tenth of the life around it, so
	// that certificates issued together are not renewed together. Operators can pull it
	// forward (certmill renew-early).
	RenewAt float64 `yaml:"renew_at"`
	// IssuerRefresh is how often the issuers, and the renewals that operators have pulled
	// forward, are read from the ledger again.
	IssuerRefresh time.Duration `yaml:"issuer_refresh"`
	// Istio is the certificate service of an Istio mesh.
	Istio Istio `yaml:"istio"`
	// SPIFFE is what the gateway publishes for SPIFFE trust domains.
	SPIFFE SPIFFE `yaml:"spiffe"`
	// Limits bounds everything that a caller can make large, slow or many.
	Limits Limits `yaml:"limits"`
	// Orders is about asynchronous issue.
	Orders Orders `yaml:"orders"`
	// Console is the web page for operators.
	Console ConsoleConfig `yaml:"console"`
	// NATS is the broker between gateways and signers.
	NATS config.NATS `yaml:"nats"`
	// Ledger is the database.
	Ledger config.Ledger `yaml:"ledger"`
	// Telemetry is what the gateway tells of itself.
	Telemetry config.Telemetry `yaml:"telemetry"`
}

// TLS is the server's side of TLS. Files are read again when they change.
type TLS struct {
	// CertFile holds the server's certificate and its chain in PEM.
	CertFile string `yaml:"cert_file"`
	// KeyFile holds its private key in PEM.
	KeyFile string `yaml:"key_file"`
	// ClientCAFiles hold roots for client certificates beside our own issuers, in PEM.
	// The key of the root is part of its clients' ids, so that two CAs that give out the
	// same name do not name the same caller.
	ClientCAFiles []string `yaml:"client_ca_files"`
	// OwnClients accepts client certificates that this CA issued, which is how a
	// workload renews. They are refused as soon as they are revoked.
	OwnClients bool `yaml:"own_clients"`
	// RevocationTTL is how long the answer "not revoked" about a client certificate of
	// our own is kept.
	RevocationTTL time.Duration `yaml:"revocation_ttl"`
	// Reload is how often the files are looked at for a change.
	Reload time.Duration `yaml:"reload"`
}

// Auth says which credentials beside client certificates are taken.
type Auth struct {
	// JWT lists the issuers of JSON Web Tokens that are trusted.
	JWT []JWTIssuer `yaml:"jwt"`
	// Kubernetes lists the clusters whose service accounts are trusted. A token whose
	// issuer is listed in jwt is checked there.
	Kubernetes []Cluster `yaml:"kubernetes"`
	// EnrollmentTokens accepts tokens made by operators with the API.
	EnrollmentTokens bool `yaml:"enrollment_tokens"`
	// CacheEntries bounds the verified tokens and client certificates remembered.
	CacheEntries int `yaml:"cache_entries"`
	// CacheTTL is how long a verified JWT is remembered, at most; never past its end.
	CacheTTL time.Duration `yaml:"cache_ttl"`
}

// JWTIssuer is one trusted issuer of JSON Web Tokens.
type JWTIssuer struct {
	// Issuer is the exact value of the iss claim.
	Issuer string `yaml:"issuer"`
	// Audiences lists the accepted aud values; one of them must be in the token.
	Audiences []string `yaml:"audiences"`
	// JWKSFile holds the issuer's keys as a JWK set; it is read again when it changes.
	JWKSFile string `yaml:"jwks_file"`
	// JWKSURL is where the issuer publishes its keys (https). Either this or jwks_file.
	JWKSURL string `yaml:"jwks_url"`
	// JWKSCAFile holds roots for jwks_url; empty means the system's.
	JWKSCAFile string `yaml:"jwks_ca_file"`
	// Algorithms lists the accepted signature algorithms. Only asymmetric ones are
	// possible: RS256…, PS256…, ES256…, EdDSA. Empty: all of these.
	Algorithms []string `yaml:"algorithms"`
	// Identity makes the caller's name from claims in braces, a path written with
	// slashes: "{sub}", which is what empty means, or
	// "spiffe://example.test/ns/{kubernetes.io/namespace}/sa/{kubernetes.io/serviceaccount/name}".
	Identity string `yaml:"identity"`
	// ClockSkew is tolerated between the issuer's clock and ours; at most 5m.
	ClockSkew time.Duration `yaml:"clock_skew"`
}

// Operator gives roles to the callers whose id matches.
type Operator struct {
	// Match is a caller id, for example "mtls:spiffe://example.test/ops/alice",
	// "mtls:ca/9f86d081884c7d659a2feaa0c55ad015/cn:alice" (a client certificate of another
	// CA: the number is its key's, and the gateway logs it when it starts) or
	// "jwt:https://idp.example.test#alice"; "*" stands for any run of characters
	// without a slash.
	Match string `yaml:"match"`
	// Roles are viewer (may find every certificate), operator (may also revoke and make
	// enrollment tokens), auditor (may read the audit trail), admin (all of it).
	Roles []string `yaml:"roles"`
}

// Orders is about asynchronous issue.
type Orders struct {
	// SweepInterval is how often orders without an outcome are looked for. Every
	// gateway sweeps; the ledger shares the orders out among them.
	SweepInterval time.Duration `yaml:"sweep_interval"`
	// StaleAfter is how long an order may wait for its outcome before it is queued again.
	StaleAfter time.Duration `yaml:"stale_after"`
	// SweepBatch bounds the orders that one sweep takes at once.
	SweepBatch int `yaml:"sweep_batch"`
	// MaxAge is how long an order is tried before it fails.
	MaxAge time.Duration `yaml:"max_age"`
	// MaxWaiting bounds the callers that read or wait for an order at one time.
	MaxWaiting int `yaml:"max_waiting"`
}

// DefaultConfig returns the defaults. Certificate files and profiles_dir have none.
func DefaultConfig() Config {
	return Config{
		Listen:          "127.0.0.1:8443",
		GRPCListen:      "127.0.0.1:8444",
		TLS:             TLS{OwnClients: true, RevocationTTL: 5 * time.Second, Reload: 10 * time.Second},
		Auth:            Auth{EnrollmentTokens: true, CacheEntries: 20_000, CacheTTL: 5 * time.Minute},
		DuplicateWindow: time.Hour,
		RequestIDWindow: ledger.MaxReuse,
		RenewAt:         0.6,
		IssuerRefresh:   5 * time.Second,
		SPIFFE:          SPIFFE{RefreshHint: 5 * time.Minute},
		Limits: Limits{
			MaxInFlight: 1024, MaxWait: time.Second, CSRWait: 6 * time.Millisecond, RenewalShare: 0.75, RetryAfter: time.Second,
			CallerShare: 0.8, CallerBurst: 100, NamesBurst: 10, RateEntries: 20_000,
			MaxConnections: 10_000, MaxConnectionsPerAddress: 5_000, MaxStreams: 10_000,
			MaxBodyBytes: 128 << 10, MaxBatchBytes: 2 << 20, MaxBatch: 256,
			MaxHeaderBytes: 32 << 10, MaxConcurrentStreams: 250, StreamConcurrency: 64,
			HeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute,
			CallTimeout: 10 * time.Second, MaxCallTimeout: time.Minute, ShutdownTimeout: 20 * time.Second,
		},
		Orders: Orders{
			SweepInterval: 5 * time.Second, StaleAfter: 30 * time.Second, SweepBatch: 100,
			MaxAge: 24 * time.Hour, MaxWaiting: 1000,
		},
		Console:   ConsoleConfig{Session: 4 * time.Hour},
		NATS:      config.DefaultNATS(),
		Ledger:    config.Ledger{MaxConnections: 4},
		Telemetry: config.DefaultTelemetry(),
	}
}

// DefaultJWTIssuer returns the defaults of each entry of auth.jwt.
func DefaultJWTIssuer() JWTIssuer {
	return JWTIssuer{Identity: "{sub}", ClockSkew: 30 * time.Second}
}

// Validate reports everything that is wrong, with the keys' names. It opens no file.
func (c Config) Validate() error {
	var e keyErrors
	e.address("listen", c.Listen)
	if c.GRPCListen != "" {
		e.address("grpc_listen", c.GRPCListen)
	}
	e.require(c.TLS.CertFile != "", "tls.cert_file", "is missing")
	e.require(c.TLS.KeyFile != "", "tls.key_file", "is missing")
	e.between("tls.revocation_ttl", c.TLS.RevocationTTL, 0, time.Minute)
	e.between("tls.reload", c.TLS.Reload, 10*time.Millisecond, time.Hour)
	e.require(c.ProfilesDir != "", "profiles_dir", "is missing")
	e.between("duplicate_window", c.DuplicateWindow, time.Second, ledger.MaxReuse)
	e.between("request_id_window", c.RequestIDWindow, time.Second, ledger.MaxReuse)
	e.require(c.RenewAt >= 0.1 && c.RenewAt <= 0.9, "renew_at", "must be 0.1 to 0.9")
	e.between("issuer_refresh", c.IssuerRefresh, 100*time.Millisecond, time.Hour)
	c.Auth.validate(&e)
	c.Auth.validateKubernetes(&e)
	c.SPIFFE.validate(&e)
	e.require(!c.Istio.enabled() || c.GRPCListen != "", "istio", "needs grpc_listen")
	for i, o := range c.Operators {
		o.validate(&e, fmt.Sprintf("operators[%d]", i))
	}
	c.Limits.validate(&e)
	c.Orders.validate(&e)
	c.Console.validate(&e)
	return errors.Join(e...)
}

func (a Auth) validate(e *keyErrors) {
	e.require(a.CacheEntries >= 1, "auth.cache_entries", "must be at least 1")
	e.between("auth.cache_ttl", a.CacheTTL, 0, time.Hour)
	seen := map[string]bool{}
	for i, j := range a.JWT {
		key := fmt.Sprintf("auth.jwt[%d]", i)
		e.require(!seen[j.Issuer], key+".issuer", "is there twice")
		seen[j.Issuer] = true
		j.validate(e, key)
	}
}

func (j JWTIssuer) validate(e *keyErrors, key string) {
	e.require(j.Issuer != "" && !strings.Contains(j.Issuer, "#"), key+".issuer", `must be set and hold no "#"`)
	e.require(len(j.Audiences) > 0, key+".audiences", "must list at least one audience")
	for _, a := range j.Audiences {
		e.require(a != "", key+".audiences", "must not hold an empty audience")
	}
	e.require((j.JWKSFile == "") != (j.JWKSURL == ""), key, "needs exactly one of jwks_file and jwks_url")
	if j.JWKSURL != "" {
		u, err := url.Parse(j.JWKSURL)
		e.require(err == nil && u.Scheme == "https" && u.Host != "", key+".jwks_url", "must be an https URL")
	}
	for _, a := range j.Algorithms {
		e.require(asymmetric(a), key+".algorithms", a+" is not an asymmetric signature algorithm of JWS")
	}
	if _, err := parseIdentity(j.Identity); err != nil {
		e.require(false, key+".identity", err.Error())
	}
	e.between(key+".clock_skew", j.ClockSkew, 0, 5*time.Minute)
}

func (o Operator) validate(e *keyErrors, key string) {
	_, err := path.Match(o.Match, "")
	e.require(o.Match != "" && err == nil, key+".match", "must be a caller id or a pattern of one")
	e.require(len(o.Roles) > 0, key+".roles", "must list at least one role")
	for _, r := range o.Roles {
		e.require(Role(r).valid(), key+".roles", fmt.Sprintf("%q is none of viewer, operator, auditor, admin", r))
	}
}

func (o Orders) validate(e *keyErrors) {
	e.between("orders.sweep_interval", o.SweepInterval, 10*time.Millisecond, time.Hour)
	e.between("orders.stale_after", o.StaleAfter, time.Millisecond, time.Hour)
	e.between("orders.max_age", o.MaxAge, time.Minute, 30*24*time.Hour)
	e.require(o.SweepBatch >= 1 && o.SweepBatch <= 10_000, "orders.sweep_batch", "must be 1 to 10000")
	e.require(o.MaxWaiting >= 1, "orders.max_waiting", "must be at least 1")
}

// keyErrors gathers what Validate finds.
type keyErrors []error

func (e *keyErrors) require(ok bool, key, what string) {
	if !ok {
		*e = append(*e, fmt.Errorf("%s %s", key, what))
	}
}

func (e *keyErrors) between(key string, d, lo, hi time.Duration) {
	e.require(d >= lo && d <= hi, key, fmt.Sprintf("must be %s to %s", lo, hi))
}

// httpsOrigin reports whether s is https://host or https://host:port.
func httpsOrigin(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && s == "https://"+u.Host
}

func (e *keyErrors) address(key, value string) {
	_, _, err := net.SplitHostPort(value)
	e.require(err == nil, key, "must be host:port")
}
