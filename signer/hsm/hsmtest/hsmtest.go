// Package hsmtest is the contract of package hsm: one body of tests for every kind of
// token, soft or hard. What a backend cannot do is left out by name, never in silence.
package hsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"go.uber.org/goleak"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/signer/hsm"
)

// Backend is a kind of token.
type Backend struct {
	Name string
	// Config names a token that nobody else uses. The suite makes keys in it and leaves
	// them there.
	Config func(t *testing.T) hsm.Config
	// Lacks lists the algorithms that the token does not have.
	Lacks []hsm.Algorithm
	// NoPSS says that the token does not sign by RSA-PSS.
	NoPSS bool
	// NoPIN says that the token knows no wrong PIN.
	NoPIN bool
	// TakeAway makes the token vanish, but for its sessions, and returns how to put it
	// back. nil where that cannot be done.
	TakeAway func(t *testing.T, cfg hsm.Config) (putBack func())
}

// patience bounds every wait for a recovery.
const patience = 20 * time.Second

// Run runs the suite.
func Run(t *testing.T, b Backend) {
	t.Run("every algorithm signs what verifies", func(t *testing.T) { algorithms(t, b) })
	t.Run("a key is found again by its URI", func(t *testing.T) { foundAgain(t, b) })
	t.Run("a key's label is used once", func(t *testing.T) { labelOnce(t, b) })
	t.Run("a key that is not there is an error", func(t *testing.T) { missingKey(t, b) })
	t.Run("many callers share the sessions", func(t *testing.T) { concurrent(t, b) })
	t.Run("a context that has ended ends the wait", func(t *testing.T) { ended(t, b) })
	for _, copies := range []bool{false, true} {
		name := " (stored key)"
		if copies {
			name = " (session copy)"
		}
		b := withCopies(b, copies)
		t.Run("sessions closed behind its back are opened again"+name, func(t *testing.T) { sessionsLost(t, b) })
		t.Run("a logout behind its back is mended"+name, func(t *testing.T) { loggedOut(t, b) })
		t.Run("a module finalised behind its back is initialised again"+name, func(t *testing.T) { finalised(t, b) })
		t.Run("a token taken away works when it is back"+name, func(t *testing.T) { takenAway(t, b) })
	}
	t.Run("a wrong PIN is an error with its code", func(t *testing.T) { wrongPIN(t, b) })
	t.Run("Close ends everything", func(t *testing.T) { closed(t, b) })
}

func withCopies(b Backend, copies bool) Backend {
	config := b.Config
	b.Config = func(t *testing.T) hsm.Config {
		cfg := config(t)
		cfg.SessionKeys = copies
		return cfg
	}
	return b
}

// open opens a new token of the backend and closes it with the test, after which no
// goroutine may be left.
func open(t *testing.T, b Backend) (*hsm.Token, hsm.Config) {
	t.Helper()
	cfg := b.Config(t)
	return openConfig(t, cfg), cfg
}

func openConfig(t *testing.T, cfg hsm.Config) *hsm.Token {
	t.Helper()
	before := goleak.IgnoreCurrent()
	token, err := hsm.Open(t.Context(), cfg, hsm.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := token.Close(ctx); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, before)
	})
	return token
}

// newKey makes a key of the first algorithm that the backend has, cheapest first.
func newKey(t *testing.T, b Backend, token *hsm.Token) *hsm.Key {
	t.Helper()
	for _, a := range []hsm.Algorithm{hsm.ECDSAP256, hsm.RSA2048} {
		if slices.Contains(b.Lacks, a) {
			continue
		}
		key, err := token.GenerateKey(t.Context(), hsm.KeySpec{Label: newLabel(), Algorithm: a})
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	t.Fatal("the backend has neither ECDSA nor RSA")
	return nil
}

// newLabel is new to a token that keeps the keys of earlier runs.
func newLabel() string { return "hsmtest " + rand.Text() }

// eventually signs until it succeeds. Until then every error must say that the same
// request may be repeated.
func eventually(t *testing.T, key *hsm.Key) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := signOnce(t.Context(), key)
		if err == nil {
			return
		}
		if problem.KindOf(err) != problem.Unavailable {
			t.Fatalf("while the token recovers: %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the token did not come back in %s: %v; state %+v", patience, err, key.Token().State())
		}
		time.Sleep(5 * time.Millisecond) // the pace of a caller that tries again
	}
}

// rival is another user of the same module in this process.
type rival struct {
	*pkcs11.Ctx
	slot uint
}

func newRival(t *testing.T, token *hsm.Token) rival {
	t.Helper()
	ctx := pkcs11.New(token.Info().Module)
	if ctx == nil {
		t.Fatal("cannot load the module a second time")
	}
	slots, err := ctx.GetSlotList(true)
	must(t, err)
	for _, s := range slots {
		if info, err := ctx.GetTokenInfo(s); err == nil && info.Label == token.Info().Label {
			return rival{ctx, s}
		}
	}
	t.Fatal("the token's slot is not to be found")
	return rival{}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writePIN returns a file that holds pin.
func writePIN(t *testing.T, pin string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pin")
	must(t, os.WriteFile(name, []byte(pin+"\n"), 0o600))
	return name
}

func isCode(err error, code uint) bool { return errors.Is(err, pkcs11.Error(code)) }
