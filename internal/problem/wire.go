package problem

import (
	"errors"
	"net/http"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// domain marks our ErrorInfo details among those of proxies on the way.
const domain = "certmill"

// mapping is the one table from kinds to HTTP and gRPC. Overloaded is
// ResourceExhausted and Unavailable is Unavailable since Istio's agents retry on
// those two and never on Unauthenticated, InvalidArgument or PermissionDenied
// (istio/istio pkg/security/retry.go).
var mapping = map[Kind]struct {
	status int
	code   codes.Code
	title  string
}{
	Invalid:         {http.StatusBadRequest, codes.InvalidArgument, "The request is not valid"},
	Unauthenticated: {http.StatusUnauthorized, codes.Unauthenticated, "No usable credential"},
	Denied:          {http.StatusForbidden, codes.PermissionDenied, "Not allowed"},
	NotFound:        {http.StatusNotFound, codes.NotFound, "Not found"},
	Conflict:        {http.StatusConflict, codes.AlreadyExists, "Conflicts with an earlier request"},
	Overloaded:      {http.StatusTooManyRequests, codes.ResourceExhausted, "Overloaded"},
	Unavailable:     {http.StatusServiceUnavailable, codes.Unavailable, "Temporarily unavailable"},
	Internal:        {http.StatusInternalServerError, codes.Internal, "Internal error"},
}

func (k Kind) valid() bool { _, ok := mapping[k]; return ok }

// HTTPStatus returns the HTTP status code of the kind (RFC 9110 section 15).
func (k Kind) HTTPStatus() int { return mapping[k].status }

// Title returns the short text of the kind, the same for every occurrence (RFC 9457 section 3.1.3).
func (k Kind) Title() string { return mapping[k].title }

// Type returns the URI of the kind for RFC 9457's "type" member.
func (k Kind) Type() string { return "urn:certmill:problem:" + string(k) }

// ToStatus turns err into a gRPC status with ErrorInfo and, where a retry helps,
// RetryInfo. The cause stays behind.
func ToStatus(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	e := From(err)
	st := status.New(mapping[e.Kind].code, e.Detail)
	info := &errdetails.ErrorInfo{Reason: string(e.Kind), Domain: domain, Metadata: map[string]string{"field": e.Field, "rule": e.Rule}}
	var detailed *status.Status
	var derr error
	if e.RetryAfter > 0 {
		detailed, derr = st.WithDetails(info, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	} else {
		detailed, derr = st.WithDetails(info)
	}
	if derr != nil {
		return st
	}
	return detailed
}

// FromStatus is the other half of ToStatus, for clients. A status that is not ours
// gets the kind that its code stands for.
func FromStatus(err error) *Error {
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return From(err)
	}
	e := &Error{Kind: kindOfCode(st.Code()), Detail: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if k := Kind(d.Reason); d.Domain == domain && k.valid() {
				e.Kind, e.Field, e.Rule = k, d.Metadata["field"], d.Metadata["rule"]
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.RetryDelay.AsDuration()
		}
	}
	return e
}

func kindOfCode(c codes.Code) Kind {
	for k, m := range mapping {
		if m.code == c {
			return k
		}
	}
	switch c {
	case codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		return Unavailable
	case codes.OutOfRange, codes.FailedPrecondition:
		return Invalid
	default:
		return Internal
	}
}

// ToFailure turns err into its form between gateway and signer. The cause stays behind.
func ToFailure(err error) *queuev1.Failure {
	e := From(err)
	if e == nil {
		return nil
	}
	return &queuev1.Failure{Kind: string(e.Kind), Detail: e.Detail, Field: e.Field, Rule: e.Rule, RetryAfterMs: uint32(e.RetryAfter / time.Millisecond)}
}

// FromFailure is the other half of ToFailure. An unknown kind, from a newer signer,
// is Internal.
func FromFailure(f *queuev1.Failure) error {
	if f == nil {
		return nil
	}
	k := Kind(f.Kind)
	if !k.valid() {
		return &Error{Kind: Internal, Detail: "internal error; the request id finds it in the log", Cause: errors.New(f.Kind + ": " + f.Detail)}
	}
	return &Error{Kind: k, Detail: f.Detail, Field: f.Field, Rule: f.Rule, RetryAfter: time.Duration(f.RetryAfterMs) * time.Millisecond}
}
