package gateway

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/sync/singleflight"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/spiffe"
)

// workload is what a Kubernetes token says of its holder. It is immutable.
type workload struct {
	cluster            *cluster
	namespace, account string
	// pod and podUID are empty for tokens that are not bound to a pod.
	pod, podUID string
}

// cluster is one Kubernetes cluster at work.
type cluster struct {
	Cluster
	api  *kubernetesAPI // nil where none is configured
	keys *jwtIssuer     // nil where the API server reviews tokens
	// runs remembers until when a node account's claim need not be looked up again.
	runs *lru[impersonation, time.Time]
}

// kubernetesAuth makes callers of service-account tokens.
type kubernetesAuth struct {
	clusters  map[string]*cluster
	first     *cluster // of those who do not say where they are; nil where there is none
	operators []Operator
	now       func() time.Time
	ttl       time.Duration
	// known holds verified tokens by the hash of cluster and token.
	known  *lru[[sha256.Size]byte, verifiedToken]
	flight singleflight.Group
}

func newKubernetesAuth(cfg *Config, now func() time.Time) *kubernetesAuth {
	a := &kubernetesAuth{
		clusters: map[string]*cluster{}, operators: cfg.Operators, now: now, ttl: cfg.Auth.CacheTTL,
		known: newLRU[[sha256.Size]byte, verifiedToken](cfg.Auth.CacheEntries),
	}
	for _, c := range cfg.Auth.Kubernetes {
		made := &cluster{Cluster: c, runs: newLRU[impersonation, time.Time](cfg.Auth.CacheEntries)}
		if c.API != "" {
			made.api = newKubernetesAPI(c, cfg.Limits.RetryAfter)
		}
		if !c.reviews() {
			made.keys = newJWTIssuer(c.jwtIssuer(), now)
		}
		a.clusters[c.Name] = made
		if a.first == nil {
			a.first = made
		}
	}
	return a
}

func (a *kubernetesAuth) enabled() bool { return a.first != nil }

// load reads the files that are read once.
func (a *kubernetesAuth) load() error {
	for name, c := range a.clusters {
		if c.api == nil {
			continue
		}
		if err := c.api.load(); err != nil {
			return fmt.Errorf("auth.kubernetes: api_ca_file of cluster %s: %w", name, err)
		}
	}
	return nil
}

func (a *kubernetesAuth) close() {
	for _, c := range a.clusters {
		if c.api != nil {
			c.api.close()
		}
	}
}

// caller verifies a token of the named cluster; "" stands for the first one.
func (a *kubernetesAuth) caller(ctx context.Context, name, raw string) (*Caller, error) {
	if len(raw) > maxTokenBytes {
		return nil, unauthenticated("malformed", "the token is too long")
	}
	c := a.first
	if name != "" {
		if c = a.clusters[name]; c == nil {
			return nil, unauthenticated("cluster", "the cluster that clusterid names is not configured here")
		}
	}
	hash := sha256.Sum256([]byte(c.Name + "/" + raw))
	if v, ok := a.known.get(hash); ok && v.fresh(a.now()) {
		return v.caller, nil
	}
	v, err := a.verify(ctx, c, hash, raw)
	if err != nil {
		return nil, err
	}
	a.known.put(hash, v)
	return v.caller, nil
}

func (a *kubernetesAuth) verify(ctx context.Context, c *cluster, hash [sha256.Size]byte, raw string) (verifiedToken, error) {
	token, err := jwt.ParseSigned(raw, signatureAlgorithms)
	if err != nil {
		return verifiedToken{}, parseFailure(err)
	}
	if c.keys == nil {
		return a.review(ctx, c, hash, raw, token)
	}
	checked, err := c.keys.check(ctx, token, a.now())
	if err != nil {
		return verifiedToken{}, err
	}
	w, err := workloadOfClaims(c, checked.claims.Subject, checked.all)
	if err != nil {
		return verifiedToken{}, err
	}
	caller, err := a.makeCaller(w)
	if err != nil {
		return verifiedToken{}, err
	}
	return checked.remember(caller, a.now().Add(a.ttl)), nil
}

