package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"runtime"
	"slices"
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
	s.startWith(t, n, ctx, key, hashOpts)
}

func (s *signers) startWith(t *testing.T, n int, ctx context.Context, key *Key, opts crypto.SignerOpts) {
	for range n {
		s.all.Go(func() {
			digest := make([]byte, 32)
			rand.Read(digest)
			sig, err := key.SignContext(ctx, digest, opts)
			if err == nil {
				if err := Verify(key.Public(), digest, sig, opts); err != nil {
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
// key taken for one that is used by computing on this machine. What comes after the first
// meets then.
func queued(t *testing.T, f fixture, n int, then func(call string) error, start func(*signers)) *signers {
	t.Helper()
	h := hangAt(f, "Sign", 1)
	s := new(signers)
	s.start(t, 1, t.Context(), f.key)
	<-h.entered
	start(s)
	until(t, "all wait", func() bool { return f.queue.length() == n })
	f.key.pace.Store(int64(localPace / 2))
	f.seam.set(then)
	close(h.release)
	return s
}

func oneSession(c *Config) { c.Sessions, c.BreakerFailures = 1, 1 }

func TestWhatWaitsIsSignedInOneCall(t *testing.T) {
	f := openSeam(t, oneSession)
	before := f.seam.count("SignEach")
	s := queued(t, f, 10, nil, func(s *signers) { s.start(t, 10, t.Context(), f.key) })
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
			time.Sleep(2 * localPace)
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
	keys := []*Key{f.key}
	for _, a := range []Algorithm{ECDSAP384, RSA2048} {
		key, err := f.GenerateKey(t.Context(), KeySpec{Label: string(a), Algorithm: a})
		if err != nil {
			t.Fatal(err)
		}
		key.pace.Store(int64(localPace / 2))
		keys = append(keys, key)
	}
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hashOpts}
	s := queued(t, f, 15, nil, func(s *signers) {
		for range 3 {
			for _, key := range keys {
				s.start(t, 1, t.Context(), key)
			}
			s.startWith(t, 1, t.Context(), keys[2], pss)
			s.start(t, 1, t.Context(), keys[2])
		}
	})
	s.all.Wait()
	if s.made != 16 {
		t.Errorf("%d of 16 signed; failures %v", s.made, s.failed)
	}
}

func TestOneFailureOfABatchIsOneCallersOwn(t *testing.T) {
	f := openSeam(t, oneSession)
	var n atomic.Int32
	s := queued(t, f, 6, func(call string) error {
		if call == "Sign" && n.Add(1) == 3 {
			return pkcs11.Error(pkcs11.CKR_DATA_INVALID)
		}
		return nil
	}, func(s *signers) { s.start(t, 6, t.Context(), f.key) })
	s.all.Wait()
	if s.made != 6 || len(s.failed) != 1 || !errors.Is(s.failed[0], pkcs11.Error(pkcs11.CKR_DATA_INVALID)) {
		t.Errorf("%d of 7 signed; failures %v", s.made, s.failed)
	}
	if c := f.State().Condition; c != Ready {
		t.Errorf("the token is %s", c)
	}
}

// What a remedy mends for one it mends for each of a batch.
func TestEachSignatureOfABatchHasItsTries(t *testing.T) {
	f := openSeam(t, oneSession)
	var n atomic.Int32
	s := queued(t, f, 30, func(call string) error {
		if call == "Sign" && n.Add(1)%3 == 0 {
			return pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)
		}
		return nil
	}, func(s *signers) { s.start(t, 30, t.Context(), f.key) })
	s.all.Wait()
	if s.made != 31 {
		t.Errorf("%d of 31 signed; failures %v", s.made, s.failed)
	}
}

func TestWhatIsSignedBetweenFailuresKeepsTheTokenIn(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions, c.BreakerFailures = 1, 2 })
	var n atomic.Int32
	s := queued(t, f, 100, func(call string) error {
		f.key.pace.Store(int64(localPace / 2)) // on a slow machine, too: alone, each failure would follow another
		if call == "Sign" && n.Add(1)%15 > 8 { // six times: more often than it is tried
			return pkcs11.Error(pkcs11.CKR_FUNCTION_FAILED)
		}
		return nil
	}, func(s *signers) { s.start(t, 100, t.Context(), f.key) })
	s.all.Wait()
	if c := f.State(); c.Condition != Ready || c.Recoveries != 0 || len(s.failed) < 2 {
		t.Errorf("%+v after %d failures", c, len(s.failed))
	}
}

func TestATokenThatGoesAwayInABatchAnswersAll(t *testing.T) {
	f := openSeam(t, oneSession)
	var n atomic.Int32
	s := queued(t, f, 6, func(call string) error {
		if call == "Sign" && n.Add(1) >= 3 || call == "OpenSession" {
			return pkcs11.Error(pkcs11.CKR_DEVICE_REMOVED)
		}
		return nil
	}, func(s *signers) { s.start(t, 6, t.Context(), f.key) })
	s.all.Wait()
	if s.made != 3 || len(s.failed) != 4 {
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
	until(t, "all wait", func() bool { return f.queue.length() == 7 })
	cancel()
	gone.all.Wait()
	close(h.release)
	s.all.Wait()
	if s.made != 3 || len(gone.failed) != 5 || f.Signatures() != 3 {
		t.Errorf("%d of 3 signed, %d of 5 gone, %d signatures made", s.made, len(gone.failed), f.Signatures())
	}
}

// Those whose callers leave while a batch waits for a session are left out too.
func TestWhoGoesBeforeASessionIsFreeIsLeftOut(t *testing.T) {
	f := openSeam(t, oneSession)
	f.key.pace.Store(int64(localPace / 2))
	held, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone, s := new(signers), new(signers)
	gone.start(t, 5, ctx, f.key)
	s.start(t, 2, t.Context(), f.key)
	until(t, "all wait", func() bool { return f.queue.length() == 7 })
	cancel()
	gone.all.Wait()
	f.release(held)
	s.all.Wait()
	if s.made != 2 || f.Signatures() != 2 {
		t.Errorf("%d of 2 signed, %d signatures made", s.made, f.Signatures())
	}
}

// Calls that hang must not hold up what other sessions could sign, though the key is
// worth only as many calls at once as there are cores, or was before they began.
func TestOthersGoBesideCallsThatHang(t *testing.T) {
	for name, before := range map[string]time.Duration{"known to be local": localPace / 2, "not known": 0} {
		t.Run(name, func(t *testing.T) {
			cores := runtime.GOMAXPROCS(0)
			f := openSeam(t, func(c *Config) { c.Sessions, c.CallTimeout = cores+1, time.Minute })
			f.key.pace.Store(int64(before))
			h := hangAt(f, "Sign", int32(cores))
			held := new(signers)
			for range cores {
				held.start(t, 1, t.Context(), f.key)
				<-h.entered
			}
			f.key.pace.Store(int64(localPace / 2))
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
			if err := f.sign(t.Context()); err != nil {
				t.Error(err)
			}
			until(t, "all workers have ended and given their places back", func() bool {
				f.queue.mu.Lock()
				defer f.queue.mu.Unlock()
				return f.queue.alive == 0 && f.queue.workers == 0
			})
		})
	}
}

func TestALocalKeyIsWorthAsManyCallsAsThereAreCores(t *testing.T) {
	cores := runtime.GOMAXPROCS(0)
	f := openSeam(t, func(c *Config) { c.Sessions = cores + 2 })
	if n := f.workersFor(f.key); n != cores+2 {
		t.Errorf("a key that is not known gets %d calls", n)
	}
	f.key.pace.Store(int64(localPace / 2))
	if n := f.workersFor(f.key); n != cores {
		t.Errorf("a local key gets %d calls on %d cores", n, cores)
	}
	// Whoever is one too many ends, though there is work.
	op, err := newOperation(f.key.public, make([]byte, 32), hashOpts)
	if err != nil {
		t.Fatal(err)
	}
	f.queue.waiting, f.queue.workers = []*request{{key: f.key, op: op}}, cores+1
	if batch := f.nextBatch(); batch != nil || f.queue.workers != cores {
		t.Errorf("a surplus worker takes %d; %d workers stay", len(batch), f.queue.workers)
	}
	if batch := f.nextBatch(); len(batch) != 1 || f.queue.workers != cores {
		t.Errorf("a worker takes %d; %d workers stay", len(batch), f.queue.workers)
	}
	f.queue.workers = 0
}

// Behind one signature of a local key there may be many that are not.
func TestWhatStandsBehindALocalKeyGetsWorkersOfItsOwn(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions = 2 })
	other, err := f.GenerateKey(t.Context(), KeySpec{Label: "other", Algorithm: ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	f.key.pace.Store(int64(localPace / 2))
	var requests []*request
	for _, key := range []*Key{f.key, other} {
		op, err := newOperation(key.public, make([]byte, 32), hashOpts)
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, &request{ctx: t.Context(), key: key, op: op, since: time.Now(), done: make(chan result[[]byte], 1)})
	}
	f.queue.mu.Lock()
	f.queue.waiting, f.queue.workers = slices.Clone(requests), 1
	f.queue.mu.Unlock()
	if batch := f.nextBatch(); len(batch) != 1 || batch[0] != requests[0] {
		t.Fatalf("%d are taken", len(batch))
	}
	select {
	case got := <-requests[1].done:
		if got.err != nil {
			t.Error(got.err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody came for the second")
	}
}

// A worker that waits for a session hears that there will be none.
func TestASignatureThatWaitsForAStuckTokenIsAnswered(t *testing.T) {
	f := openSeam(t, oneSession)
	held, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := new(signers)
	s.start(t, 3, context.Background(), f.key)
	until(t, "all wait", func() bool { return f.queue.length() == 3 })
	f.setStuck("a test says so")
	s.all.Wait()
	if len(s.failed) != 3 || !errors.Is(s.failed[0], errModuleDead) {
		t.Errorf("%d made, failures %v", s.made, s.failed)
	}
	f.release(held)
}

// Calls that hang lose their sessions while Close waits for them.
func TestCloseDoesNotWaitForSessionsThatAreLostMeanwhile(t *testing.T) {
	f := openSeam(t, func(c *Config) { c.Sessions, c.CallTimeout, c.MaxAbandoned = 2, 300*time.Millisecond, 1 })
	h := hangAt(f, "Sign", 2)
	s := new(signers)
	for range 2 {
		s.start(t, 1, context.Background(), f.key)
		<-h.entered
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := f.Close(ctx); err != nil {
		t.Error(err)
	}
	s.all.Wait()
	close(h.release)
	until(t, "the calls come back", func() bool { return f.abandoned.Load() == 0 })
}

func TestThePaceIsTheFastestOfLate(t *testing.T) {
	var k Key
	if k.local() {
		t.Error("a key of which nothing is known is local")
	}
	k.pace.note(5 * time.Millisecond)
	if k.local() {
		t.Error("5 ms are local")
	}
	k.pace.note(30 * time.Microsecond)
	for range 3 {
		if k.pace.note(time.Second); !k.local() { // the thread was held up
			t.Errorf("the pace is %d ns", k.pace.Load())
		}
	}
	for range 10 {
		k.pace.note(time.Millisecond)
	}
	if k.local() {
		t.Errorf("after ten signatures of 1 ms the pace is %d ns", k.pace.Load())
	}
}

func TestSignEachKeepsWhatWasMadeBeforeAFailure(t *testing.T) {
	f := openSeam(t, oneSession)
	key, err := f.GenerateKey(t.Context(), KeySpec{Label: "rsa", Algorithm: RSA2048})
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer f.release(s)
	handle, err := key.handle(s)
	if err != nil {
		t.Fatal(err)
	}
	digests := [][]byte{make([]byte, 32), make([]byte, 32)}
	var messages [][]byte
	for _, d := range digests {
		rand.Read(d)
		messages = append(messages, append(bytes.Clone(digestInfo[hashOpts]), d...))
	}
	messages = append(messages, make([]byte, 300)) // longer than the modulus
	made, err := f.seam.cryptoki.SignEach(s.handle, pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), handle, messages, 256+signatureSlack, time.Hour)
	var code pkcs11.Error
	if len(made) != 2 || !errors.As(err, &code) || !strings.HasPrefix(err.Error(), "C_Sign: ") {
		t.Fatalf("%d made: %v", len(made), err)
	}
	_ = append(made[0], make([]byte, 64)...) // whoever has the first does no harm to the second
	for i, sig := range made {
		if err := Verify(key.Public(), digests[i], sig, hashOpts); err != nil {
			t.Errorf("signature %d: %v", i, err)
		}
	}
}

func TestSignEachSaysWhatFailed(t *testing.T) {
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
	made, err := lib.SignEach(s.handle, ecdsa, handle, digests, 64, time.Hour)
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
		made, err := lib.SignEach(s.handle, ecdsa, handle+c.off, digests, c.size, time.Hour)
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
	if _, err := lib.SignEach(s.handle, ecdsa, handle, nil, 64, time.Hour); err != nil {
		t.Errorf("no messages: %v", err)
	}
}

// A token that has become slow gets back what there is no time for.
func TestABatchEndsWhenItsTimeIsUp(t *testing.T) {
	f := openSeam(t, oneSession)
	s, err := f.acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	handle, err := f.key.handle(s)
	if err != nil {
		t.Fatal(err)
	}
	lib, ecdsa := f.seam.cryptoki.(library), pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
	digests := [][]byte{make([]byte, 32), make([]byte, 32), make([]byte, 32)}
	for _, lib := range []library{lib, {Ctx: lib.Ctx}} {
		if made, err := lib.SignEach(s.handle, ecdsa, handle, digests, 64, 0); err != nil || len(made) != 1 {
			t.Errorf("without time %d are made, %v", len(made), err)
		}
		if made, err := lib.SignEach(s.handle, ecdsa, handle, digests, 64, time.Hour); err != nil || len(made) != 3 {
			t.Errorf("with time %d are made, %v", len(made), err)
		}
	}
	f.release(s)
	w := queued(t, f, 20, func(call string) error {
		if call == "Sign" {
			time.Sleep(2 * localPace)
		}
		return nil
	}, func(w *signers) { w.start(t, 20, t.Context(), f.key) })
	w.all.Wait()
	if w.made != 21 {
		t.Errorf("%d of 21 signed; failures %v", w.made, w.failed)
	}
}

// Without functions that all share, signatures are made through miekg/pkcs11.
func TestAModuleWithoutSharedFunctionsSigns(t *testing.T) {
	f := openSeam(t, oneSession)
	f.seam.cryptoki = library{Ctx: f.seam.cryptoki.(library).Ctx}
	s := queued(t, f, 10, nil, func(s *signers) { s.start(t, 10, t.Context(), f.key) })
	s.all.Wait()
	if s.made != 11 {
		t.Errorf("%d of 11 signed; failures %v", s.made, s.failed)
	}
}
