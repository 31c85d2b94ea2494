package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sony/gobreaker/v2"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Deps are what a Token needs of the process around it; nil fields do nothing.
type Deps struct {
	Log      *slog.Logger
	Registry prometheus.Registerer
	Tracer   trace.Tracer

	// load loads a module; tests put their own in its place.
	load loader
}

// Info describes a token.
type Info struct {
	Module                             string // path of the library
	Library                            string // as the library calls itself, with its version
	Label, Serial, Manufacturer, Model string
	Firmware                           string
	Sessions                           int
}

// Token is a PKCS#11 token in use: logged in, with a pool of sessions. It is safe
// for concurrent use. Open makes it and Close ends it.
type Token struct {
	cfg     settings
	log     *slog.Logger
	tracer  trace.Tracer
	metrics *metrics
	module  *module
	info    Info

	queue      signQueue
	free       chan *session // the idle sessions; its capacity is their number
	closing    chan struct{} // closed by Close
	closeOnce  sync.Once
	needsLogin atomic.Bool
	setup      chan struct{} // held by alone
	logins     atomic.Uint64 // successful C_Login calls; object handles do not outlive one
	abandoned  atomic.Int64  // calls given up that have not come back
	lostSlots  atomic.Int64  // places of the pool lost to calls beyond MaxAbandoned
	signatures atomic.Uint64

	breaker *gobreaker.CircuitBreaker[[]byte]
	trip    atomic.Bool   // the next failure takes the token out, whatever their number
	wake    chan struct{} // tells the keeper of a change
	stop    context.CancelFunc
	keeping sync.WaitGroup // the keeper
	stuck   chan struct{}  // closed by setStuck

	mu             sync.Mutex
	slot           uint
	slotGeneration uint64 // of the module when slot was found; 0: never
	keys           map[string]*Key
	testKey        *Key // signs the test signatures
	failed         error
	stuckReason    string
	reason         string // why the breaker opened last
	since          time.Time
	recoveries     int
}

// Open loads the module, finds the token, logs in once and opens the sessions. It
// fails where any of that fails, within cfg.OpenTimeout; a PIN that is refused is
// not tried again.
func Open(ctx context.Context, cfg Config, deps Deps) (*Token, error) {
	s, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.OpenTimeout)
	defer cancel()
	t, err := newToken(ctx, s, deps)
	if err != nil {
		return nil, fmt.Errorf("opening the HSM token: %w", err)
	}
	if err := t.openSessions(ctx); err != nil {
		err = fmt.Errorf("opening the HSM token %q: %w", t.name(), err)
		return nil, errors.Join(err, t.Close(context.WithoutCancel(ctx)))
	}
	t.log.Info("HSM token open", "module", t.info.Module, "serial", t.info.Serial, "model", t.info.Model, "sessions", s.Sessions)
	t.startKeeper()
	return t, nil
}

