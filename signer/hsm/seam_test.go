package hsm

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/testenv"
)

// seam stands before a real module. A test sets what calls are to meet; a nil hook
// lets them through.
type seam struct {
	cryptoki
	mu    sync.Mutex
	calls map[string]int
	// meet is asked before each call; an error is its answer.
	meet func(call string) error
	// tokenFlags are added to those of every token.
	tokenFlags uint
	// spoil changes signatures.
	spoil func(sig []byte)
	// attributes changes what C_GetAttributeValue answers.
	attributes func([]*pkcs11.Attribute)
}

func (s *seam) set(meet func(string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meet = meet
}

func (s *seam) count(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[call]
}

// ask counts the call and asks meet, outside the lock since it may wait.
func (s *seam) ask(call string) error {
	s.mu.Lock()
	s.calls[call]++
	meet := s.meet
	s.mu.Unlock()
	if meet == nil {
		return nil
	}
	return meet(call)
}

func (s *seam) Initialize() error {
	if err := s.ask("Initialize"); err != nil {
		return err
	}
	return s.cryptoki.Initialize()
}

func (s *seam) Finalize() error {
	if err := s.ask("Finalize"); err != nil {
		return err
	}
	return s.cryptoki.Finalize()
}

func (s *seam) OpenSession(slot, flags uint) (pkcs11.SessionHandle, error) {
	if err := s.ask("OpenSession"); err != nil {
		return 0, err
	}
	if flags&pkcs11.CKF_RW_SESSION == 0 {
		if err := s.ask("OpenSession read-only"); err != nil {
			return 0, err
		}
	}
	return s.cryptoki.OpenSession(slot, flags)
}

func (s *seam) GetTokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	info, err := s.cryptoki.GetTokenInfo(slot)
	s.mu.Lock()
	defer s.mu.Unlock()
	info.Flags |= s.tokenFlags
	return info, err
}

func (s *seam) Login(h pkcs11.SessionHandle, user uint, pin string) error {
	if err := s.ask("Login"); err != nil {
		return err
	}
	return s.cryptoki.Login(h, user, pin)
}

func (s *seam) CopyObject(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := s.ask("CopyObject"); err != nil {
		return 0, err
	}
	return s.cryptoki.CopyObject(h, o, a)
}

func (s *seam) DestroyObject(h pkcs11.SessionHandle, o pkcs11.ObjectHandle) error {
	if err := s.ask("DestroyObject"); err != nil {
		return err
	}
	return s.cryptoki.DestroyObject(h, o)
}

func (s *seam) GetAttributeValue(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	values, err := s.cryptoki.GetAttributeValue(h, o, a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attributes != nil {
		s.attributes(values)
	}
	return values, err
}

func (s *seam) SignEach(h pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle, messages [][]byte, size int, limit time.Duration) ([][]byte, error) {
	if err := s.ask("SignEach"); err != nil {
		return nil, err
	}
	var signatures [][]byte
	for _, message := range messages {
		if err := s.ask("SignInit"); err != nil {
			return signatures, err
		}
		if err := s.ask("Sign"); err != nil {
			// The operation stays active, as with a token that fails in C_Sign.
			_ = s.cryptoki.(library).SignInit(h, []*pkcs11.Mechanism{m}, o)
			return signatures, err
		}
		one, err := s.cryptoki.SignEach(h, m, o, [][]byte{message}, size, limit)
		if err != nil {
			return signatures, err
		}
		s.mu.Lock()
		if s.spoil != nil {
			s.spoil(one[0])
		}
		s.mu.Unlock()
		signatures = append(signatures, one[0])
	}
	return signatures, nil
}

// seams are the modules with a seam, by path: a module lives as long as the process.
var seams = struct {
	sync.Mutex
	byPath map[string]*seam
}{byPath: map[string]*seam{}}

// loadSeam loads a module with a seam, transparent at first.
func loadSeam(path, parameters string) (cryptoki, error) {
	lib, err := loadLibrary(path, parameters)
	if err != nil {
		return nil, err
	}
	seams.Lock()
	defer seams.Unlock()
	seams.byPath[path] = &seam{cryptoki: lib, calls: map[string]int{}}
	return seams.byPath[path], nil
}

// fixture is a token behind a seam, with one P-256 key.
type fixture struct {
	*Token
	key  *Key
	seam *seam
	log  *syncBuffer
}

// open opens a new SoftHSM token behind a seam. Every module has one seam, so a test
// that fails does not leave its hooks behind.
func openSeam(t *testing.T, change func(*Config)) fixture {
	t.Helper()
	cfg := seamConfig(t, change)
	log := new(syncBuffer)
	f := openWith(t, cfg, Deps{Log: slog.New(slog.NewTextHandler(log, nil)), load: loadSeam})
	f.log = log
	key, err := f.GenerateKey(t.Context(), KeySpec{Label: "key", Algorithm: ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	f.key = key
	return f
}

func seamConfig(t *testing.T, change func(*Config)) Config {
	t.Helper()
	where := testenv.SoftHSM(t)
	cfg := DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = privateCopy(t, where.Module), where.TokenLabel, where.PINFile
	cfg.ProbeInterval, cfg.IdleCheck = 10*time.Millisecond, 0
	if change != nil {
		change(&cfg)
	}
	return cfg
}

func openWith(t *testing.T, cfg Config, deps Deps) fixture {
	t.Helper()
	token, err := Open(t.Context(), cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	seams.Lock()
	s := seams.byPath[token.info.Module]
	seams.Unlock()
	t.Cleanup(func() {
		s.set(nil)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := token.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return fixture{Token: token, seam: s}
}

// sign signs once and checks the signature.
func (f fixture) sign(ctx context.Context) error {
	digest := make([]byte, 32)
	sig, err := f.key.SignContext(ctx, digest, hashOpts)
	if err != nil {
		return err
	}
	return Verify(f.key.Public(), digest, sig, hashOpts)
}

// until waits for a condition that other goroutines bring about.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// syncBuffer is a log that tests may read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
