// Package judge decides whether a run of chaos has broken a promise of certmill. It
// reads the history of every call that the clients have made, and the ledger
// afterwards, and knows nothing of how either came to be.
package judge

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Kind is what an Event tells of.
type Kind string

// The kinds.
const (
	Issue  Kind = "issue"  // a certificate was asked for
	Submit Kind = "submit" // an order was placed
	Order  Kind = "order"  // an order was asked after
	Revoke Kind = "revoke"
	OCSP   Kind = "ocsp"
	Fault  Kind = "fault" // At and Took are its beginning and length; Name says what it was
	Stall  Kind = "stall" // the clients themselves did not run, from At for Took: the machine was too busy
	Leak   Kind = "leak"  // a gauge that must be 0 at rest: Node, Name, Value
)

// OK is the outcome of a call that got what it asked for. Others are the kinds of
// internal/problem, and Timeout and Broken.
const (
	OK      = "ok"
	Timeout = "timeout" // no answer before the deadline
	Broken  = "broken"  // the connection was refused or cut
)

// OCSP outcomes.
const (
	Good    = "good"
	Revoked = "revoked"
)

// Event is one call of a client, or what else has to be known: one line of the history.
type Event struct {
	At   time.Time     `json:"at"` // when it began
	Took time.Duration `json:"took"`
	Kind Kind          `json:"kind"`
	// Op numbers the operation; its calls are attempts at one thing.
	Op      int    `json:"op,omitempty"`
	Node    string `json:"node,omitempty"`    // whom it asked
	Via     string `json:"via,omitempty"`     // rest or grpc
	Key     string `json:"key,omitempty"`     // the idempotency key
	Name    string `json:"name,omitempty"`    // the DNS name asked for; of a fault its name
	Profile string `json:"profile,omitempty"` // the profile asked for
	// SPKI is the SHA-256 of the key in the CSR.
	SPKI []byte `json:"spki,omitempty"`
	// Deadline is how long the call could take.
	Deadline time.Duration `json:"deadline,omitempty"`
	Outcome  string        `json:"outcome,omitempty"`
	Detail   string        `json:"detail,omitempty"`
	Serial   string        `json:"serial,omitempty"`
	DER      []byte        `json:"der,omitempty"`   // the certificate that was released
	Order    string        `json:"order,omitempty"` // its id
	Value    float64       `json:"value,omitempty"`
}

// End returns when the call ended.
func (e *Event) End() time.Time { return e.At.Add(e.Took) }

// Recorder writes a history, one event a line, and keeps it. It is safe for concurrent use.
type Recorder struct {
	mu     sync.Mutex
	out    *json.Encoder
	events []Event
	err    error
}

// NewRecorder makes a Recorder that writes to w.
func NewRecorder(w io.Writer) *Recorder { return &Recorder{out: json.NewEncoder(w)} }

// Add records an event.
func (r *Recorder) Add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	r.err = errors.Join(r.err, r.out.Encode(&e))
}

// Events returns what was recorded so far, in the order in which it ended, and the
// first error of writing.
func (r *Recorder) Events() ([]Event, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...), r.err
}

// Read reads a history back.
func Read(r io.Reader) ([]Event, error) {
	var events []Event
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("line %d of the history: %w", n, err)
		}
		events = append(events, e)
	}
	return events, lines.Err()
}
