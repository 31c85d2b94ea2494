package client

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/internal/problem"
)

func TestFilesOfAContextLieBesideItAndFlagsWin(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cli.yaml")
	if err := os.WriteFile(file, []byte("gateway: a:1\nca_file: root.pem\ncert_file: /abs/c.pem\nkey_file: k.pem\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CERTMILL_CLI_GATEWAY", "b:2")
	got, err := Load(file, []string{"key_file=here.pem"})
	if err != nil {
		t.Fatal(err)
	}
	want := Context{Gateway: "b:2", CAFile: filepath.Join(dir, "root.pem"), CertFile: "/abs/c.pem", KeyFile: "here.pem", Timeout: Default().Timeout}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestWithoutAGatewayTheErrorSaysWhatToDo(t *testing.T) {
	if _, err := Load("", nil); !errors.Is(err, ErrNoContext) {
		t.Errorf("no context: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a context file that is not there: %v", err)
	}
	if _, err := Load("", []string{"gateway=a:1", "cert_file=c"}); err == nil {
		t.Error("a certificate without its key is accepted")
	}
}

func TestRetryRepeatsWhatMayPassAndNothingElse(t *testing.T) {
	for code, repeated := range map[codes.Code]bool{
		codes.Unavailable: true, codes.ResourceExhausted: true, codes.DeadlineExceeded: true,
		codes.InvalidArgument: false, codes.PermissionDenied: false, codes.AlreadyExists: false, codes.Internal: false, codes.Unauthenticated: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := &Client{timeout: 10 * time.Second}
			calls, began := 0, time.Now()
			err := c.Retry(t.Context(), func(context.Context) error { calls++; return status.Error(code, "x") })
			if problem.KindOf(err) == "" {
				t.Errorf("%s: no problem: %v", code, err)
			}
			if (calls > 1) != repeated {
				t.Errorf("%s: %d calls", code, calls)
			}
			if took := time.Since(began); took > 11*time.Second {
				t.Errorf("%s: tried for %s, beyond the timeout", code, took)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c := &Client{timeout: 10 * time.Second}
		began, calls := time.Now(), 0
		err := c.Retry(t.Context(), func(context.Context) error {
			if calls++; calls == 1 {
				return problem.ToStatus(problem.Busy("x", 3*time.Second, "full")).Err()
			}
			return nil
		})
		if took := time.Since(began); err != nil || calls != 2 || took < 1500*time.Millisecond {
			t.Errorf("after %s and %d calls: %v; the advised pause is 3s", took, calls, err)
		}
	})
}
