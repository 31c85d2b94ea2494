package client

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRetryRepeatsWhatMayPassAndNothingElse(t *testing.T) {
	for code, repeated := range map[codes.Code]bool{
		codes.Unavailable: true, codes.ResourceExhausted: true, codes.DeadlineExceeded: true,
		codes.InvalidArgument: false, codes.PermissionDenied: false, codes.AlreadyExists: false, codes.Internal: false, codes.Unauthenticated: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := retrying(t, 10*time.Second)
			calls, began := 0, time.Now()
			err := c.Retry(t.Context(), func(context.Context) error { calls++; return status.Error(code, "x") })
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("%s: no Error: %v", code, err)
			}
			if (calls > 1) != repeated {
				t.Errorf("%s: %d calls", code, calls)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("%s: tried for %s, beyond the timeout", code, took)
			}
		})
	}
}

func TestRetryIsNeverSoonerThanAdvised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := retrying(t, 10*time.Second)
		began, calls := time.Now(), 0
		err := c.Retry(t.Context(), func(context.Context) error {
			if calls++; calls == 1 {
				return problem.ToStatus(problem.Busy("x", 3*time.Second, "full")).Err()
			}
			return nil
		})
		if took := time.Since(began); err != nil || calls != 2 || took < 3*time.Second || took > 3200*time.Millisecond {
			t.Errorf("after %s and %d calls: %v; the advised pause is 3s", took, calls, err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a pause beyond the deadline is not begun
		c, began := retrying(t, 2*time.Second), time.Now()
		err := c.Retry(t.Context(), func(context.Context) error { return problem.ToStatus(problem.Busy("x", 3*time.Second, "full")).Err() })
		if !errors.Is(err, &Error{Kind: Overloaded}) || time.Since(began) != 0 {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestRetryBoundsEachTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, calls := retrying(t, 30*time.Second), 0
		err := c.Retry(t.Context(), func(ctx context.Context) error {
			if calls++; calls == 1 { // a gateway that says nothing
				<-ctx.Done()
				return status.FromContextError(ctx.Err()).Err()
			}
			return nil
		})
		if err != nil || calls != 2 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}

func retrying(t *testing.T, timeout time.Duration) *Client {
	cfg, err := Config{Gateway: "a:1", Timeout: timeout}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return &Client{cfg: cfg}
}

func TestARetryIsTheSameRequest(t *testing.T) {
	ca := newTestCA(t, time.Hour)
	lost := 0
	ca.set(func() {
		ca.after = func(*certmillv1.IssueRequest) error {
			if lost++; lost <= 2 {
				return problem.Down("answer", 10*time.Millisecond, nil)
			}
			return nil
		}
	})
	c, err := New(ca.config())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cert, err := c.Issue(t.Context(), Request{DNSNames: []string{"a.test"}})
	if err != nil {
		t.Fatal(err)
	}
	asks := ca.asks()
	if len(asks) != 3 || asks[0].id == "" || asks[1].id != asks[0].id || asks[2].csr != asks[0].csr {
		t.Errorf("asked %d times, not all the same", len(asks))
	}
	if cert.Leaf().DNSNames[0] != "a.test" || cert.TLS.PrivateKey == nil || cert.RenewAt.Before(time.Now()) {
		t.Errorf("got %+v", cert)
	}
	if again, err := c.Issue(t.Context(), Request{DNSNames: []string{"a.test"}}); err != nil || again.Serial == cert.Serial {
		t.Errorf("another Issue got %+v, %v", again, err)
	}
}

func TestIssueRefusesAnAnswerForAnotherKey(t *testing.T) {
	ca := newTestCA(t, time.Hour)
	c, err := New(ca.config())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Issue(t.Context(), Request{DNSNames: []string{"a.test"}, RequestID: "one"}); err != nil {
		t.Fatal(err)
	}
	// The test's CA does not look at the CSR of a request id that it knows.
	if _, err := c.Issue(t.Context(), Request{DNSNames: []string{"a.test"}, RequestID: "one"}); !errors.Is(err, errOtherKey) {
		t.Errorf("got %v", err)
	}
}

func TestAGatewayIsBelievedByTheFileAlone(t *testing.T) {
	ca, other := newTestCA(t, time.Hour), newTestCA(t, time.Hour)
	cfg := ca.config()
	cfg.CAFile, cfg.Timeout = other.file("roots.pem"), 300*time.Millisecond
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.TrustBundle(t.Context()); err == nil {
		t.Error("a gateway of another CA is believed")
	}
	if len(ca.asks()) != 0 {
		t.Error("a token went to a gateway that is not believed")
	}
}

func TestConfigsThatAreWrong(t *testing.T) {
	ca := newTestCA(t, time.Hour)
	empty := ca.file("empty")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no port":            func(c *Config) { c.Gateway = "ca.test" },
		"half a pair":        func(c *Config) { c.CertFile = "c.pem" },
		"a negative timeout": func(c *Config) { c.Timeout = -1 },
		"no token":           func(c *Config) { c.TokenFile = ca.file("none") },
		"an empty token":     func(c *Config) { c.TokenFile = empty },
		"no roots":           func(c *Config) { c.CAFile = ca.file("none") },
		"empty roots":        func(c *Config) { c.CAFile = empty },
		"no certificate":     func(c *Config) { c.CertFile, c.KeyFile = "none", "none" },
	} {
		cfg := ca.config()
		change(&cfg)
		if c, err := New(cfg); err == nil {
			_ = c.Close()
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := Open(t.Context(), Config{Gateway: ca.address, CAFile: ca.file("roots.pem")}, Request{}); !errors.Is(err, errNoCredential) {
		t.Errorf("without a credential: %v", err)
	}
}
