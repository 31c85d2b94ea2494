package hsm

import (
	"context"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/testenv"
)

const hashOpts = crypto.SHA256

// privateCopy copies a module, so that it has its own state in this process.
func privateCopy(t *testing.T, module string) string {
	t.Helper()
	b, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(path, b, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// once answers the first call of a name with a code.
func once(call string, code uint) func(string) error {
	var done atomic.Bool
	return func(c string) error {
		if c == call && done.CompareAndSwap(false, true) {
			return pkcs11.Error(code)
		}
		return nil
	}
}

func TestEveryCodeMeetsItsRemedy(t *testing.T) {
	f := openSeam(t, nil)
	codes := map[pkcs11.Error]Remedy{pkcs11.CKR_VENDOR_DEFINED + 7: Reopen}
	for code, remedy := range remedies {
		codes[code] = remedy
	}
	for code, remedy := range codes {
		if remedy == Fatal {
			continue // below: it ends the token
		}
		t.Run(strings.TrimPrefix(code.Error(), "pkcs11: "), func(t *testing.T) {
			inits, recoveries := f.seam.count("Initialize"), f.State().Recoveries
			f.seam.set(once("SignInit", uint(code)))
			defer f.seam.set(nil)
			err := f.sign(t.Context())
			switch remedy {
			case Retry, Find, LogIn, Reopen:
				if err != nil {
					t.Errorf("a caller noticed: %v", err)
				}
				if s := f.State(); s.Condition != Ready || s.Recoveries != recoveries {
					t.Errorf("the token was taken out: %+v", s)
				}
			case Refuse:
				if !errors.Is(err, code) || problem.KindOf(err) == problem.Unavailable {
					t.Errorf("got %v, want the code and no invitation to repeat", err)
				}
				if s := f.State(); s.Condition != Ready || s.Recoveries != recoveries {
					t.Errorf("the token was taken out: %+v", s)
				}
			case TakeOut, Reinitialise:
				if !errors.Is(err, code) || problem.KindOf(err) != problem.Unavailable {
					t.Errorf("got %v, want unavailable with the code", err)
				}
				until(t, "the token is back", func() bool { return f.State().Recoveries == recoveries+1 })
				if err := f.sign(t.Context()); err != nil {
					t.Error(err)
				}
			}
			// A new session proved enough for the probe: the module was left alone.
			if again := f.seam.count("Initialize") - inits; again != 0 {
				t.Errorf("the module was initialised again %d times", again)
			}
		})
	}
}

func TestTheModuleIsInitialisedAgainWhenNothingLessHelps(t *testing.T) {
	f := openSeam(t, nil)
	var healed atomic.Bool
	f.seam.set(func(call string) error {
		switch {
		case call == "Initialize":
			healed.Store(true)
		case !healed.Load() && (call == "OpenSession" || call == "SignInit"):
			return pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)
		}
		return nil
	})
	if err := f.sign(t.Context()); problem.KindOf(err) != problem.Unavailable {
		t.Fatalf("signing on a broken device: %v", err)
	}
	until(t, "the token is back", func() bool { return f.State().Condition == Ready })
	if err := f.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if n := f.seam.count("Finalize"); n != 1 {
		t.Errorf("C_Finalize was called %d times", n)
	}
	for _, want := range []string{"taken out", "CKR_DEVICE_ERROR", "initialised again", "is back"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log says nothing of %q:\n%s", want, f.log)
		}
	}
}

func TestAnOpenBreakerAnswersWithoutTheModule(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.ProbeInterval = time.Hour; c.BreakerFailures = 3 })
	f.seam.set(func(call string) error {
		if call == "Sign" {
			return pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)
		}
		return nil
	})
	for i := range 3 {
		if f.State().Condition != Ready {
			t.Fatalf("taken out after %d failures, not 3", i)
		}
		if err := f.sign(t.Context()); !errors.Is(err, pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)) {
			t.Fatal(err)
		}
	}
	before := f.seam.count("SignInit")
	var p *problem.Error
	if err := f.sign(t.Context()); !errors.As(err, &p) || p.Kind != problem.Unavailable || p.RetryAfter != time.Hour {
		t.Errorf("with the breaker open: %v", err)
	}
	if f.seam.count("SignInit") != before || f.Free() != 0 {
		t.Errorf("with the breaker open %d calls were made, %d sessions offered", f.seam.count("SignInit")-before, f.Free())
	}
	if s := f.State(); s.Condition != Down || !strings.Contains(s.Reason, "CKR_FUNCTION_FAILED") {
		t.Errorf("state %+v", s)
	}
}

