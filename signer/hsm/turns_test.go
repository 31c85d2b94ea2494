package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/problem"
)

// signers asks for a signature from each of several goroutines and keeps what they got.
type signers struct {
	all    sync.WaitGroup
	mu     sync.Mutex
	failed []error
	made   int
}

func (s *signers) start(t *testing.T, n int, ctx context.Context, key *Key) {
	for range n {
		s.all.Go(func() {
			digest := make([]byte, 32)
			rand.Read(digest)
			sig, err := key.SignContext(ctx, digest, hashOpts)
			if err == nil {
				if err := Verify(key.Public(), digest, sig, hashOpts); err != nil {
					t.Error(err)
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if err != nil {
				s.failed = append(s.failed, err)
			} else {
				s.made++
			}
		})
	}
}

// queued holds the first signature inside the token until n others wait, and has the
// token taken for one that computes on this machine.
func queued(t *testing.T, f fixture, n int, start func(*signers)) *signers {
	t.Helper()
	h := hangAt(f, "Sign", 1)
	s := new(signers)
	s.start(t, 1, t.Context(), f.key)
	<-h.entered
	start(s)
	until(t, "all wait", func() bool {
		f.turns.mu.Lock()
		defer f.turns.mu.Unlock()
		return len(f.turns.waiting) == n
	})
	f.turns.mu.Lock()
	f.turns.pace = ownPace / 2
	f.turns.mu.Unlock()
	f.seam.set(nil)
	close(h.release)
	return s
}

func oneSession(c *Config) { c.Sessions, c.BreakerFailures = 1, 1 }

func TestWhatWaitsIsSignedInOneCall(t *testing.T) {
	f := openSeam(t, oneSession)
	before := f.seam.count("SignEach")
	s := queued(t, f, 10, func(s *signers) { s.start(t, 10, t.Context(), f.key) })
	s.all.Wait()
	if s.made != 11 || f.Signatures() != 11 {
		t.Errorf("%d of 11 signed, %d counted; failures %v", s.made, f.Signatures(), s.failed)
	}
	if n := f.seam.count("SignEach") - before; n != 2 {
		t.Errorf("the module was entered %d times, not 2", n)
	}
}

func TestATokenWithCoresOfItsOwnGetsOneAtATime(t *testing.T) {
	f := openSeam(t, oneSession)
	f.seam.set(func(call string) error {
		if call == "SignEach" {
			time.Sleep(2 * ownPace)
		}
		return nil
	})
	before := f.seam.count("SignEach")
	s := new(signers)
	s.start(t, 10, t.Context(), f.key)
	s.all.Wait()
	if n := f.seam.count("SignEach") - before; s.made != 10 || n != 10 {
		t.Errorf("%d of 10 signed in %d calls; failures %v", s.made, n, s.failed)
	}
}

func TestKeysTakeTurnsInOneQueue(t *testing.T) {
	f := openSeam(t, oneSession)
	other, err := f.GenerateKey(t.Context(), KeySpec{Label: "other", Algorithm: ECDSAP384})
	if err != nil {
		t.Fatal(err)
	}
	s := queued(t, f, 9, func(s *signers) {
		for range 3 {
			s.start(t, 1, t.Context(), f.key)
			s.start(t, 1, t.Context(), other)
			s.start(t, 1, t.Context(), f.key)
		}
	})
	s.all.Wait()
	if s.made != 10 {
		t.Errorf("%d of 10 signed; failures %v", s.made, s.failed)
	}
}

func TestOneFailureOfAGroupIsOneCallersOwn(t *testing.T) {
	f := openSeam(t, oneSession)
	s := queued(t, f, 6, func(s *signers) { s.start(t, 6, t.Context(), f.key) })
	var n atomic.Int32
	f.seam.set(func(call string) error {
		if call == "Sign" && n.Add(1) == 3 {
			return pkcs11.Error(pkcs11.CKR_DATA_INVALID)
		}
		return nil
	})
	s.all.Wait()
	if s.made != 6 || len(s.failed) != 1 || !errors.Is(s.failed[0], pkcs11.Error(pkcs11.CKR_DATA_INVALID)) {
		t.Errorf("%d of 7 signed; failures %v", s.made, s.failed)
	}
	if c := f.State().Condition; c != Ready {
		t.Errorf("the token is %s", c)
	}
}

func TestWhatIsSignedBetweenFailuresKeepsTheTokenIn(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions, c.BreakerFailures = 1, 2 })
	var n atomic.Int32
	s := queued(t, f, 100, func(s *signers) { s.start(t, 100, t.Context(), f.key) })
	f.seam.set(func(call string) error {
		if call == "Sign" && n.Add(1)%12 > 8 { // as often as it is tried
			return pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)
		}
		return nil
	})
	s.all.Wait()
	if c := f.State(); c.Condition != Ready || c.Recoveries != 0 || len(s.failed) < 2 {
		t.Errorf("%+v after %d failures", c, len(s.failed))
	}
}

