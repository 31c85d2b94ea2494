// Package hsm signs with keys that never leave a PKCS#11 token.
//
// A [Token] is a token in a slot of a vendor's module with its sessions; a [Key] is a
// crypto.Signer whose waits obey a context. The package lives with what modules do
// wrong: sessions are lost, handles go stale, tokens leave and come back, calls hang.
// Each failure has one row in a table (failure.go) that says what helps. Little
// things are mended on the spot; for the rest a circuit breaker takes the token out,
// and its keeper (keeper.go) brings it back without a restart of the process.
//
// The path of a signature: key.go → signqueue.go (wait for a turn) → breaker.go → pool.go
// (a session) → call.go (a goroutine that may be given up) → session.go (open, log in,
// find the key) → signeach.go (C_SignInit and C_Sign) → encode.go.
package hsm
