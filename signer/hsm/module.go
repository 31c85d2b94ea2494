package hsm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// module is a PKCS#11 library, shared by the tokens of the process that name it.
//
// Every call into the library stands between enter and leave, so that C_Finalize
// never runs beside another call: what happens then is undefined (PKCS#11 v2.40
// section 5.4, C_Finalize).
type module struct {
	path       string
	parameters string // for C_Initialize
	lib        cryptoki

	mu         sync.Mutex
	refs       int
	owned      bool // C_Initialize was ours, so C_Finalize may be
	dead       bool // C_Initialize or C_Finalize never came back
	generation uint64
	inside     int           // calls between enter and leave
	hung       int           // calls given up that have not come back
	shut       chan struct{} // not nil while someone excludes all others; closed at the end
	empty      chan struct{} // closed when inside falls to 0; not nil only while shut
	lastReinit time.Time
	tokens     map[*Token]struct{}
	// holders finds the session that believes it holds a handle. Where the module
	// hands out a handle twice, the earlier holder has lost its session.
	holders map[pkcs11.SessionHandle]*session
}

// modules holds every library that the process has loaded, by path. The lock is a
// channel since it is held across C_Initialize, and a wait for it obeys a context.
var modules = struct {
	lock   chan struct{}
	byPath map[string]*module
}{lock: make(chan struct{}, 1), byPath: make(map[string]*module)}

var (
	errHung       = errors.New("the call into the PKCS#11 module did not come back in time")
	errModuleDead = errors.New("the PKCS#11 module hangs; only a new process can use it again")
)

// loader loads a module.
type loader func(path, parameters string) (cryptoki, error)

// acquireModule returns the initialised module at path. Each acquire needs a release.
func acquireModule(ctx context.Context, cfg settings, load loader) (*module, error) {
	path := cfg.Module
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	select {
	case modules.lock <- struct{}{}:
		defer func() { <-modules.lock }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m := modules.byPath[path]
	if m == nil || m.refs == 0 && !m.isDead() && m.parameters != cfg.InitParameters {
		lib, err := load(path, cfg.InitParameters)
		if err != nil {
			return nil, err
		}
		m = &module{path: path, parameters: cfg.InitParameters, lib: lib}
		modules.byPath[path] = m
	}
	if m.parameters != cfg.InitParameters {
		return nil, fmt.Errorf("%s is in use with other init_parameters", path)
	}
	if m.refs == 0 {
		if err := m.initialize(cfg.OpenTimeout); err != nil {
			return nil, fmt.Errorf("initialising %s: %w", path, err)
		}
	}
	m.mu.Lock()
	m.refs++
	m.mu.Unlock()
	return m, nil
}

// initialize runs C_Initialize. The caller excludes everyone else.
func (m *module) initialize(limit time.Duration) error {
	if m.isDead() {
		return errModuleDead
	}
	err := m.bounded(limit, m.lib.Initialize)
	already := errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED))
	if err != nil && !already {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owned = !already
	m.generation++
	m.tokens = make(map[*Token]struct{})
	m.holders = make(map[pkcs11.SessionHandle]*session)
	return nil
}

// release gives the module back; the last one ends it, unless a call still hangs inside.
func (m *module) release(t *Token, limit time.Duration) error {
	modules.lock <- struct{}{}
	defer func() { <-modules.lock }()
	m.mu.Lock()
	delete(m.tokens, t)
	m.refs--
	finalize := m.refs == 0 && m.owned && m.hung == 0 && !m.dead
	m.mu.Unlock()
	if !finalize {
		return nil
	}
	return m.bounded(limit, m.lib.Finalize)
}

// bounded runs a call that may hang, with everyone else excluded. After a hang the
// module is dead.
func (m *module) bounded(limit time.Duration, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		m.mu.Lock()
		m.dead = true
		m.mu.Unlock()
		return errHung
	}
}

func (m *module) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *module) join(t *Token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t] = struct{}{}
}

// enter lets a call into the library, after whoever has it for himself.
func (m *module) enter(ctx context.Context) error {
	for {
		m.mu.Lock()
		if m.dead {
			m.mu.Unlock()
			return errModuleDead
		}
		shut := m.shut
		if shut == nil {
			m.inside++
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		select {
		case <-shut:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave ends a call.
func (m *module) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left()
}

// giveUp ends the wait for a call that hangs; cameBack follows if it ever returns.
func (m *module) giveUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hung++
	m.left()
}

func (m *module) left() {
	m.inside--
	if m.inside == 0 && m.empty != nil {
		close(m.empty)
		m.empty = nil
	}
}

// cameBack notes that a call given up has returned. It closes the call's session
// where that still exists, so that the token gets it back.
func (m *module) cameBack(s *session) {
	m.mu.Lock()
	m.hung--
	usable := s.handle != 0 && s.generation == m.generation && m.holders[s.handle] == s && m.shut == nil && !m.dead
	if usable {
		delete(m.holders, s.handle)
		m.inside++
	}
	m.mu.Unlock()
	if usable {
		// The session is lost either way, so its error changes nothing.
		_ = m.lib.CloseSession(s.handle)
		m.leave()
	}
}

// hold notes that s holds handle, and tells an earlier holder that it has lost it.
func (m *module) hold(s *session, handle pkcs11.SessionHandle) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.holders[handle]; old != nil && old != s {
		old.lost.Store(true)
	}
	m.holders[handle] = s
	s.handle, s.generation = handle, m.generation
	s.lost.Store(false)
}

// letGo forgets the handle of s and reports whether it was still its own, so that
// it may be closed.
func (m *module) letGo(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.generation != m.generation || m.holders[s.handle] != s {
		return false
	}
	delete(m.holders, s.handle)
	return true
}

func (m *module) current() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.generation
}

// reinitialise runs C_Finalize and C_Initialize with everyone else excluded. All
// sessions of all tokens of the module are gone afterwards; they notice by the generation.
func (m *module) reinitialise(ctx context.Context, limit time.Duration, now time.Time) error {
	m.mu.Lock()
	switch {
	case m.dead:
		m.mu.Unlock()
		return errModuleDead
	case !m.owned:
		m.mu.Unlock()
		return errors.New("the PKCS#11 module was initialised by another part of the process, which must do it again")
	case m.shut != nil:
		m.mu.Unlock()
		return errors.New("the PKCS#11 module is being initialised again already")
	}
	m.shut = make(chan struct{})
	empty := make(chan struct{})
	if m.inside == 0 {
		close(empty)
	} else {
		m.empty = empty
	}
	m.lastReinit = now
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		close(m.shut)
		m.shut, m.empty = nil, nil
		m.mu.Unlock()
	}()

	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
		return errHung
	case <-ctx.Done():
		return ctx.Err()
	}
	return m.restart(limit)
}

// restart is reinitialise with nobody inside but calls that hang; beside those
// C_Finalize must not run.
func (m *module) restart(limit time.Duration) error {
	m.mu.Lock()
	hung := m.hung
	m.mu.Unlock()
	if hung > 0 {
		return errModuleDead
	}
	err := m.bounded(limit, m.lib.Finalize)
	if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)) {
		return fmt.Errorf("C_Finalize: %w", err)
	}
	if err := m.bounded(limit, m.lib.Initialize); err != nil {
		return fmt.Errorf("C_Initialize: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.generation++
	m.holders = make(map[pkcs11.SessionHandle]*session)
	return nil
}

// others returns the other tokens of the module and when it was last initialised again.
func (m *module) others(t *Token) (others []*Token, lastReinit time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.tokens {
		if o != t {
			others = append(others, o)
		}
	}
	return others, m.lastReinit
}
