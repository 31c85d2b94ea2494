package gateway

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/spiffe"
)

// Cluster is one Kubernetes cluster whose service accounts may call.
type Cluster struct {
	// Name is what callers say in the clusterid metadata (on HTTP the Clusterid header);
	// an Istio mesh of one cluster says "Kubernetes". Callers who say nothing belong to
	// the first cluster of the list; those who name one that is not listed are refused.
	Name string `yaml:"name"`
	// TrustDomain is the SPIFFE trust domain of the cluster's workloads, whose identity
	// is spiffe://<trust_domain>/ns/<namespace>/sa/<service account>.
	TrustDomain string `yaml:"trust_domain"`
	// Audiences lists the accepted audiences, of which a token must have one; Istio's
	// proxies ask for tokens with the audience istio-ca.
	Audiences []string `yaml:"audiences"`
	// API is the cluster's API server, https://host:port. Tokens are checked there by
	// TokenReview unless jwks_file or jwks_url is given, and node accounts may ask only
	// for identities that run on their node. Empty: neither.
	API string `yaml:"api"`
	// APICAFile holds roots for api in PEM, read at start; empty means the system's.
	APICAFile string `yaml:"api_ca_file"`
	// APITokenFile holds our own token for api, read anew for each request. Its account
	// needs "create" on tokenreviews.authentication.k8s.io and "get" and "list" on pods.
	APITokenFile string `yaml:"api_token_file"`
	// APITimeout bounds a request to api.
	APITimeout time.Duration `yaml:"api_timeout"`
	// MaxRequests bounds the requests to api at one time; beyond it the answer is
	// Overloaded.
	MaxRequests int `yaml:"max_requests"`
	// Issuer is the iss claim of the cluster's tokens; it goes with jwks_file and jwks_url.
	Issuer string `yaml:"issuer"`
	// JWKSFile holds the cluster's keys as a JWK set; it is read again when it changes.
	JWKSFile string `yaml:"jwks_file"`
	// JWKSURL is where the cluster publishes its keys (https).
	JWKSURL string `yaml:"jwks_url"`
	// JWKSCAFile holds roots for jwks_url; empty means the system's.
	JWKSCAFile string `yaml:"jwks_ca_file"`
	// ClockSkew is tolerated between the cluster's clock and ours; at most 5m.
	ClockSkew time.Duration `yaml:"clock_skew"`
	// NodeAccounts lists service accounts, namespace/name, that may ask for certificates
	// of others by ImpersonatedIdentity: istio-system/ztunnel in an ambient mesh.
	NodeAccounts []string `yaml:"node_accounts"`
	// PodTTL is how long it is remembered that an identity runs on a node.
	PodTTL time.Duration `yaml:"pod_ttl"`
}

// DefaultCluster returns the defaults of each entry of auth.kubernetes.
func DefaultCluster() Cluster {
	return Cluster{
		Name: "Kubernetes", TrustDomain: "cluster.local", Audiences: []string{"istio-ca"},
		APITimeout: 5 * time.Second, MaxRequests: 64, ClockSkew: 30 * time.Second, PodTTL: 10 * time.Second,
	}
}

// reviews reports whether tokens are checked by the API server.
func (c *Cluster) reviews() bool { return c.JWKSFile == "" && c.JWKSURL == "" }

// jwtIssuer is the cluster as an issuer of tokens.
func (c *Cluster) jwtIssuer() JWTIssuer {
	return JWTIssuer{
		Issuer: c.Issuer, Audiences: c.Audiences, JWKSFile: c.JWKSFile, JWKSURL: c.JWKSURL, JWKSCAFile: c.JWKSCAFile,
		ClockSkew: c.ClockSkew,
	}
}

func (a Auth) validateKubernetes(e *keyErrors) {
	seen := map[string]bool{}
	for i, c := range a.Kubernetes {
		key := fmt.Sprintf("auth.kubernetes[%d]", i)
		e.require(!seen[c.Name], key+".name", "is there twice")
		seen[c.Name] = true
		c.validate(e, key)
		e.require(c.Issuer == "" || !slices.ContainsFunc(a.JWT, func(j JWTIssuer) bool { return j.Issuer == c.Issuer }),
			key+".issuer", "is in auth.jwt, too; keep it in one of them")
	}
}

func (c Cluster) validate(e *keyErrors, key string) {
	// The name is part of caller ids, in which "/" divides.
	e.require(printable(c.Name, 128) && !strings.ContainsAny(c.Name, "/ "), key+".name", `must be 1 to 128 printable characters without "/" and blanks`)
	e.require(spiffe.CheckTrustDomain(c.TrustDomain) == nil, key+".trust_domain", `must be 1 to 255 of a–z, 0–9, ".", "-" and "_"`)
	if c.reviews() {
		e.require(c.API != "", key, "needs api, jwks_file or jwks_url")
		e.require(c.Issuer == "", key+".issuer", "goes with jwks_file and jwks_url")
		e.require(len(c.Audiences) > 0, key+".audiences", "must list at least one")
	} else {
		c.jwtIssuer().validate(e, key)
	}
	u, err := url.Parse(c.API)
	e.require(c.API == "" || err == nil && u.Scheme == "https" && u.Host != "" && u.RawQuery == "" && u.Fragment == "", key+".api", "must be an https URL without a query")
	e.require((c.API == "") == (c.APITokenFile == ""), key+".api_token_file", "goes with api, which needs it")
	e.require(c.API != "" || c.APICAFile == "", key+".api_ca_file", "goes with api")
	e.between(key+".api_timeout", c.APITimeout, 10*time.Millisecond, time.Minute)
	e.between(key+".pod_ttl", c.PodTTL, 0, 5*time.Minute)
	e.between(key+".clock_skew", c.ClockSkew, 0, 5*time.Minute)
	e.require(c.MaxRequests >= 1 && c.MaxRequests <= 10_000, key+".max_requests", "must be 1 to 10000")
	for _, account := range c.NodeAccounts {
		namespace, name, ok := strings.Cut(account, "/")
		_, err := spiffe.Workload("x", namespace, name)
		e.require(ok && err == nil, key+".node_accounts", fmt.Sprintf("%q is not namespace/name", account))
	}
}
