package hsmtest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/signer/hsm"
)

// burst signs from more callers than there are sessions; every signature must succeed.
func burst(t *testing.T, key *hsm.Key, sessions int) {
	t.Helper()
	var callers sync.WaitGroup
	for range 3 * sessions {
		callers.Go(func() {
			if err := signOnce(t.Context(), key); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
}

func sessionsLost(t *testing.T, b Backend) {
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	other := newRival(t, token)
	for range 5 {
		burst(t, key, cfg.Sessions)
		must(t, other.CloseAllSessions(other.slot))
	}
	burst(t, key, cfg.Sessions) // no caller notices
	if s := token.State(); s.Condition != hsm.Ready || s.Recoveries != 0 {
		t.Errorf("lost sessions took the token out: %+v", s)
	}
}

func loggedOut(t *testing.T, b Backend) {
	if b.NoPIN {
		t.Skipf("%s needs no login", b.Name)
	}
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	other := newRival(t, token)
	for range 5 {
		burst(t, key, cfg.Sessions)
		s, err := other.OpenSession(other.slot, pkcs11.CKF_SERIAL_SESSION)
		must(t, err)
		// A session copy may sign on after a logout, with nobody logging in again.
		if err := other.Logout(s); !isCode(err, pkcs11.CKR_USER_NOT_LOGGED_IN) {
			must(t, err)
		}
		must(t, other.CloseSession(s))
	}
	burst(t, key, cfg.Sessions) // no caller notices
	if s := token.State(); s.Condition != hsm.Ready || s.Recoveries != 0 {
		t.Errorf("logouts took the token out: %+v", s)
	}
}

func finalised(t *testing.T, b Backend) {
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	burst(t, key, cfg.Sessions)
	other := newRival(t, token)
	must(t, other.Finalize())
	err := signOnce(t.Context(), key)
	var code pkcs11.Error
	if problem.KindOf(err) != problem.Unavailable || !errors.As(err, &code) {
		t.Errorf("signing in a finalised module: %v; want unavailable with the module's code", err)
	}
	eventually(t, key)
	burst(t, key, cfg.Sessions)
	if s := token.State(); s.Condition != hsm.Ready || s.Recoveries != 1 {
		t.Errorf("after the recovery: %+v; want ready, 1 recovery", s)
	}
}

func takenAway(t *testing.T, b Backend) {
	if b.TakeAway == nil {
		t.Skipf("%s cannot be taken away", b.Name)
	}
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	burst(t, key, cfg.Sessions)
	for range 2 {
		other := newRival(t, token)
		putBack := b.TakeAway(t, cfg)
		must(t, other.CloseAllSessions(other.slot)) // as the removal of a real token does
		err := signOnce(t.Context(), key)
		putBack()
		if problem.KindOf(err) != problem.Unavailable {
			t.Fatalf("signing without the token: %v; want unavailable", err)
		}
		eventually(t, key)
		burst(t, key, cfg.Sessions)
	}
}

func wrongPIN(t *testing.T, b Backend) {
	if b.NoPIN {
		t.Skipf("%s knows no wrong PIN", b.Name)
	}
	cfg := b.Config(t)
	wrong := cfg
	wrong.PINEnv, wrong.PINFile = "", writePIN(t, "000000")
	token, err := hsm.Open(t.Context(), wrong, hsm.Deps{})
	if !isCode(err, pkcs11.CKR_PIN_INCORRECT) {
		t.Fatalf("opening with a wrong PIN: opened %v, %v; want CKR_PIN_INCORRECT", token != nil, err)
	}
	must(t, signOnce(t.Context(), newKey(t, b, openConfig(t, cfg))))
}

func closed(t *testing.T, b Backend) {
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	var callers sync.WaitGroup
	for range 2 * cfg.Sessions {
		callers.Go(func() {
			for {
				if err := signOnce(context.Background(), key); err != nil {
					if !errors.Is(err, hsm.ErrClosed) || problem.KindOf(err) != problem.Unavailable {
						t.Errorf("signing while the token closes: %v; want unavailable, closed", err)
					}
					return
				}
			}
		})
	}
	must(t, token.Close(t.Context()))
	callers.Wait()
	if got := token.State().Condition; got != hsm.Closed {
		t.Errorf("a closed token is %s", got)
	}
	if _, err := token.Key(t.Context(), "pkcs11:object=another"); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("a key of a closed token: %v", err)
	}
	must(t, token.Close(t.Context())) // once more does nothing
}
