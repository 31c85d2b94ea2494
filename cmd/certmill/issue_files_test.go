package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

func TestALifetimeMayBeGivenInDays(t *testing.T) {
	for text, want := range map[string]time.Duration{"30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "90m": 90 * time.Minute} {
		var l lifetimeFlag
		if err := l.Set(text); err != nil || l.D() != want {
			t.Errorf("%s: %s, %v", text, l.D(), err)
		}
	}
	var l lifetimeFlag
	if err := l.Set("soon"); err == nil || l.String() != "" {
		t.Errorf("%q, %v", l.String(), err)
	}
}

func TestAKeyIsKeptWhereTheAnswerMayBeLost(t *testing.T) {
	for name, c := range map[string]struct {
		cause error
		kept  bool
	}{
		"the gateway went away":   {problem.Down("gateway", 0, nil), true},
		"it was full at the end":  {problem.Busy("in_flight", 0, "full"), true},
		"a defect":                {errors.New("x"), true},
		"the request was refused": {problem.Rejected("csr", "names", "no"), false},
		"the caller was refused":  {problem.Forbidden("csr", "names", "no"), false},
		"a conflict":              {problem.New(problem.Conflict, "no"), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := requestFlags{command: "issue", keyOut: filepath.Join(dir, "a.key"), out: filepath.Join(dir, "a.pem"), profile: "server", names: requestNames{dns: []string{"a.test"}}, keyType: "ecdsa-p256"}
			request, err := r.request(nil)
			if err != nil {
				t.Fatal(err)
			}
			err = r.failed(c.cause, request.Csr)
			if !errors.Is(err, c.cause) {
				t.Errorf("the cause is lost: %v", err)
			}
			_, keyErr := os.Stat(r.keyOut)
			csr, csrErr := os.ReadFile(filepath.Join(dir, "a.csr"))
			if kept := keyErr == nil && csrErr == nil && string(csr) == string(request.Csr); kept != c.kept {
				t.Errorf("key: %v, CSR: %v", keyErr, csrErr)
			}
			var lost *lostAnswer
			if errors.As(err, &lost) != c.kept || c.kept && !strings.Contains(lost.advice(), "--request-id "+request.RequestId) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAnOutFileThatCannotBeWrittenIsToldBefore(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there.pem")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for out, bad := range map[string]bool{filepath.Join(dir, "none", "a.pem"): true, there: true, dir: true, filepath.Join(dir, "new.pem"): false, "-": false, os.DevNull: false} {
		r := requestFlags{out: out}
		err := r.checkOut()
		if (err != nil) != bad || bad && exitCode(err) != exitUsage {
			t.Errorf("%s: %v", out, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".certmill-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAdviceFitsTheFailure(t *testing.T) {
	for rule, want := range map[string]string{"token_used": "new token", "token_expired": "new token", "expired": "get a new one", "missing": "--cert"} {
		if got := advice(&problem.Error{Kind: problem.Unauthenticated, Rule: rule}); !strings.Contains(got, want) {
			t.Errorf("%s: %q", rule, got)
		}
	}
	if got := advice(problem.Forbidden("csr.names", "token_names", "x")); !strings.Contains(got, "token list") {
		t.Errorf("%q", got)
	}
}
