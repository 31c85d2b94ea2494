// Package ocsp answers OCSP requests (RFC 6960, RFC 9919) from answers that a
// presigner signed beforehand and keeps in Redis. The responder holds no key, asks no
// database and signs nothing: it recomposes the DER of an answer from a compact
// record and the certificates that all answers share.
//
// The files are the way of a request: http.go and path.go take it in, request.go
// parses it, directory.go finds the issuer that it means, lookup.go finds the record
// (cache.go, fetch.go), record.go reads it, encode.go writes the answer. follow.go
// hears of revocations while they happen; store.go is all that is written to Redis.
package ocsp
