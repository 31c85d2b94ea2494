// Package client is certmill for applications: certificates from its gateways, kept
// fresh for as long as a program runs.
//
// [Open] gets a certificate and renews it in good time until its context ends; what it
// returns gives a server's and a client's tls.Config that follow the certificate and
// the trust bundle by themselves:
//
//	id, err := client.Open(ctx, client.Config{Gateway: "ca.example.test:8444", CAFile: "roots.pem", TokenFile: "/var/run/secrets/tokens/certmill"},
//		client.Request{Profile: "workload", URIs: []string{"spiffe://example.test/ns/shop/sa/web"}})
//	if err != nil { … }
//	defer id.Close()
//	server := &http.Server{TLSConfig: id.ServerTLS(client.AllowURI("spiffe://example.test/ns/shop/*"))}
//
// [New] and [Client.Issue] are for single certificates.
//
// Every call is repeated while that may help, with one idempotency key, so that a retry
// never makes a second certificate. Errors of a gateway are of the type [Error].
package client

import "github.com/certmill/certmill/internal/problem"

// Error is a failure that a gateway stated: its kind, the field and the rule, a sentence
// for people. Find it with errors.As; errors.Is(err, &client.Error{Kind: client.Denied})
// asks for the kind.
type Error = problem.Error

// Kind classifies an Error. The set is closed.
type Kind = problem.Kind

// The kinds. Overloaded and Unavailable are worth repeating, which this package does.
const (
	Invalid         = problem.Invalid         // the request is wrong; change it
	Unauthenticated = problem.Unauthenticated // no usable credential; get one
	Denied          = problem.Denied          // the credential does not reach this far
	NotFound        = problem.NotFound        // there is no such thing
	Conflict        = problem.Conflict        // it contradicts what was done before
	Overloaded      = problem.Overloaded      // the service is full
	Unavailable     = problem.Unavailable     // a part is down or late
	Internal        = problem.Internal        // a defect of the service
)
