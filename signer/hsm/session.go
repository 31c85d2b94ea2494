package hsm

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// session is a place in the pool with the PKCS#11 session that fills it. Whoever has
// taken it from the pool owns it, but for lost.
type session struct {
	handle     pkcs11.SessionHandle // 0: none is open
	generation uint64               // of the module when it was opened
	logins     uint64               // of the token when objects were found
	objects    map[*Key]pkcs11.ObjectHandle
	lost       atomic.Bool // the module gave the handle to another session
}

func newSession() *session { return &session{objects: make(map[*Key]pkcs11.ObjectHandle)} }

// attempts bounds the tries of one call: the first, one after a remedy, and one more
// for the failure that the remedy uncovers, as a login after a lost session.
const attempts = 3

// try calls fn with a session that is open and logged in, and mends on the spot what
// can be mended there.
func try[T any](t *Token, s *session, k *Key, fn func(*session) (T, error)) (T, error) {
	var value T
	var err error
	for range attempts {
		if err = t.ready(s); err == nil {
			value, err = fn(s)
		}
		if err == nil {
			return value, nil
		}
		remedy := RemedyFor(err)
		t.metrics.failure(remedy)
		if !t.mend(s, k, remedy) {
			break
		}
	}
	var none T
	return none, err
}

// mend applies a remedy to a session and reports whether another try makes sense.
func (t *Token) mend(s *session, k *Key, remedy Remedy) bool {
	switch remedy {
	case Retry:
		return true
	case Find:
		// Without a login a private key is not to be seen, and some modules say so by a
		// bad handle only.
		delete(s.objects, k)
		return t.login(s) == nil
	case LogIn:
		return t.login(s) == nil
	case Reopen:
		t.closeSession(s)
		return true
	default:
		// The operation may have been left active.
		t.closeSession(s)
		return false
	}
}

// ready sees to it that s is open, logged in and without stale handles.
func (t *Token) ready(s *session) error {
	if s.handle != 0 && (s.lost.Load() || s.generation != t.module.current()) {
		t.closeSession(s)
	}
	if s.handle == 0 {
		if err := t.openSession(s, 0); err != nil {
			return err
		}
	}
	if logins := t.logins.Load(); s.logins != logins {
		// A logout ends the handles of private objects, and their numbers may be given
		// to others afterwards (v2.40 section 5.6, C_Logout).
		clear(s.objects)
		s.logins = logins
	}
	return nil
}

// openSession opens a session in s and logs in where nobody has.
func (t *Token) openSession(s *session, flags uint) error {
	slot, err := t.findSlot()
	if err != nil {
		return err
	}
	handle, err := t.module.lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|flags)
	if readOnly := flags&pkcs11.CKF_RW_SESSION == 0; readOnly && errors.Is(err, pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)) {
		// AWS CloudHSM's SDK 5 opens no read-only session (its known issues).
		handle, err = t.module.lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	}
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	t.module.hold(s, handle)
	return t.login(s)
}

// closeSession forgets the session in s, and closes it where the handle is still ours.
func (t *Token) closeSession(s *session) {
	if s.handle == 0 {
		return
	}
	if t.module.letGo(s) && !s.lost.Load() {
		// It is closed because it is of no use; an error adds nothing to that.
		_ = t.module.lib.CloseSession(s.handle)
	}
	s.handle = 0
	clear(s.objects)
}

// login logs the process in to the token, where it is not. Logins come one after the
// other: several at once would each spend a try of a wrong PIN.
func (t *Token) login(s *session) error {
	if !t.needsLogin.Load() {
		return nil
	}
	if in, err := t.loggedIn(s); in || err != nil {
		return err
	}
	return t.alone(func() error {
		if err := t.failure(); err != nil {
			return err
		}
		if in, err := t.loggedIn(s); in || err != nil {
			return err
		}
		err := t.loginNow(s)
		if err != nil && RemedyFor(err) == Fatal {
			t.fail(err)
		}
		return err
	})
}

// alone runs fn while no other session logs in, finds or copies keys. A caller that
// hangs inside may never come out, so the wait for it is bounded, and shorter than
// this call's own.
func (t *Token) alone(fn func() error) error {
	timer := time.NewTimer(t.cfg.CallTimeout / 2)
	defer timer.Stop()
	select {
	case t.setup <- struct{}{}:
		defer func() { <-t.setup }()
		return fn()
	case <-timer.C:
		return errSetupBusy
	}
}

func (t *Token) loggedIn(s *session) (bool, error) {
	info, err := t.module.lib.GetSessionInfo(s.handle)
	if err != nil {
		return false, fmt.Errorf("C_GetSessionInfo: %w", err)
	}
	return info.State == pkcs11.CKS_RO_USER_FUNCTIONS || info.State == pkcs11.CKS_RW_USER_FUNCTIONS, nil
}

// loginNow spends one try of the PIN, unless it could be the last.
func (t *Token) loginNow(s *session) error {
	slot, err := t.findSlot()
	if err != nil {
		return err
	}
	info, err := t.module.lib.GetTokenInfo(slot)
	if err != nil {
		return fmt.Errorf("C_GetTokenInfo: %w", err)
	}
	// A supervisor may start a process with a wrong PIN again and again; these flags
	// keep it from locking the token (v2.40 section 3.2, CK_TOKEN_INFO).
	switch {
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return errPINLocked
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return errLastPINTry
	case info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
		t.log.Warn("a wrong PIN was given to the token before")
	}
	pin, err := t.cfg.pin()
	if err != nil {
		return err
	}
	err = t.module.lib.Login(s.handle, pkcs11.CKU_USER, pin)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("C_Login: %w", err)
	}
	t.log.Info("logged in to the token", "logins", t.logins.Add(1))
	return nil
}
