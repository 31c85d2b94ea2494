package queue

import (
	"strings"

	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// Sizes of the fields of a request, in bytes.
const (
	RequestKeySize = 16
	DigestSize     = 32
	// MaxSPKI holds an RSA key of 16,384 bits.
	MaxSPKI = 4096
)

// ParseSignSubject is the inverse of SignSubject.
func ParseSignSubject(subject string) (issuer string, p Priority, ok bool) {
	rest, ok := strings.CutPrefix(subject, signPrefix)
	if !ok {
		return "", "", false
	}
	issuer, last, ok := strings.Cut(rest, ".")
	if !ok || !ValidIssuer(issuer) {
		return "", "", false
	}
	for _, p := range Priorities {
		if last == string(p) {
			return issuer, p, true
		}
	}
	return "", "", false
}

// ValidReply reports whether subject is one that ReplySubject makes. A signer checks
// it before it publishes there: the header that names it is not authenticated, and a
// stranger must not steer a signer's words to another subject.
func ValidReply(subject string) bool {
	rest, ok := strings.CutPrefix(subject, replyPrefix)
	return ok && ValidIssuer(rest)
}

// CheckBatch checks that a decoded batch holds 1 to MaxBatch requests.
func CheckBatch(b *queuev1.SignBatch) error {
	if n := len(b.GetRequests()); n == 0 || n > MaxBatch {
		return problem.Rejected("requests", "batch_size", "a batch holds 1 to %d requests, not %d", MaxBatch, n)
	}
	return nil
}

// CheckRequest checks the shape of one request for an issuer: what the worker relies
// on before the profile is looked at.
func CheckRequest(r *queuev1.SignRequest, issuer string) error {
	switch {
	case r == nil:
		return problem.Rejected("request", "empty", "the request is empty")
	case len(r.RequestKey) != RequestKeySize:
		return problem.Rejected("request_key", "length", "a request key has %d bytes, not %d", RequestKeySize, len(r.RequestKey))
	case len(r.CsrSha256) != DigestSize:
		return problem.Rejected("csr_sha256", "length", "a digest has %d bytes, not %d", DigestSize, len(r.CsrSha256))
	case len(r.Spki) == 0 || len(r.Spki) > MaxSPKI:
		return problem.Rejected("spki", "length", "a key has 1 to %d bytes, not %d", MaxSPKI, len(r.Spki))
	case r.Issuer != issuer:
		return problem.Rejected("issuer", "subject", "the request names another issuer than its subject")
	case r.Profile == "":
		return problem.Rejected("profile", "empty", "no profile is named")
	case r.Caller.GetId() == "":
		return problem.Rejected("caller.id", "empty", "no caller is named")
	}
	return nil
}