// review has the API server judge the token. What a token says of its own end is read
// without a check of its signature: an expired one costs the API server nothing, and
// what the API server accepts is not remembered for longer than it lives.
func (a *kubernetesAuth) review(ctx context.Context, c *cluster, hash [sha256.Size]byte, raw string, token *jwt.JSONWebToken) (verifiedToken, error) {
	var claims jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return verifiedToken{}, unauthenticated("malformed", "the token's claims cannot be read")
	}
	now := a.now()
	if claims.Expiry != nil && now.After(claims.Expiry.Time().Add(c.ClockSkew)) {
		return verifiedToken{}, unauthenticated("expired", "the token has expired")
	}
	// The proxy that asks five times makes one review, which must not end with the first.
	done := a.flight.DoChan(string(hash[:]), func() (any, error) {
		return c.api.review(context.WithoutCancel(ctx), raw)
	})
	var status *tokenReviewStatus
	select {
	case r := <-done:
		if r.Err != nil {
			return verifiedToken{}, r.Err
		}
		status = r.Val.(*tokenReviewStatus)
	case <-ctx.Done():
		return verifiedToken{}, ctx.Err()
	}
	w, err := workloadOfReview(c, status)
	if err != nil {
		return verifiedToken{}, err
	}
	caller, err := a.makeCaller(w)
	if err != nil {
		return verifiedToken{}, err
	}
	until := now.Add(a.ttl)
	if claims.Expiry != nil && claims.Expiry.Time().Before(until) {
		until = claims.Expiry.Time()
	}
	return verifiedToken{caller: caller, until: until}, nil
}

// The names of Kubernetes' user information (k8s.io/apiserver, serviceaccount/util.go).
const (
	accountPrefix = "system:serviceaccount:"
	accountGroup  = "system:serviceaccounts"
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
)

func workloadOfReview(c *cluster, s *tokenReviewStatus) (*workload, error) {
	if !s.Authenticated || s.Error != "" {
		return nil, unauthenticated("token_review", "the cluster does not accept the token; it may have expired or its pod may be gone")
	}
	// An API server that knows no audiences leaves them out, and so has not checked them.
	if !slices.ContainsFunc(s.Audiences, func(a string) bool { return slices.Contains(c.Audiences, a) }) {
		return nil, unauthenticated("audience", "the token is meant for another audience")
	}
	w, err := serviceAccount(c, s.User.Username)
	if err != nil || !slices.Contains(s.User.Groups, accountGroup) {
		return nil, notAServiceAccount()
	}
	if names, uids := s.User.Extra[extraPodName], s.User.Extra[extraPodUID]; len(names) == 1 && len(uids) == 1 {
		w.pod, w.podUID = names[0], uids[0]
	}
	return w, nil
}

// workloadOfClaims reads the private claims of a service account's token.
func workloadOfClaims(c *cluster, subject string, claims map[string]any) (*workload, error) {
	w, err := serviceAccount(c, subject)
	if err != nil {
		return nil, err
	}
	namespace, _ := claimAt(claims, []string{"kubernetes.io", "namespace"})
	account, _ := claimAt(claims, []string{"kubernetes.io", "serviceaccount", "name"})
	if namespace != w.namespace || account != w.account {
		return nil, notAServiceAccount()
	}
	w.pod, _ = claimAt(claims, []string{"kubernetes.io", "pod", "name"})
	w.podUID, _ = claimAt(claims, []string{"kubernetes.io", "pod", "uid"})
	return w, nil
}

// serviceAccount reads a user name such as system:serviceaccount:default:web.
func serviceAccount(c *cluster, user string) (*workload, error) {
	names, ok := strings.CutPrefix(user, accountPrefix)
	namespace, account, found := strings.Cut(names, ":")
	if !ok || !found || strings.Contains(account, ":") {
		return nil, notAServiceAccount()
	}
	return &workload{cluster: c, namespace: namespace, account: account}, nil
}

func notAServiceAccount() error {
	return unauthenticated("service_account", "the token is not that of a Kubernetes service account")
}

func (a *kubernetesAuth) makeCaller(w *workload) (*Caller, error) {
	identity, err := spiffe.Workload(w.cluster.TrustDomain, w.namespace, w.account)
	if err != nil {
		return nil, notAServiceAccount()
	}
	id := fmt.Sprintf("k8s:%s/%s/%s", w.cluster.Name, w.namespace, w.account)
	return &Caller{
		Caller:   profile.Caller{ID: id, Kind: kindJWT, Identity: identity.String(), Roles: rolesOf(a.operators, id)},
		workload: w,
	}, nil
}
