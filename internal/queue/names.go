// Package queue is what crosses NATS: every subject, header and stream setting,
// and the authenticated envelope around each message. Gateways, signers and
// presigners use this package and nothing else to name a thing on the wire.
package queue

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The streams.
const (
	SignStream   = "CERTMILL_SIGN"
	EventsStream = "CERTMILL_EVENTS"

	signPrefix    = "certmill.sign."
	issuedPrefix  = "certmill.event.issued."
	revokedPrefix = "certmill.event.revoked."
	replyPrefix   = "certmill.reply."
)

// The headers of a message of SignStream.
const (
	// HeaderReply is the subject on which the gateway waits for SignReply messages.
	// Empty for asynchronous orders.
	HeaderReply = "Certmill-Reply"
	// HeaderDeadline is the latest deadline of the batch, Unix milliseconds: a signer
	// drops the whole message after it without decoding it.
	HeaderDeadline = "Certmill-Deadline"
)

// Priority is the last token of a sign subject. Signers take higher priorities first.
type Priority string

// The priorities, highest first.
const (
	First   Priority = "first"   // a workload's first certificate
	Renewal Priority = "renewal" // the caller still holds a valid one
	Batch   Priority = "batch"   // asynchronous orders
)

// Priorities lists the priorities, highest first.
var Priorities = []Priority{First, Renewal, Batch}

// MaxBatch is how many CSRs one message holds at most. 32 bring the cost of the
// queue per CSR from 31 to 9 µs; more gain little and make one death dearer.
const MaxBatch = 32

// MaxMessageBytes bounds a message of SignStream: MaxBatch requests of 16 KiB each
// would still fit, and NATS's default limit of 1 MiB is kept.
const MaxMessageBytes = 1 << 20

// MaxAge ends the messages of SignStream that nobody has taken: no deadline is so far away.
const MaxAge = 10 * time.Minute

// issuerName is what an issuer may be called: one NATS subject token.
var issuerName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ValidIssuer reports whether name can be an issuer's name: 1–63 of a–z, 0–9 and
// "-", not starting with "-".
func ValidIssuer(name string) bool { return issuerName.MatchString(name) }

// SignSubject returns the subject for requests to an issuer.
func SignSubject(issuer string, p Priority) string { return signPrefix + issuer + "." + string(p) }

// IssuedSubject returns the subject of an issuer's IssuedEvent messages.
func IssuedSubject(issuer string) string { return issuedPrefix + issuer }

// RevokedSubject returns the subject of an issuer's RevokedEvent messages.
func RevokedSubject(issuer string) string { return revokedPrefix + issuer }

// isEvent reports whether messages on the subject tell what has happened, or how a
// process is.
func isEvent(subject string) bool {
	return strings.HasPrefix(subject, issuedPrefix) || strings.HasPrefix(subject, revokedPrefix) || strings.HasPrefix(subject, presencePrefix)
}

// ReplySubject returns the subject on which one start of one gateway takes replies.
func ReplySubject(gateway string) string { return replyPrefix + gateway }

// InboxPrefix begins the subjects on which a user with an nkey takes answers: its own
// and nobody else's, so that a broker that grants each user only this lets none read
// what another is told.
func InboxPrefix(nkey string) string { return "_INBOX." + nkey }

// SignConsumer returns the durable name of the pull consumer that all signers of an
// issuer share for one priority.
func SignConsumer(issuer string, p Priority) string { return fmt.Sprintf("sign-%s-%s", issuer, p) }

// Settings are the operator's choices for the streams.
type Settings struct {
	// Replicas is 1 on one machine and 3 on a cluster.
	Replicas int
	// MaxPending bounds the messages of SignStream; beyond it a gateway answers
	// Overloaded. Each issuer and priority may have a quarter of it.
	MaxPending int64
	// MaxPendingBytes bounds their size in bytes.
	MaxPendingBytes int64
	// Memory keeps the streams in memory: the ledger and the callers' retries make again
	// what is lost.
	Memory bool
	// AckWait is how long a signer may hold a message before another gets it.
	AckWait time.Duration
	// MaxDeliver is how often a message is handed out before it is dropped.
	MaxDeliver int
}

func (s Settings) storage() jetstream.StorageType {
	if s.Memory {
		return jetstream.MemoryStorage
	}
	return jetstream.FileStorage
}

// SignStreamConfig returns the stream of work. Retention is by work queue: a message
// goes when a signer has acknowledged it. At the bound new messages are refused, so
// that overload shows at once, at the caller. A subject has a quarter, so that one
// issuer alone never fills the queue: a flood of orders does not keep its first
// certificates out, nor an issuer without signers the others.
func SignStreamConfig(s Settings) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        SignStream,
		Description: "CSRs that wait for a signer",
		Subjects:    []string{signPrefix + "*.*"},
		Retention:   jetstream.WorkQueuePolicy,
		Discard:     jetstream.DiscardNew,
		MaxMsgs:     s.MaxPending,

		MaxMsgsPerSubject:    (s.MaxPending + 3) / 4,
		DiscardNewPerSubject: s.MaxPending > 0,

		MaxBytes:   s.MaxPendingBytes,
		MaxMsgSize: MaxMessageBytes,
		MaxAge:     MaxAge,
		Duplicates: 2 * time.Minute,
		Storage:    s.storage(),
		Replicas:   s.Replicas,
	}
}

// SignConsumerConfig returns the shared pull consumer of one issuer and priority.
func SignConsumerConfig(issuer string, p Priority, s Settings) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       SignConsumer(issuer, p),
		FilterSubject: SignSubject(issuer, p),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       s.AckWait,
		MaxDeliver:    s.MaxDeliver,
		MaxAckPending: -1, // signers bound themselves by their sessions
	}
}

// EventsStreamConfig returns the stream of what has happened. Presigners read it to
// be quick; the ledger is what they are right by.
func EventsStreamConfig(s Settings) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        EventsStream,
		Description: "certificates issued and revoked",
		Subjects:    []string{issuedPrefix + "*", revokedPrefix + "*"},
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		MaxAge:      time.Hour,
		MaxBytes:    256 << 20,
		// -1 is no bound. The server says it so, and a stream that stands as wanted must
		// compare as equal.
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,

		MaxMsgSize: MaxMessageBytes,
		Storage:    s.storage(),
		Replicas:   s.Replicas,
	}
}

// PullSubject returns the subject on which a signer asks for messages of an issuer
// and priority (JetStream's pull protocol, NATS ADR-37).
func PullSubject(issuer string, p Priority) string {
	return "$JS.API.CONSUMER.MSG.NEXT." + SignStream + "." + SignConsumer(issuer, p)
}