func TestAWrongPINIsTriedOnce(t *testing.T) {
	cfg := seamConfig(t, func(c *Config) { c.Sessions = 8 })
	wrong := cfg
	wrong.PINFile = filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong.PINFile, []byte("00000000"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), wrong, Deps{load: loadSeam}); !errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)) {
		t.Fatalf("opening with a wrong PIN: %v", err)
	}
	f := openWith(t, cfg, Deps{load: loadSeam})
	if n := f.seam.count("Login"); n != 2 {
		t.Fatalf("%d logins, not one wrong and one right", n)
	}
	key, err := f.GenerateKey(t.Context(), KeySpec{Label: "key", Algorithm: ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	f.key = key
	// The PIN is changed on the token while all sessions are in use: of the many that
	// find themselves logged out, one may try.
	opened := f.seam.count("OpenSession")
	f.seam.set(func(call string) error {
		if call != "Login" {
			return nil
		}
		// The others must have come as far as the login, or there is nothing to show.
		for deadline := time.Now().Add(time.Second); f.seam.count("OpenSession") < opened+8 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		return pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)
	})
	raw := f.seam.cryptoki.(library)
	if err := raw.CloseAllSessions(f.slot); err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for range 32 {
		callers.Go(func() {
			if err := f.sign(t.Context()); problem.KindOf(err) != problem.Unavailable {
				t.Errorf("with a PIN that is wrong now: %v", err)
			}
		})
	}
	callers.Wait()
	if n := f.seam.count("Login"); n != 3 {
		t.Errorf("the wrong PIN was tried %d times", n-2)
	}
	if s := f.State(); s.Condition != Failed || !strings.Contains(s.Reason, "CKR_PIN_INCORRECT") {
		t.Errorf("state %+v", s)
	}
}

func TestTheLastTryOfAPINIsNotSpent(t *testing.T) {
	for flag, want := range map[uint]error{pkcs11.CKF_USER_PIN_FINAL_TRY: errLastPINTry, pkcs11.CKF_USER_PIN_LOCKED: errPINLocked} {
		cfg := seamConfig(t, nil)
		var s *seam
		load := func(path, parameters string) (cryptoki, error) {
			c, err := loadSeam(path, parameters)
			if err == nil {
				s = c.(*seam)
				s.tokenFlags = flag
			}
			return c, err
		}
		if _, err := Open(t.Context(), cfg, Deps{load: load}); !errors.Is(err, want) {
			t.Errorf("opening: %v, want %v", err, want)
		}
		if n := s.count("Login"); n != 0 {
			t.Errorf("the PIN was tried %d times", n)
		}
	}
}

func TestALogoutBeforeASessionKnowsTheKeyIsMended(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions = 1 })
	s, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	clear(s.objects)
	if err := f.seam.cryptoki.(library).Logout(s.handle); err != nil {
		t.Fatal(err)
	}
	f.release(s)
	// Without a login the key is not to be seen; nobody may take that for a lost key.
	if err := f.sign(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTheWaitForASessionObeysTheContext(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions = 1 })
	s, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.sign(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a session: %v", err)
	}
	f.release(s)
	if err := f.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if s := f.State(); s.Condition != Ready || s.Idle != 1 {
		t.Errorf("state %+v", s)
	}
}

// hanging makes calls of a name hang until the test lets them go.
type hanging struct {
	entered chan struct{}
	release chan struct{}
}

func hangAt(f fixture, call string, times int32) hanging {
	h := hanging{make(chan struct{}, 64), make(chan struct{})}
	var n atomic.Int32
	f.seam.set(func(c string) error {
		if c == call && n.Add(1) <= times {
			h.entered <- struct{}{}
			<-h.release
		}
		return nil
	})
	return h
}

func (f fixture) isStuck() bool {
	select {
	case <-f.Stuck():
		return true
	default:
		return false
	}
}

