package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/problem"
)

// printer writes a command's result in the form that -o asks for.
type printer struct {
	json     bool
	out, err io.Writer
}

func newPrinter(c *cobra.Command) printer {
	form, _ := c.Flags().GetString("output")
	return printer{json: form == "json", out: c.OutOrStdout(), err: c.ErrOrStderr()}
}

// writer writes lines of text for a person.
type writer struct {
	to  io.Writer
	err error
}

func (w *writer) line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.to, format+"\n", args...)
	}
}

// result writes value as JSON, or lets text write for a person. value may be a
// protobuf message: its JSON is that of the REST API.
func (p printer) result(value any, text func(*writer)) error {
	if !p.json {
		w := &writer{to: p.out}
		text(w)
		return w.err
	}
	if m, ok := value.(proto.Message); ok {
		data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return err
		}
		value = json.RawMessage(data)
	}
	encoder := json.NewEncoder(p.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// failure writes an error to standard error, with what to do next.
func (p printer) failure(err error) {
	var e *problem.Error
	known := errors.As(err, &e)
	if !known {
		e = &problem.Error{}
	}
	// What a gateway answered stands for itself. Anything else is told with all that
	// wraps it: on the command line there is no log to look the cause up in.
	text, answered := err.Error(), known && (err == error(e) || isLost(err, e)) && e.Cause == nil
	if answered {
		text = e.Detail
	}
	if p.json {
		_ = json.NewEncoder(p.err).Encode(map[string]any{
			"kind": e.Kind, "detail": text, "field": e.Field, "rule": e.Rule,
			"retry_after_seconds": e.RetryAfter.Seconds(), "exit_code": exitCode(err),
		})
		return
	}
	if answered && e.Field != "" {
		text = e.Field + ": " + text
	}
	if answered && e.Rule != "" {
		text += " (rule " + e.Rule + ")"
	}
	fmt.Fprintln(p.err, "certmill:", text)
	var lost *lostAnswer
	switch next := advice(e); {
	case errors.As(err, &lost):
		fmt.Fprintln(p.err, lost.advice())
	case answered && next != "":
		fmt.Fprintln(p.err, next)
	}
}

// isLost reports whether err is a lost answer whose cause is what a gateway answered.
func isLost(err error, e *problem.Error) bool {
	var lost *lostAnswer
	return errors.As(err, &lost) && lost.cause == error(e)
}

// advice says what to do about a failure.
func advice(e *problem.Error) string {
	switch e.Rule {
	case "token", "token_unknown", "token_used", "token_expired":
		return "→ ask an operator for a new token (`certmill token create`); one that is used up or expired does not come back"
	case "token_names", "token_profile", "token_owner":
		if e.Kind == problem.Denied {
			return "→ the token is good and not for this; an operator sees what it is for with `certmill token list`"
		}
	case "expired", "revoked", "unknown_certificate":
		if e.Kind == problem.Unauthenticated {
			return "→ the certificate or token that you showed is no good any more: get a new one, by an enrollment token (--token-file) where there is no other way"
		}
	}
	switch e.Kind {
	case problem.Unauthenticated:
		return "→ give a client certificate (--cert, --key) or a token (--token-file) that the gateway trusts"
	case problem.Denied:
		return "→ the gateway knows you and does not allow this: see `operators` in its configuration and the rules of the profile"
	case problem.Overloaded:
		return fmt.Sprintf("→ the service is full; repeat the command in %s", max(e.RetryAfter, time.Second))
	case problem.Unavailable:
		return "→ is the gateway up (`certmill dev`, or its /readyz)? Repeating the same command is safe"
	default:
		return ""
	}
}

func when(t time.Time) string {
	d := time.Until(t).Round(time.Second)
	if d > 0 {
		return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), span(d))
	}
	return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), span(-d))
}

// span writes a duration with its two largest units.
func span(d time.Duration) string {
	switch day := 24 * time.Hour; {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return d.String()
	}
}