func newToken(ctx context.Context, s settings, deps Deps) (*Token, error) {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Tracer == nil {
		deps.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if deps.load == nil {
		deps.load = loadLibrary
	}
	m, err := acquireModule(ctx, s, deps.load)
	if err != nil {
		return nil, err
	}
	t := &Token{
		cfg: s, tracer: deps.Tracer, module: m,
		free: make(chan *session, s.Sessions), closing: make(chan struct{}), stuck: make(chan struct{}),
		queue: signQueue{ended: make(chan struct{}, 1)}, setup: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		keys: make(map[string]*Key), since: time.Now(), stop: func() {},
	}
	t.log = deps.Log.With("token", t.name())
	t.metrics = newMetrics(deps.Registry, t)
	t.breaker = t.newBreaker()
	m.join(t)
	for range s.Sessions {
		t.release(newSession())
	}
	return t, nil
}

// name is how logs and metrics call the token: as the configuration does.
func (t *Token) name() string { return t.cfg.name() }

// openSessions finds the token and opens its sessions, one after the other. Each
// call gives its session back behind those that wait, so the next one is a new one.
func (t *Token) openSessions(ctx context.Context) error {
	for range t.cfg.Sessions {
		s, err := t.acquire(ctx)
		if err != nil {
			return err
		}
		info, err := runOn(ctx, t, s, t.cfg.OpenTimeout, func(s *session) (Info, error) {
			info, err := t.describe()
			if err != nil {
				return info, err
			}
			return info, t.ready(s)
		})
		if err != nil {
			return err
		}
		t.info = info
	}
	return nil
}

// describe finds the token and reads what it says of itself.
func (t *Token) describe() (Info, error) {
	slot, err := t.findSlot()
	if err != nil {
		return Info{}, err
	}
	i, err := t.module.lib.GetTokenInfo(slot)
	if err != nil {
		return Info{}, fmt.Errorf("C_GetTokenInfo: %w", err)
	}
	i = cleanTokenInfo(i)
	lib, err := t.module.lib.GetInfo()
	if err != nil {
		return Info{}, fmt.Errorf("C_GetInfo: %w", err)
	}
	t.needsLogin.Store(i.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0)
	return Info{
		Module:  t.module.path,
		Library: fmt.Sprintf("%s %d.%d", tokenText(lib.LibraryDescription), lib.LibraryVersion.Major, lib.LibraryVersion.Minor),
		Label:   i.Label, Serial: i.SerialNumber, Manufacturer: i.ManufacturerID, Model: i.Model,
		Firmware: fmt.Sprintf("%d.%d", i.FirmwareVersion.Major, i.FirmwareVersion.Minor),
		Sessions: t.cfg.Sessions,
	}, nil
}

// findSlot returns the slot of the token. Slots may be numbered anew when the module
// is initialised again, so it looks once per generation of the module.
func (t *Token) findSlot() (uint, error) {
	generation := t.module.current()
	t.mu.Lock()
	slot, known := t.slot, t.slotGeneration == generation
	t.mu.Unlock()
	if known {
		return slot, nil
	}
	slot, err := t.lookForSlot()
	if err != nil {
		return 0, err
	}
	t.mu.Lock()
	t.slot, t.slotGeneration = slot, generation
	t.mu.Unlock()
	return slot, nil
}

func (t *Token) lookForSlot() (uint, error) {
	slots, err := t.module.lib.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var found, seen []string
	var slot uint
	for _, s := range slots {
		i, err := t.module.lib.GetTokenInfo(s)
		if err != nil {
			continue // another slot's trouble is not ours
		}
		i = cleanTokenInfo(i)
		seen = append(seen, i.Label+" ("+i.SerialNumber+")")
		// Once open, only the very same token will do.
		if t.cfg.token.matches(i) && (t.info.Serial == "" || t.info.Serial == i.SerialNumber) {
			slot = s
			found = append(found, i.SerialNumber)
		}
	}
	switch len(found) {
	case 1:
		return slot, nil
	case 0:
		return 0, fmt.Errorf("%w; the module shows %q%s", errNoToken, seen, softHSMHint(t.cfg.Module))
	default:
		return 0, fmt.Errorf("%d tokens match, with the serial numbers %q; name one by its serial number", len(found), found)
	}
}

// softHSMHint says what may be missing where a module is SoftHSM by its name.
func softHSMHint(module string) string {
	if !strings.Contains(strings.ToLower(filepath.Base(module)), "softhsm") || os.Getenv("SOFTHSM2_CONF") != "" {
		return ""
	}
	return "; SOFTHSM2_CONF is not set: it names SoftHSM's configuration file, and that the folder of the tokens"
}

// Info describes the token as it was found by Open.
func (t *Token) Info() Info { return t.info }

// Signatures returns how many signatures the token has made since Open, those whose
// caller had gone included and test signatures not.
func (t *Token) Signatures() uint64 { return t.signatures.Load() }

// Close refuses new work, waits until the calls inside the token have returned or
// ctx has ended, closes the sessions and, with the last token of the module, ends
// the module. Calls that were given up are not waited for.
func (t *Token) Close(ctx context.Context) error {
	var err error
	t.closeOnce.Do(func() {
		close(t.closing)
		t.stop()
		t.keeping.Wait()
		if err = t.closeSessions(ctx); err == nil {
			err = t.queue.endWorkers(ctx)
		}
		t.metrics.unregister()
		err = errors.Join(err, t.module.release(t, t.cfg.OpenTimeout))
	})
	return err
}

func (t *Token) closeSessions(ctx context.Context) error {
	// A call that hangs may take its place with it while this waits.
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for closed := 0; closed < t.cfg.Sessions-int(t.lostSlots.Load()); {
		select {
		case s := <-t.free:
			closed++
			if err := t.module.enter(ctx); err != nil {
				continue // the module is dead, and its sessions with it
			}
			t.closeBounded(s)
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("closing the HSM token: calls are still inside: %w", ctx.Err())
		}
	}
	return nil
}

// closeBounded closes a session whose call has entered the module.
func (t *Token) closeBounded(s *session) {
	done := make(chan struct{})
	var settled atomic.Bool
	go func() {
		t.closeSession(s)
		if settled.CompareAndSwap(false, true) {
			t.module.leave()
		} else {
			t.module.cameBack(newSession())
		}
		close(done)
	}()
	timer := time.NewTimer(t.cfg.CallTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		if settled.CompareAndSwap(false, true) {
			t.module.giveUp()
		}
	}
}