func TestACallThatHangsIsGivenUp(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.CallTimeout = 50 * time.Millisecond; c.Sessions = 2 })
	h := hangAt(f, "Sign", 1)
	err := f.sign(t.Context())
	if !errors.Is(err, errHung) || problem.KindOf(err) != problem.Unavailable {
		t.Fatalf("a call that hangs: %v", err)
	}
	until(t, "the token is back on its other sessions", func() bool { return f.State().Condition == Ready })
	if s := f.State(); s.Abandoned != 1 || s.Idle != 2 {
		t.Errorf("one call hangs: %+v", s)
	}
	for range 10 {
		if err := f.sign(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(h.release)
	until(t, "the call comes back", func() bool { return f.State().Abandoned == 0 })
	if f.isStuck() {
		t.Error("the token calls itself stuck")
	}
}

func TestACallerWhoGoesAwayLeavesItsSessionInOrder(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions = 1 })
	h := hangAt(f, "Sign", 1)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() { result <- f.sign(ctx) }()
	<-h.entered
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller got %v", err)
	}
	close(h.release)
	if err := f.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if n, s := f.Signatures(), f.State(); n != 2 || s.Abandoned != 0 || s.Condition != Ready {
		t.Errorf("%d signatures made, not 2; state %+v", n, s)
	}
}

func TestTooManyHangingCallsMakeTheTokenStuck(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.CallTimeout = 30 * time.Millisecond; c.MaxAbandoned = 2; c.Sessions = 4 })
	h := hangAt(f, "Sign", 100)
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			if err := f.sign(t.Context()); problem.KindOf(err) != problem.Unavailable {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	until(t, "the token is stuck", f.isStuck)
	if s := f.State(); s.Condition != Stuck || s.Abandoned != 3 {
		t.Errorf("state %+v", s)
	}
	if err := f.sign(t.Context()); !errors.Is(err, errModuleDead) {
		t.Errorf("signing with a stuck token: %v", err)
	}
	// It closes all the same, and leaves the module to the calls inside it.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := f.Close(ctx); err != nil {
		t.Error(err)
	}
	if n := f.seam.count("Finalize"); n != 0 {
		t.Errorf("C_Finalize was called beside hanging calls")
	}
	close(h.release)
	until(t, "the calls come back", func() bool { return f.abandoned.Load() == 0 })
}

func TestAModuleThatMustBeInitialisedAgainWhileCallsHangIsStuck(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.CallTimeout = 30 * time.Millisecond })
	h := hanging{make(chan struct{}, 1), make(chan struct{})}
	var n atomic.Int32
	f.seam.set(func(call string) error {
		switch {
		case call == "Sign" && n.Add(1) == 1:
			<-h.release
		case call == "OpenSession", call == "SignInit" && n.Load() > 0:
			return pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
		}
		return nil
	})
	if err := f.sign(t.Context()); !errors.Is(err, errHung) {
		t.Fatal(err)
	}
	until(t, "the token is stuck", f.isStuck)
	if n := f.seam.count("Finalize"); n != 0 {
		t.Error("C_Finalize was called beside a hanging call")
	}
	close(h.release)
	until(t, "the call comes back", func() bool { return f.abandoned.Load() == 0 })
}

func TestAWrongSignatureEndsTheToken(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.IdleCheck = 5 * time.Millisecond })
	f.seam.mu.Lock()
	f.seam.spoil = func(sig []byte) { sig[len(sig)/2] ^= 1 }
	f.seam.mu.Unlock()
	// The keeper's test signature finds it while nobody asks.
	until(t, "the token is failed", func() bool { return f.State().Condition == Failed })
	f.seam.mu.Lock()
	f.seam.spoil = nil
	f.seam.mu.Unlock()
	if err := f.sign(t.Context()); problem.KindOf(err) != problem.Unavailable || !errors.Is(err, errWrongSignature) {
		t.Errorf("signing after a wrong signature: %v", err)
	}
}

func TestACondemnedTokenSignsNoMore(t *testing.T) {
	f := openSeam(t, nil)
	f.Condemn(errors.New("serial 1234"))
	if err := f.sign(t.Context()); problem.KindOf(err) != problem.Unavailable || !errors.Is(err, errWrongSignature) {
		t.Errorf("signing: %v", err)
	}
	if s := f.State(); s.Condition != Failed || !strings.Contains(s.Reason, "serial 1234") || f.Free() != 0 {
		t.Errorf("state %+v, %d free", s, f.Free())
	}
}

