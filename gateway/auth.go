package gateway

import (
	"context"
	"crypto/tls"
	"strings"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
)

// The kinds of credential, as they stand in Caller.Kind.
const (
	kindMTLS  = "mtls"
	kindJWT   = "jwt"
	kindToken = "token"
)

// Caller is who asks, as proved by one credential. It is immutable once made, and
// may be shared by many requests.
type Caller struct {
	profile.Caller
	// Renewal is true when the credential is a valid certificate of our own.
	Renewal bool
	// Serial is that certificate's.
	Serial serial.Number
	// held is that certificate, or one of our own that came with another credential:
	// who shows one is in less of a hurry. nil where there is none.
	held *held
	// grant is what an enrollment token allows; nil for other credentials.
	grant *grant
	// workload is what a Kubernetes cluster says of the caller; nil for other callers.
	workload *workload
	// actsFor is the identity of another, for which the caller may and does ask now.
	actsFor string
}

// authCredentials are what a request brings; both may be absent.
type authCredentials struct {
	tls           *tls.ConnectionState
	authorization string // value of the Authorization header
	cluster       string // the Kubernetes cluster that the caller says to be in; may be empty
}

// authenticator turns credentials into a Caller. An Authorization header counts
// before a client certificate: it is the more deliberate of the two. A credential
// that is wrong is refused, even where another one would do.
type authenticator struct {
	mtls *mtlsAuth
	jwt  *jwtAuth
	// kubernetes has the tokens whose issuer jwt does not know, where there are clusters.
	kubernetes *kubernetesAuth
	tokens     *enrollmentAuth
}

const bearer = "bearer "

func (a *authenticator) authenticate(ctx context.Context, c authCredentials) (*Caller, error) {
	if c.authorization != "" {
		if len(c.authorization) <= len(bearer) || !strings.EqualFold(c.authorization[:len(bearer)], bearer) {
			return nil, unauthenticated("scheme", "the Authorization header must be \"Bearer\" and a token")
		}
		secret := strings.TrimSpace(c.authorization[len(bearer):])
		if strings.HasPrefix(secret, tokenPrefix) {
			return a.tokens.caller(ctx, secret)
		}
		caller, err := a.jsonWebToken(ctx, c.cluster, secret)
		if err != nil || c.tls == nil {
			return caller, err
		}
		return a.mtls.holding(caller, c.tls), nil
	}
	if c.tls != nil && len(c.tls.PeerCertificates) > 0 {
		return a.mtls.caller(ctx, c.tls)
	}
	return nil, unauthenticated("missing", "send a client certificate or an Authorization header with a bearer token")
}

// jsonWebToken verifies a token by its issuer, or by its Kubernetes cluster.
func (a *authenticator) jsonWebToken(ctx context.Context, cluster, secret string) (*Caller, error) {
	if a.kubernetes.enabled() && !a.jwt.knows(secret) {
		return a.kubernetes.caller(ctx, cluster, secret)
	}
	return a.jwt.caller(ctx, secret)
}

func unauthenticated(rule, detail string) *problem.Error {
	return &problem.Error{Kind: problem.Unauthenticated, Field: "authorization", Rule: rule, Detail: detail}
}
