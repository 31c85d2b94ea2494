package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/certmill/certmill/internal/hsmshim"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

const (
	// sickToken is behind a module that misbehaves on command, wellToken is its copy in a
	// module that does not.
	sickToken = "chaos"
	wellToken = "twins"
)

// oneSickTokenOfTwoStopsNobody gives every signer the issuer's key in two tokens, and
// makes one of them err, hang, sign wrongly, and be away at the start. No call fails, the
// other token goes on, `certmill status` and the metrics say which is out and why, and it
// is used again when it is well.
func oneSickTokenOfTwoStopsNobody(t *testing.T, r *drill) {
	s := r.stack
	shim, err := hsmshim.New(t.TempDir(), s.hsm.Module)
	if err != nil {
		t.Fatal(err)
	}
	module := filepath.Join(t.TempDir(), "second.so") // a file of its own, a module of its own
	copyFile(t, s.hsm.Module, module)
	s.cloneToken(t)
	signers := s.of("signer")
	for _, n := range signers {
		tokens := []settings{
			{"module": shim.Module, "token_label": sickToken, "pin_file": s.token.PINFile, "call_timeout": "500ms", "probe_interval": "300ms"},
			{"module": module, "token_label": wellToken, "pin_file": s.token.PINFile},
		}
		s.settings[n.name]["tokens"] = tokens
		if err := s.write(n.name); err != nil {
			t.Fatal(err)
		}
		n.mu.Lock()
		n.extra = shim.Env()
		n.mu.Unlock()
	}
	w := &ward{drill: r, shim: shim}
	for _, n := range signers {
		w.restart(t, n)
	}
	w.metric(t, signers, "certmill_hsm_breaker_state", sickToken, func(v float64) bool { return v == 0 })
	stop := w.load(t)
	defer stop()

	t.Log("the token errs: its breaker opens, and a test signature closes it")
	w.set(t, "C_Sign return 0x30")
	w.await(t, signers, sickToken, "a token that errs", func(m *certmillv1.TokenStatus) bool {
		return (m.GetCondition() == "down" || m.GetCondition() == "probing") && m.GetReason() != ""
	})
	w.metric(t, signers, "certmill_hsm_breaker_state", sickToken, func(v float64) bool { return v > 0 })
	w.goesOn(t)
	w.set(t)
	w.await(t, signers, sickToken, "a token that is well again", func(m *certmillv1.TokenStatus) bool {
		return m.GetCondition() == "ready" && m.GetRecoveries() > 0
	})
	w.metric(t, signers, "certmill_hsm_breaker_state", sickToken, func(v float64) bool { return v == 0 })

	t.Log("calls hang in the token: they are given up, and it comes back")
	w.set(t, "C_Sign hang after=3 times=2")
	w.metric(t, signers, "certmill_hsm_calls_abandoned_total", sickToken, func(v float64) bool { return v > 0 })
	w.goesOn(t)
	w.set(t)
	w.metric(t, signers, "certmill_hsm_breaker_state", sickToken, func(v float64) bool { return v == 0 })

	t.Log("the token signs wrongly: it is not used again by this process")
	w.set(t, "C_Sign flip after=3 times=1")
	w.await(t, signers, sickToken, "a token that signs wrongly", func(m *certmillv1.TokenStatus) bool {
		return m.GetCondition() == "failed" && m.GetReason() != ""
	})
	w.goesOn(t)

	t.Log("the token is away when signers start: they serve with the other, and open it when it comes")
	w.set(t, "C_OpenSession return 0xE0")
	for _, n := range signers {
		w.restart(t, n)
	}
	w.await(t, signers, sickToken, "a token that could not be opened", func(m *certmillv1.TokenStatus) bool {
		return m.GetCondition() == "down" && m.GetReason() != ""
	})
	w.metric(t, signers, "certmill_hsm_unopened", sickToken, func(v float64) bool { return v == 1 })
	w.goesOn(t)
	w.set(t)
	w.await(t, signers, sickToken, "a token that has come", func(m *certmillv1.TokenStatus) bool { return m.GetCondition() == "ready" })
	w.metric(t, signers, "certmill_hsm_unopened", sickToken, func(v float64) bool { return v == 0 })
	w.await(t, signers, sickToken, "work for the token that has come", func(m *certmillv1.TokenStatus) bool { return m.GetSignatures() > 0 })
	w.goesOn(t)
	stop()
}

// ward watches tokens while calls go on.
type ward struct {
	*drill
	shim  *hsmshim.Shim
	calls atomic.Int64 // that succeeded
}

func (w *ward) set(t *testing.T, rules ...string) {
	t.Helper()
	if err := w.shim.Set(rules...); err != nil {
		t.Fatal(err)
	}
}

// restart ends a node by SIGTERM and waits until the next process is ready.
func (w *ward) restart(t *testing.T, n *node) {
	t.Helper()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	old := n.process()
	n.revive()
	if err := w.stack.await(t.Context(), n.name, func() error {
		if n.process() == old {
			return errNotYet
		}
		return n.ready(t.Context())
	}); err != nil {
		t.Fatal(err)
	}
}