func TestAnIdleTokenThatIsGoneIsNoticed(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.IdleCheck = 5 * time.Millisecond })
	var gone atomic.Bool
	gone.Store(true)
	f.seam.set(func(call string) error {
		if gone.Load() && (call == "SignInit" || call == "OpenSession") {
			return pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)
		}
		return nil
	})
	until(t, "the token is out", func() bool { return f.State().Condition != Ready })
	gone.Store(false)
	until(t, "the token is back", func() bool { return f.State().Condition == Ready })
}

func TestASessionCopyThatIsRefusedOrUnsafeIsNotUsed(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		f := openSeam(t, nil)
		f.seam.set(func(call string) error {
			if call == "CopyObject" {
				return pkcs11.Error(pkcs11.CKR_ACTION_PROHIBITED)
			}
			return nil
		})
		key := &Key{token: f.Token, uri: f.key.uri, public: f.key.public}
		for range 3 {
			if err := (fixture{Token: f.Token, key: key}).sign(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if !key.noCopy.Load() {
			t.Error("it is tried again each time")
		}
	})
	t.Run("extractable", func(t *testing.T) {
		f := openSeam(t, nil)
		f.seam.mu.Lock()
		f.seam.attributes = func(values []*pkcs11.Attribute) {
			if values[0].Type == pkcs11.CKA_EXTRACTABLE {
				values[0].Value = []byte{1}
			}
		}
		f.seam.mu.Unlock()
		key := &Key{token: f.Token, uri: f.key.uri, public: f.key.public}
		if err := (fixture{Token: f.Token, key: key}).sign(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !key.noCopy.Load() || f.seam.count("DestroyObject") != 1 {
			t.Errorf("the copy was kept: %d destroyed", f.seam.count("DestroyObject"))
		}
	})
}

func TestOneTokenOfAModuleFailsAlone(t *testing.T) {
	where := testenv.SoftHSMs(t, 2)
	module := privateCopy(t, where[0].Module)
	open := func(i int) fixture {
		cfg := DefaultConfig()
		cfg.Module, cfg.TokenLabel, cfg.PINFile = module, where[i].TokenLabel, where[i].PINFile
		cfg.ProbeInterval, cfg.ReinitInterval = 5*time.Millisecond, time.Hour
		f := openWith(t, cfg, Deps{load: loadSeam})
		key, err := f.GenerateKey(t.Context(), KeySpec{Label: "key", Algorithm: ECDSAP256})
		if err != nil {
			t.Fatal(err)
		}
		f.key = key
		return f
	}
	sick, well := open(0), open(1)
	// A real module calls the one slot bad; here the first token's number stands for it.
	sick.mu.Lock()
	sick.slotGeneration, sick.cfg.token.Token = 0, "gone"
	sick.mu.Unlock()
	if err := sick.seam.cryptoki.(library).CloseAllSessions(sick.slot); err != nil {
		t.Fatal(err)
	}
	if err := sick.sign(t.Context()); !errors.Is(err, errNoToken) {
		t.Fatalf("signing with a token that is gone: %v", err)
	}
	until(t, "the module is initialised again once", func() bool { return sick.seam.count("Finalize") == 1 })
	until(t, "the keeper holds back", func() bool { return strings.Contains(sick.State().Reason, "another token of the module is well") })
	for range 200 {
		if err := well.sign(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := sick.seam.count("Finalize"); n != 1 {
		t.Errorf("the module was initialised again %d times for the sick token", n)
	}
	if s := well.State(); s.Condition != Ready || s.Recoveries != 0 {
		t.Errorf("the well token: %+v", s)
	}
}

func TestAHandleGivenOutTwiceEndsTheFirstSession(t *testing.T) {
	m := &module{holders: map[pkcs11.SessionHandle]*session{}}
	first, second := newSession(), newSession()
	m.hold(first, 7)
	m.hold(second, 7)
	if !first.lost.Load() || second.lost.Load() {
		t.Error("the wrong session is lost")
	}
	if m.letGo(first) {
		t.Error("the first session would close the second's handle")
	}
	if !m.letGo(second) {
		t.Error("the second session may not close its own handle")
	}
}
