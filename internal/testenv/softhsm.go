package testenv

import (
	"strconv"
	"testing"

	"github.com/certmill/certmill/deploy/local"
)

// HSM is a SoftHSM token and how to open it.
type HSM struct {
	Module     string // path of the PKCS#11 module
	TokenLabel string
	PINFile    string
	PIN        string
	// Config is SOFTHSM2_CONF for child processes; this process has it already.
	Config string
}

// SoftHSM returns a new, empty token. SoftHSM reads its tokens at C_Initialize: a
// test that wants several at once takes them by SoftHSMs before it opens the first.
func SoftHSM(t testing.TB) HSM {
	t.Helper()
	return SoftHSMs(t, 1)[0]
}

// SoftHSMs returns n new, empty tokens in one module.
func SoftHSMs(t testing.TB, n int) []HSM {
	t.Helper()
	s, err := env.sharedSoftHSM()
	require(t, err)
	tokens := make([]HSM, n)
	for i := range tokens {
		ctx, cancel := startContext()
		token, err := s.Token(ctx, "test-"+strconv.FormatInt(env.next(), 10))
		cancel()
		require(t, err)
		tokens[i] = HSM{Module: s.Module, TokenLabel: token.Label, PINFile: token.PINFile, PIN: token.PIN, Config: s.ConfigFile}
	}
	return tokens
}

func (e *environment) sharedSoftHSM() (*local.SoftHSM, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.failed["softhsm"]; err != nil || e.softhsm != nil {
		return e.softhsm, err
	}
	dir, err := e.folder()
	if err == nil {
		e.softhsm, err = local.OpenSoftHSM(dir)
	}
	e.failed["softhsm"] = err
	return e.softhsm, err
}
