// Package failpoint lets a process die at a named point of its work, to test that
// nothing is lost there. In an ordinary build Hit is empty and compiled away; with the
// build tag failpoints it obeys the environment (see enabled.go).
package failpoint

// The points, in the order of the walk of one request.
const (
	GatewayAccepted  = "gateway-accepted"  // authenticated, checked, not yet queued
	GatewayOrdered   = "gateway-ordered"   // the order is committed, not yet queued
	GatewayPublished = "gateway-published" // the queue has it
	GatewayAnswered  = "gateway-answered"  // the signer's answer is here, the caller's is not
	SignerTaken      = "signer-taken"      // out of the queue, not yet opened
	SignerPrepared   = "signer-prepared"   // checked and built, not yet in the token
	SignerSigned     = "signer-signed"     // signed, not yet noted as signed
	SignerCommitting = "signer-committing" // noted as signed, not yet given to the ledger
	SignerCommitted  = "signer-committed"  // in the ledger, not yet noted as committed
	SignerReplying   = "signer-replying"   // noted, not yet told to the gateway
	SignerReplied    = "signer-replied"    // told, the message not yet acknowledged
	SignerReporting  = "signer-reporting"  // before the count of signatures is written
)

// SignerPoisoned is passed with the names of a request that is about to be prepared.
const SignerPoisoned = "signer-poisoned"

// All lists the points that every request passes.
var All = []string{
	GatewayAccepted, GatewayOrdered, GatewayPublished, GatewayAnswered,
	SignerTaken, SignerPrepared, SignerSigned, SignerCommitting, SignerCommitted, SignerReplying, SignerReplied, SignerReporting,
}
