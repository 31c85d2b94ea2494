package check

import (
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/schedule"
	"github.com/certmill/certmill/loadtest/target"
)

// bubbleClock is the virtual time of a synctest bubble.
type bubbleClock struct{}

func (bubbleClock) Now() time.Time { return time.Now() }

func (bubbleClock) SleepUntil(_ context.Context, t time.Time) { time.Sleep(time.Until(t)) }

// A responder that never answers must cost the service under load nothing: not its
// latency, nor the run's end.
func TestChecksThatHangAreNotTheServicesDoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const asked = 600
		a, p := newCA(t), pool(t)
		answers := make([][]byte, asked)
		for i := range answers {
			answers[i] = a.issue(t, p.Get(int64(i)), int64(i+1), nil)
		}
		answers[asked-1] = answers[0] // serials are looked at however far behind the checks are
		never := func(ctx context.Context, _ *big.Int, _ *x509.Certificate) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c := New(Config{Share: 1, AnyNames: true, Status: never, StatusWithin: 5 * time.Second})
		op := func(_ context.Context, call engine.Call) engine.Outcome {
			time.Sleep(time.Millisecond)
			return engine.Outcome{OK: 1, Then: func() {
				c.Offer(&target.Request{CSR: p.Get(call.Seq)}, target.Answer{DER: [][]byte{answers[call.Seq], a.cert.Raw}})
			}}
		}
		rec, start := engine.NewRecorder(), time.Now()
		cfg := engine.Config{Duration: 3 * time.Second, Timeout: 10 * time.Second, InFlight: 8, Clock: bubbleClock{}}
		if err := engine.Open(t.Context(), cfg, schedule.Constant(asked/3, schedule.Even).Arrivals(1), op, rec); err != nil {
			t.Fatal(err)
		}
		s := c.Close()
		if took := time.Since(start); took > cfg.Duration+closing {
			t.Errorf("a run of %s took %s", cfg.Duration, took)
		}
		if m := rec.Snapshot(time.Now()); m.OK != asked || m.Latency.Max > 1.01 || m.Late.Max > 0.01 {
			t.Errorf("%d answered, latency %+v, late %+v; the service takes 1 ms", m.OK, m.Latency, m.Late)
		}
		if s.Seen != asked || s.Wrong != 1 || s.Checked != 1 || s.Unmade != Askers || s.Skipped != asked-1-Askers {
			t.Errorf("%+v", s)
		}
	})
}

func TestACheckThatCouldNotBeMadeIsNoWrongAnswer(t *testing.T) {
	a, p := newCA(t), pool(t)
	der := a.issue(t, p.Get(0), 5, nil)
	row := func(err error) func(context.Context, *big.Int) ([]byte, error) {
		return func(context.Context, *big.Int) ([]byte, error) { return nil, err }
	}
	revoked, err := ocsp.CreateResponse(a.cert, a.cert, ocsp.Response{Status: ocsp.Revoked, SerialNumber: big.NewInt(5), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}, a.key)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(context.Context, *big.Int, *x509.Certificate) ([]byte, error) {
		return nil, errors.New("connection refused")
	}
	var asked bool
	revokedThenSlow := func(ctx context.Context, _ *big.Int, _ *x509.Certificate) ([]byte, error) {
		if !asked {
			asked = true
			return revoked, nil
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	const within = 50 * time.Millisecond
	whole := [][]byte{der, a.cert.Raw}
	for name, tc := range map[string]struct {
		cfg           Config
		chain         [][]byte
		wrong, unmade string
	}{
		"no ledger":               {Config{Row: row(status.Error(codes.Unavailable, "no such host"))}, whole, "", "no such host"},
		"not allowed to look":     {Config{Row: row(status.Error(codes.PermissionDenied, "denied"))}, whole, "", "denied"},
		"no row":                  {Config{Row: row(status.Error(codes.NotFound, "none \x1b[2J"))}, whole, `none \x1b[2J`, ""},
		"no responder":            {Config{Status: refused, StatusWithin: within}, whole, "", "connection refused"},
		"no issuer to ask for":    {Config{Status: refused, StatusWithin: within}, whole[:1], "", "no issuer"},
		"revoked, then no answer": {Config{Status: revokedThenSlow, StatusWithin: within}, whole, "not good", ""},
		"wrong in what could be checked": {Config{Row: row(status.Error(codes.Unavailable, "away")), Names: []string{"x.test"}},
			whole, "names", ""},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cfg.Share = 1
			c := New(tc.cfg)
			c.Offer(&target.Request{CSR: p.Get(0)}, target.Answer{DER: tc.chain})
			s := c.Close()
			if tc.wrong != "" {
				if s.Wrong != 1 || s.Unmade != 0 || !strings.Contains(s.Examples[0].Why, tc.wrong) {
					t.Errorf("%+v, want it wrong: %s", s, tc.wrong)
				}
			} else if s.Wrong != 0 || s.Checked != 0 || s.Unmade != 1 || !strings.Contains(s.UnmadeWhy, tc.unmade) {
				t.Errorf("%+v, want it unmade: %s", s, tc.unmade)
			}
		})
	}
}

func TestEvidenceIsKeptOfWhatIsNoCertificate(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	for name, tc := range map[string]struct {
		answer target.Answer
		want   string
	}{
		"text":               {target.Answer{PEM: []byte("hello \x1b[31m\x00")}, `"hello \x1b[31m\x00"`},
		"nothing":            {target.Answer{}, `""`},
		"long":               {target.Answer{PEM: []byte(long)}, `"` + long[:quoted] + `"`},
		"DER of another":     {target.Answer{DER: [][]byte{{0x30, 0x00}}}, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"},
		"huge DER of nobody": {target.Answer{DER: [][]byte{[]byte(long + long)}}, `"` + long[:quoted] + `"`},
	} {
		c := New(Config{})
		c.Offer(&target.Request{}, tc.answer)
		if s := c.Close(); s.Wrong != 1 || s.Examples[0].Evidence != tc.want {
			t.Errorf("%s: %+v", name, s)
		}
	}
}