func TestATokenThatGoesAwayInAGroupAnswersAll(t *testing.T) {
	f := openSeam(t, oneSession)
	f.seam.set(nil)
	s := queued(t, f, 6, func(s *signers) { s.start(t, 6, t.Context(), f.key) })
	var n atomic.Int32
	f.seam.set(func(call string) error {
		if call == "Sign" && n.Add(1) >= 3 || call == "OpenSession" {
			return pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)
		}
		return nil
	})
	s.all.Wait()
	if s.made+len(s.failed) != 7 || s.made < 2 || len(s.failed) < 1 {
		t.Errorf("%d of 7 signed; failures %v", s.made, s.failed)
	}
	for _, err := range s.failed {
		if problem.KindOf(err) != problem.Unavailable {
			t.Errorf("a caller was told %v", err)
		}
	}
}

func TestWhoHasGoneIsLeftOut(t *testing.T) {
	f := openSeam(t, oneSession)
	ctx, cancel := context.WithCancel(t.Context())
	h := hangAt(f, "Sign", 1)
	s := new(signers)
	s.start(t, 1, t.Context(), f.key)
	<-h.entered
	gone := new(signers)
	gone.start(t, 5, ctx, f.key)
	s.start(t, 2, t.Context(), f.key)
	until(t, "all wait", func() bool {
		f.turns.mu.Lock()
		defer f.turns.mu.Unlock()
		return len(f.turns.waiting) == 7
	})
	cancel()
	gone.all.Wait()
	close(h.release)
	s.all.Wait()
	if s.made != 3 || len(gone.failed) != 5 || f.Signatures() != 3 {
		t.Errorf("%d of 3 signed, %d of 5 gone, %d signatures made", s.made, len(gone.failed), f.Signatures())
	}
}

// A call that hangs must not hold up what other sessions could sign, though the token
// has only as many calls at once as there are cores.
func TestOthersGoBesideACallThatHangs(t *testing.T) {
	cores := runtime.GOMAXPROCS(0)
	f := openSeam(t, func(c *Config) { c.Sessions, c.CallTimeout = cores+1, time.Minute })
	for range 3 {
		if err := f.sign(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.turns.mu.Lock()
	f.turns.pace = ownPace / 2
	f.turns.mu.Unlock()
	h := hangAt(f, "Sign", int32(cores))
	held := new(signers)
	for range cores {
		held.start(t, 1, t.Context(), f.key)
		<-h.entered
	}
	for range 3 {
		if err := f.sign(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(h.release)
	held.all.Wait()
	if held.made != cores {
		t.Errorf("%d of %d that hung were signed; failures %v", held.made, cores, held.failed)
	}
	until(t, "all goroutines have ended", func() bool {
		f.turns.mu.Lock()
		defer f.turns.mu.Unlock()
		return f.turns.callers == 0
	})
}

func TestThePaceIsTheFastestOfLate(t *testing.T) {
	var q turns
	if q.own() {
		t.Error("a token of which nothing is known computes here")
	}
	q.note(5 * time.Millisecond)
	if q.own() {
		t.Error("5 ms are own pace")
	}
	q.note(30 * time.Microsecond)
	for range 3 {
		if q.note(time.Second); !q.own() { // the thread was held up
			t.Errorf("the pace is %s", q.pace)
		}
	}
	for range 10 {
		q.note(time.Millisecond)
	}
	if q.own() {
		t.Errorf("after ten signatures of 1 ms the pace is %s", q.pace)
	}
}

func TestSignEachSaysWhatFailedAndKeepsWhatWasMade(t *testing.T) {
	f := openSeam(t, oneSession)
	s, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.release(s)
	handle, err := f.key.handle(s)
	if err != nil {
		t.Fatal(err)
	}
	lib, ecdsa := f.seam.cryptoki, pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
	digests := [][]byte{make([]byte, 32), make([]byte, 32)}
	made, err := lib.SignEach(s.handle, ecdsa, handle, digests, 64)
	if err != nil || len(made) != 2 {
		t.Fatalf("%d made: %v", len(made), err)
	}
	for name, c := range map[string]struct {
		off  pkcs11.ObjectHandle
		size int
		call string
	}{
		"no such key":     {1000, 64, "C_SignInit: "},
		"too little room": {0, 63, "C_Sign: "},
	} {
		made, err := lib.SignEach(s.handle, ecdsa, handle+c.off, digests, c.size)
		var code pkcs11.Error
		if len(made) != 0 || !errors.As(err, &code) || !strings.HasPrefix(err.Error(), c.call) {
			t.Errorf("%s: %d made, %v", name, len(made), err)
		}
		f.closeSession(s)
		if err := f.openSession(s, 0); err != nil {
			t.Fatal(err)
		}
		if handle, err = f.key.handle(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := lib.SignEach(s.handle, ecdsa, handle, nil, 64); err != nil {
		t.Errorf("no messages: %v", err)
	}
}
