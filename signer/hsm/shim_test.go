package hsm_test

import (
	"context"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/hsmshim"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/signer/hsm"
)

// shimmed opens a SoftHSM token behind the project's fault module.
func shimmed(t *testing.T, change func(*hsm.Config)) (*hsm.Token, *hsm.Key, *hsmshim.Shim) {
	t.Helper()
	testenv.Program(t, "gcc", "gcc")
	cfg := softHSM(t)
	// A copy, since the shim must not share the state of the module that other tests use.
	dir := t.TempDir()
	b, err := os.ReadFile(cfg.Module)
	if err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(dir, "softhsm.so")
	if err := os.WriteFile(real, b, 0o700); err != nil {
		t.Fatal(err)
	}
	shim, err := hsmshim.New(dir, real)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range shim.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	cfg.Module = shim.Module
	if change != nil {
		change(&cfg)
	}
	token, err := hsm.Open(t.Context(), cfg, hsm.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shim.Set(); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := token.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	key, err := token.GenerateKey(t.Context(), hsm.KeySpec{Label: "key", Algorithm: hsm.ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	return token, key, shim
}

// sign signs and checks; right is false where a signature came that does not verify.
func sign(ctx context.Context, key *hsm.Key) (right bool, err error) {
	digest := make([]byte, 32)
	sig, err := key.SignContext(ctx, digest, crypto.SHA256)
	if err != nil {
		return false, err
	}
	return hsm.Verify(key.Public(), digest, sig, crypto.SHA256) == nil, nil
}

// TestARealModuleThatMisbehaves lets a real module go wrong while eight callers sign.
// A caller gets a right signature or an error that invites it to come again, never
// anything else; when the fault is over, the token works.
func TestARealModuleThatMisbehaves(t *testing.T) {
	for name, rules := range map[string][]string{
		"every 7th call fails":                {"C_Sign return 0x6 every=7"},
		"signatures are made and not told":    {"C_Sign call-return 0x5 every=5"},
		"sessions are lost":                   {"C_SignInit lose-session every=9"},
		"logins are lost":                     {"C_SignInit lose-login every=9"},
		"sessions and logins are lost":        {"C_SignInit lose-session every=11", "C_Sign lose-login every=7"},
		"the token is gone":                   {"C_SignInit lose-token", "C_OpenSession lose-token", "C_GetTokenInfo lose-token"},
		"the module wants a new C_Initialize": {"C_SignInit lose-module after=20 times=1"},
		"the device errs":                     {"C_SignInit return 0x30 after=10 times=20"},
		"calls are late":                      {"C_Sign delay 5"},
		"some calls are too late":             {"C_Sign delay 400 every=40 times=3"},
		"no more sessions":                    {"C_SignInit return 0xB3 every=5", "C_OpenSession return 0xB1 every=3"},
	} {
		t.Run(name, func(t *testing.T) {
			token, key, shim := shimmed(t, func(c *hsm.Config) {
				if strings.Contains(strings.Join(rules, " "), "delay 400") {
					// Elsewhere a busy machine's late call would be one that hangs, and a module
					// that is to be initialised again meanwhile rightly asks for a new process.
					c.CallTimeout = 200 * time.Millisecond
				}
				if strings.Contains(strings.Join(rules, " "), "lose-") {
					// SoftHSM 2.6.1 frees a session that another thread is in the middle of
					// using, and crashes; with one session there is no other thread.
					c.Sessions = 1
				}
			})
			if err := shim.Set(rules...); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					for ctx.Err() == nil {
						right, err := sign(t.Context(), key)
						if err != nil && problem.KindOf(err) != problem.Unavailable {
							t.Errorf("a caller got %v", err)
						}
						if err == nil && !right {
							t.Error("a wrong signature")
						}
					}
				})
			}
			callers.Wait()
			if err := shim.Set(); err != nil {
				t.Fatal(err)
			}
			comesBack(t, token, key)
		})
	}
}

// comesBack waits until the token signs and has no call hanging.
func comesBack(t *testing.T, token *hsm.Token, key *hsm.Key) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		right, err := sign(t.Context(), key)
		if s := token.State(); right && s.Condition == hsm.Ready && s.Abandoned == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not back: %v, %+v", err, token.State())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestARealModuleThatSignsWronglyIsFoundOut(t *testing.T) {
	token, key, shim := shimmed(t, func(c *hsm.Config) { c.IdleCheck = 0 })
	if err := shim.Set("C_Sign flip every=3"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		right, err := sign(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if !right {
			token.Condemn(errors.New("a bit is wrong"))
			break
		}
	}
	if s := token.State(); s.Condition != hsm.Failed {
		t.Errorf("the signature with a wrong bit was not found: %+v", s)
	}
}

// TestSignaturesAreCounted compares the token's count with the module's own.
func TestSignaturesAreCounted(t *testing.T) {
	token, key, shim := shimmed(t, func(c *hsm.Config) { c.IdleCheck = 0 })
	before, err := shim.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	for range 25 {
		if _, err := sign(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	after, err := shim.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	if n := token.Signatures(); n != 25 || after-before != 25 {
		t.Errorf("counted %d, made %d; 25 were asked for", n, after-before)
	}
}
