package ledger

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/certmill/certmill/internal/serial"
)

// RequestKey makes a request one with its retries: the first 16 octets of a SHA-256
// over the caller and the idempotency key. Make it with NewRequestKey.
type RequestKey [16]byte

// NewRequestKey returns the key of a request. The parts are length-prefixed, so that
// no two lists of parts have the same bytes.
func NewRequestKey(parts ...string) RequestKey {
	h := sha256.New()
	var n [4]byte
	for _, p := range parts {
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return RequestKey(h.Sum(nil)[:16])
}

// Revocation services that a certificate's profile promises.
const (
	RevocationOCSP = 1 << iota
	RevocationCRL
)

// Certificate is one row of the ledger.
type Certificate struct {
	Serial  serial.Number
	Issuer  int32 // issuers.id: one generation of an issuing key
	Profile string
	// ProfileVersion is the first 12 hexadecimal digits of the profile's SHA-256.
	ProfileVersion string
	// Names are the subject alternative names with their kind, "dns:a.example",
	// "ip:192.0.2.1", "uri:spiffe://…", "email:…", in the order of the certificate.
	Names       []string
	SPKI        [sha256.Size]byte // SHA-256 of the SubjectPublicKeyInfo
	Caller      string
	Owner       string
	Service     string
	Environment string
	NotBefore   time.Time // whole seconds
	NotAfter    time.Time // whole seconds
	DER         []byte
	// Revocation holds RevocationOCSP and RevocationCRL.
	Revocation uint8
}

// Entry is a signed certificate on its way into the ledger, with the request that
// it answers.
type Entry struct {
	Certificate
	RequestKey RequestKey
	CSR        [sha256.Size]byte // SHA-256 of the CSR in DER
	// ReuseUntil is how long the key stands for this request; after that the same
	// key may make another certificate.
	ReuseUntil time.Time
}

// Found is what stands under a RequestKey.
type Found struct {
	Certificate Certificate
	CSR         [sha256.Size]byte
	// Failed says that an order with the key has failed: there is no certificate.
	Failed bool
}

// Result is the fate of one Entry of a batch: an Outcome, or an error that is this
// entry's alone.
type Result struct {
	Outcome
	Err error
}

// Outcome is what the ledger made of an Entry. Where Duplicate is true an earlier
// request with the same key and the same CSR had made the certificate given here,
// and the entry's own certificate must be thrown away.
type Outcome struct {
	Certificate Certificate
	Duplicate   bool
}

// Epoch is one start of one signer for one issuer.
type Epoch struct {
	ID      uint32
	Signer  string
	Issuer  int32
	Token   string // serial number of the HSM token
	Started time.Time
	// EpochReport is what the signer last reported. ReportedAt is when; zero: never.
	EpochReport
	ReportedAt time.Time
}

// EpochReport is what a signer says of the signatures of an epoch so far.
type EpochReport struct {
	// Signatures is how many were made, CRLs' included. Those of which nobody knows
	// whether they were made, because the process died meanwhile, are counted as made.
	Signatures int64
	// Committed became rows; Discarded did not and are recorded as strays; CRLs are
	// signatures of CRLs. What of Signatures is in none of the three is at work.
	Committed, Discarded, CRLs int64
	// Final says that there will be no more.
	Final bool
}

// Stray is a signature that has no row, and never left the signer.
type Stray struct {
	Serial serial.Number
	Reason StrayReason
	// Recorded is when the signer, or its successor, wrote it down.
	Recorded time.Time
}

// StrayReason says why a signature has no row.
type StrayReason string

// The reasons.
const (
	// StrayDuplicate: the request had a certificate already.
	StrayDuplicate StrayReason = "duplicate"
	// StrayRefused: the ledger refused the row, or the token signed wrongly.
	StrayRefused StrayReason = "refused"
	// StrayUnknown: it is not known whether the ledger stored it; it was not there when
	// the signer looked. A row that comes later ends the stray.
	StrayUnknown StrayReason = "unknown"
	// StrayDied: the process died between the signature, or the call for it, and the row.
	StrayDied StrayReason = "died"
)

// Issuer is one generation of an issuing key with its certificate.
type Issuer struct {
	ID   int32
	Name string // as profiles call it
	// State is one of IssuerPrepared, IssuerActive, IssuerRetired and IssuerClosed.
	State string
	DER   []byte
	// Chain holds the certificates from the issuer's issuer up to and including the root.
	Chain [][]byte
	// KeyURI finds the key in the token (RFC 7512), without a PIN.
	KeyURI  string
	Created time.Time
}

// OCSPSigner is a delegated OCSP signing certificate (RFC 6960 section 4.2.2.2).
type OCSPSigner struct {
	ID     int32
	Issuer int32
	DER    []byte
	KeyURI string
}

// Revocation is final: RFC 5280's certificateHold is not offered.
type Revocation struct {
	Serial    serial.Number
	Issuer    int32
	Reason    int16 // RFC 5280 CRLReason
	RevokedAt time.Time
	RevokedBy string
	Comment   string
	NotAfter  time.Time
	// Services are the certificate's RevocationOCSP and RevocationCRL: who is to be told.
	Services uint8
	// Sequence orders revocations as they were committed, without a later one ever
	// appearing before an earlier one: it is the cursor of Revocations.
	Sequence int64
}

// Filter selects certificates for List. Empty fields do not filter.
type Filter struct {
	// Name is one subject alternative name with its kind, "dns:a.example".
	Name          string
	Owner         string
	Caller        string
	ExpiresAfter  time.Time // notAfter > ExpiresAfter
	ExpiresBefore time.Time // notAfter < ExpiresBefore
}

// Listed is a certificate of a list, with its revocation where there is one.
type Listed struct {
	Certificate
	Revoked *Revocation
}

// Status is what an OCSP responder or a CRL says of a certificate.
type Status struct {
	Serial     serial.Number
	Issuer     int32
	NotBefore  time.Time
	NotAfter   time.Time
	Revocation uint8
	// Revoked is nil while the certificate is good.
	Revoked *Revocation
}

// OrderState is the state of an asynchronous order.
type OrderState string

// The states; the last two are final.
const (
	OrderPending OrderState = "pending"
	OrderIssued  OrderState = "issued"
	OrderFailed  OrderState = "failed"
)

// Order is an accepted request for asynchronous issue. It has its certificate as
// soon as the ledger has one under its request key.
type Order struct {
	ID         string // UUID
	Caller     string
	RequestKey RequestKey
	CSR        [sha256.Size]byte // SHA-256 of the CSR in DER; the key with another CSR is a Conflict
	// ReuseUntil is how long the key stands for this order; zero means MaxReuse.
	ReuseUntil time.Time
	RequestID  string // as the caller gave it
	// Request is the encoded queue message (certmill.queue.v1.SignRequest).
	Request []byte
	State   OrderState
	// Failure is the encoded certmill.queue.v1.Failure of a failed order.
	Failure     []byte
	Certificate *Certificate
	Created     time.Time
	Attempts    int
}

// Token is an enrollment token; the ledger never sees its secret.
type Token struct {
	ID        string            // UUID
	Hash      [sha256.Size]byte // SHA-256 of the secret
	Profile   string
	Names     []string
	Uses      int
	Used      int
	Expires   time.Time
	Owner     string
	CreatedBy string
	Created   time.Time
}

// AuditHead is a row of the audit chain and its hash, which covers all rows before it.
type AuditHead struct {
	Sequence int64
	Hash     [sha256.Size]byte
}

// SignedHead is a head that an issuer's key has signed: what it covers can be neither
// changed nor taken away without leaving a head that nothing fits.
type SignedHead struct {
	AuditHead
	// SignedAt is in whole microseconds.
	SignedAt  time.Time
	Issuer    int32
	Signature []byte
}

// AuditEntry is one link of the audit chain.
type AuditEntry struct {
	Sequence int64
	Time     time.Time
	Actor    string
	Action   string // for example "certificate.revoke"
	Subject  string // for example a serial
	Detail   string
	Hash     [sha256.Size]byte
}
