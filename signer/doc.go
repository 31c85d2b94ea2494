// Package signer turns queued requests into certificates that the ledger knows.
//
// The files are the steps: pull.go asks the queue for what fits, delivery.go and
// line.go open a message, worker.go walks each request through template.go, tbs.go
// and prepare.go, seat.go (the HSM) and the group commit, reply.go answers.
// issuers.go follows the ledger's issuers, run.go starts and ends it all. direct.go
// issues without a queue.
package signer