// load calls for certificates, each call once, until the function that it returns is
// called: none may fail.
func (w *ward) load(t *testing.T) (stop func()) {
	ctx, end := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var op atomic.Int64
	for worker := range 4 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(4, uint64(worker)))
			for pause(ctx, 20*time.Millisecond) {
				request, _, err := w.drill.load.request(60_000+int(op.Add(1)), random)
				if err != nil {
					t.Error(err)
					return
				}
				c := w.drill.load.callers[random.IntN(len(w.drill.load.callers))]
				callCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
				_, err = c.issue(callCtx, request)
				cancel()
				if err != nil {
					t.Errorf("%s at %s: %v", c.via, c.node, err)
					continue
				}
				w.calls.Add(1)
			}
		})
	}
	return sync.OnceFunc(func() {
		end()
		all.Wait()
		t.Logf("%d calls succeeded", w.calls.Load())
	})
}

// goesOn waits for thirty more certificates.
func (w *ward) goesOn(t *testing.T) {
	t.Helper()
	want := w.calls.Load() + 30
	w.until(t, "certificates from the other token", func() error {
		if n := w.calls.Load(); n < want {
			return fmt.Errorf("%d are missing", want-n)
		}
		return nil
	})
}

func (w *ward) until(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if err = ok(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}

// await waits until `certmill status` says of a token of every signer what ok wants; the
// other token must be ready then.
func (w *ward) await(t *testing.T, signers []*node, token, what string, ok func(*certmillv1.TokenStatus) bool) {
	t.Helper()
	w.until(t, what, func() error {
		m, err := w.status(t)
		if err != nil {
			return err
		}
		for _, n := range signers {
			i := slices.IndexFunc(m.Roles, func(r *certmillv1.RoleStatus) bool {
				return r.Role == "signer" && r.Name == n.name && r.State == "ready"
			})
			if i < 0 {
				return fmt.Errorf("no %s is ready", n.name)
			}
			sick, well := tokenOf(m.Roles[i], token), tokenOf(m.Roles[i], wellToken)
			if sick == nil || !ok(sick) || well.GetCondition() != "ready" {
				return fmt.Errorf("%s has the tokens %v", n.name, m.Roles[i].Tokens)
			}
		}
		return nil
	})
}

func tokenOf(r *certmillv1.RoleStatus, name string) *certmillv1.TokenStatus {
	for _, t := range r.Tokens {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// status asks the command line.
func (w *ward) status(t *testing.T) (*certmillv1.ServiceStatus, error) {
	s := w.stack
	out, err := s.command(t.Context(), "status", "-o", "json", "--gateway", s.byName["gateway-1"].ip+":"+grpcPort, "--server-name", "localhost",
		"--ca", s.dir.Path("root.pem"), "--cert", s.dir.Path("caller.pem"), "--key", s.dir.Path("caller.key"))
	if len(out) == 0 {
		return nil, err // exit codes 10 and 11 come with a status
	}
	m := &certmillv1.ServiceStatus{}
	return m, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(out, m)
}

// metric waits until a metric of a token is what ok wants at every signer.
func (w *ward) metric(t *testing.T, signers []*node, name, token string, ok func(float64) bool) {
	t.Helper()
	w.until(t, name, func() error {
		for _, n := range signers {
			body, _, err := n.ask(t.Context(), "/metrics")
			if err != nil {
				return err
			}
			found := false
			for line := range strings.Lines(body) {
				var value float64
				if rest, is := strings.CutPrefix(line, fmt.Sprintf("%s{token=%q} ", name, token)); is {
					if _, err := fmt.Sscan(rest, &value); err != nil {
						return err
					}
					found = true
					if !ok(value) {
						return fmt.Errorf("%s: %s", n.name, strings.TrimSpace(line))
					}
				}
			}
			if !found {
				return fmt.Errorf("%s has no %s of token %s", n.name, name, token)
			}
		}
		return nil
	})
}

// cloneToken makes a copy of the stack's token with a label and serial of its own, keys
// included, as a vendor's tool clones an HSM.
func (s *stack) cloneToken(t *testing.T) {
	t.Helper()
	found, err := filepath.Glob(s.dir.Path("softhsm", "*", "token.object"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d tokens, %v", len(found), err)
	}
	from := filepath.Dir(found[0])
	uuid := filepath.Base(from)
	serialOf := func(uuid string) string { return uuid[19:23] + uuid[24:] } // SoftHSM's rule
	other := uuid[:len(uuid)-1] + map[bool]string{true: "1", false: "0"}[strings.HasSuffix(uuid, "0")]
	to := filepath.Join(filepath.Dir(from), other)
	files, err := os.ReadDir(from)
	if err := errors.Join(err, os.Mkdir(to, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		copyFile(t, filepath.Join(from, f.Name()), filepath.Join(to, f.Name()))
	}
	object := filepath.Join(to, "token.object")
	data, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{{fmt.Sprintf("%-32s", sickToken), fmt.Sprintf("%-32s", wellToken)}, {serialOf(uuid), serialOf(other)}} {
		if bytes.Count(data, []byte(change[0])) != 1 {
			t.Fatalf("the token's file has %q %d times", change[0], bytes.Count(data, []byte(change[0])))
		}
		data = bytes.Replace(data, []byte(change[0]), []byte(change[1]), 1)
	}
	if err := os.WriteFile(object, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}
