package problem

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestEveryKindCrossesEveryWire(t *testing.T) {
	statuses, seen := map[int]Kind{}, map[codes.Code]Kind{}
	for _, k := range Kinds {
		in := &Error{Kind: k, Field: "csr.public_key", Rule: "rsa_min_2048", Detail: "too small", RetryAfter: 1500 * time.Millisecond, Cause: errors.New("pin 1234")}
		if other, dup := statuses[k.HTTPStatus()]; dup || k.HTTPStatus() < 400 || k.Title() == "" {
			t.Errorf("%s has HTTP status %d, as has %q", k, k.HTTPStatus(), other)
		}
		statuses[k.HTTPStatus()] = k

		st := ToStatus(fmt.Errorf("issuing: %w", in))
		if other, dup := seen[st.Code()]; dup {
			t.Errorf("%s and %s share the code %s", k, other, st.Code())
		}
		seen[st.Code()] = k
		failure := ToFailure(in)
		for wire, out := range map[string]error{"gRPC": FromStatus(st.Err()), "queue": FromFailure(failure)} {
			if !errors.Is(out, &Error{Kind: k, Field: in.Field, Rule: in.Rule}) || From(out).Detail != in.Detail || From(out).RetryAfter != in.RetryAfter {
				t.Errorf("%s over %s came back as %#v", k, wire, out)
			}
		}
		if strings.Contains(st.String()+failure.String(), "1234") {
			t.Errorf("%s sends its cause", k)
		}
	}
}

func TestWhatHasNoKindIsInternalAndHidden(t *testing.T) {
	err := fmt.Errorf("opening: %w", errors.New("password=hunter2"))
	e := From(err)
	if e.Kind != Internal || strings.Contains(e.Detail, "hunter2") || !errors.Is(e, err) {
		t.Errorf("%#v", e)
	}
	if strings.Contains(ToStatus(err).String(), "hunter2") {
		t.Error("the status shows the cause")
	}
}

func TestContextsAreUnavailable(t *testing.T) {
	for _, err := range []error{context.DeadlineExceeded, context.Canceled} {
		if k := KindOf(fmt.Errorf("waiting: %w", err)); k != Unavailable {
			t.Errorf("%v is %s", err, k)
		}
	}
	if KindOf(nil) != "" || From(nil) != nil || ToFailure(nil) != nil || FromFailure(nil) != nil {
		t.Error("nil has a kind")
	}
}

func TestForeignStatusesGetTheKindOfTheirCode(t *testing.T) {
	for c, k := range map[codes.Code]Kind{codes.DeadlineExceeded: Unavailable, codes.FailedPrecondition: Invalid, codes.DataLoss: Internal, codes.ResourceExhausted: Overloaded} {
		if got := FromStatus(status.Error(c, "x")).Kind; got != k {
			t.Errorf("%s is %s, not %s", c, got, k)
		}
	}
	if got := KindOf(FromFailure(ToFailure(&Error{Kind: "future", Detail: "d"}))); got != Internal {
		t.Errorf("a kind from a newer peer is %s", got)
	}
}

func TestIsAsksForWhatTheTargetNames(t *testing.T) {
	err := fmt.Errorf("x: %w", Rejected("lifetime", "max", "too long"))
	for target, want := range map[*Error]bool{
		{Kind: Invalid}:                                 true,
		{Kind: Invalid, Field: "lifetime"}:              true,
		{Kind: Invalid, Field: "lifetime", Rule: "max"}: true,
		{Kind: Invalid, Field: "csr"}:                   false,
		{Kind: Denied}:                                  false,
		{Kind: Invalid, Field: "lifetime", Rule: "min"}: false,
	} {
		if errors.Is(err, target) != want {
			t.Errorf("Is(%+v) is not %v", *target, want)
		}
	}
}
