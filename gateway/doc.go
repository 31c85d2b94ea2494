// Package gateway is the door of certmill: it authenticates callers, checks what
// they ask for against a profile, hands the work to the signers and gives back
// what the ledger has committed. It keeps no state of its own, so any number of
// gateways may stand behind a balancer.
//
// The walk of one request, by file: http.go or grpc.go (limits, decode) → auth.go
// (caller) → issue.go (CSR, profile, queue message) → dispatch.go (queue, wait) →
// certificate.go (answer).
package gateway
