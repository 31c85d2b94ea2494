// Package problem is the project's vocabulary of failures.
//
// A failure gets its kind once, where the cause is known; everywhere else it is
// wrapped with fmt.Errorf("doing x: %w", err). What has no kind is Internal: it is
// logged in full at the edge and never sent to a caller.
package problem

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Kind classifies a failure. The set is closed: it is a metric label and part of
// the API.
type Kind string

// The kinds, with what a caller is to do about each.
const (
	Invalid         Kind = "invalid"         // the request is wrong; change it
	Unauthenticated Kind = "unauthenticated" // no usable credential; get one
	Denied          Kind = "denied"          // the credential does not reach this far
	NotFound        Kind = "not_found"       // there is no such thing
	Conflict        Kind = "conflict"        // it contradicts what was done before
	Overloaded      Kind = "overloaded"      // the service is full; try again after RetryAfter
	Unavailable     Kind = "unavailable"     // a part is down or late; the same request may be repeated
	Internal        Kind = "internal"        // a defect of the service
)

// Kinds lists every kind, in the order above.
var Kinds = []Kind{Invalid, Unauthenticated, Denied, NotFound, Conflict, Overloaded, Unavailable, Internal}

// Error is a failure that may be shown to the caller. It is immutable once made.
type Error struct {
	Kind Kind
	// Field names the part of the input that is wrong, as the caller knows it, for
	// example "csr.public_key". Empty where no field is to blame.
	Field string
	// Rule is a stable word for the rule that was broken, for example "rsa_min_2048".
	Rule string
	// Detail says in a sentence what is wrong and, where it helps, what to do next.
	// It never holds a secret.
	Detail string
	// RetryAfter is how long to wait before trying again; zero where that is no use.
	RetryAfter time.Duration
	// Cause is logged and never sent.
	Cause error
}

// Error returns the detail with the field and the rule, and the cause for the log.
func (e *Error) Error() string {
	s := string(e.Kind)
	if e.Field != "" {
		s += " " + e.Field
	}
	if e.Rule != "" {
		s += " (" + e.Rule + ")"
	}
	s += ": " + e.Detail
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is reports whether target is an *Error of the same kind and, where target names
// them, of the same field and rule. errors.Is(err, &Error{Kind: Invalid}) asks for
// the kind alone.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && (t.Field == "" || t.Field == e.Field) && (t.Rule == "" || t.Rule == e.Rule)
}

// New makes an error of a kind without a field.
func New(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// Rejected makes an Invalid error that names the field and the rule.
func Rejected(field, rule, format string, args ...any) *Error {
	return &Error{Kind: Invalid, Field: field, Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// Forbidden makes a Denied error that names the field and the rule.
func Forbidden(field, rule, format string, args ...any) *Error {
	return &Error{Kind: Denied, Field: field, Rule: rule, Detail: fmt.Sprintf(format, args...)}
}

// Busy makes an Overloaded error; rule names the bound that was reached.
func Busy(rule string, retryAfter time.Duration, format string, args ...any) *Error {
	return &Error{Kind: Overloaded, Rule: rule, RetryAfter: retryAfter, Detail: fmt.Sprintf(format, args...)}
}

// Down makes an Unavailable error: the part named is down or late. cause is logged
// and never sent.
func Down(part string, retryAfter time.Duration, cause error) *Error {
	return &Error{Kind: Unavailable, Rule: part, RetryAfter: retryAfter, Detail: part + " is not available; repeat the request", Cause: cause}
}

// From returns the *Error in err's chain. A context that ended is Unavailable, and
// what has no kind is Internal with a detail that gives nothing away. From(nil) is nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Kind: Unavailable, Rule: "deadline", Detail: "the deadline passed before the work was done; repeat the request", RetryAfter: time.Second, Cause: err}
	}
	if errors.Is(err, context.Canceled) {
		return &Error{Kind: Unavailable, Rule: "canceled", Detail: "the caller went away", Cause: err}
	}
	return &Error{Kind: Internal, Detail: "internal error; the request id finds it in the log", Cause: err}
}

// KindOf returns the kind of err, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	return From(err).Kind
}
