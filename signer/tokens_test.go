package signer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/signer/hsm"
)

// shareKey puts one key into all tokens, as an HSM's own means would, and makes it the
// issuer's.
func (w *world) shareKey(tokens []testenv.HSM) {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	w.check(err)
	file := filepath.Join(w.t.TempDir(), "key.pem")
	w.check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	w.cfg.Tokens = nil
	for _, where := range tokens {
		cmd := exec.CommandContext(bounded(w.t), testenv.Program(w.t, "softhsm2-util", "softhsm2"),
			"--import", file, "--token", where.TokenLabel, "--pin", where.PIN, "--label", "shared", "--id", "5ba6ed")
		cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+where.Config)
		if out, err := cmd.CombinedOutput(); err != nil {
			w.t.Fatalf("importing a key: %v\n%s", err, out)
		}
		h := hsm.DefaultConfig()
		h.Module, h.TokenLabel, h.PINFile = where.Module, where.TokenLabel, where.PINFile
		w.cfg.Tokens = append(w.cfg.Tokens, h)
	}
	ctx := bounded(w.t)
	token, err := hsm.Open(ctx, w.cfg.Tokens[0], hsm.Deps{})
	w.check(err)
	defer func() { w.check(token.Close(ctx)) }()
	shared, err := token.Key(ctx, hsm.URI{Object: "shared"}.String())
	w.check(err)
	w.issuer.KeyURI = shared.URI()
	w.sign(shared)
}

// seats returns the token serials in which the signer signs for its one issuer.
func (r *running) seats() (serials []string) {
	for _, l := range r.allLines() {
		for _, s := range l.allSeats() {
			serials = append(serials, s.token.Serial())
		}
	}
	return serials
}

func TestTokensComeAndGoUnderLoadAndNoRequestFails(t *testing.T) {
	w := newWorld(t)
	w.shareKey(testenv.SoftHSMs(t, 2))
	one, two := w.cfg.Tokens[0], w.cfg.Tokens[1]
	w.cfg.Tokens = []hsm.Config{one}
	s := w.start()
	l := w.load()
	l.more(50)
	first := s.seats()
	if len(first) != 1 {
		t.Fatalf("the signer signs in %v", first)
	}
	// Step 1: a second token is added.
	w.check(s.SetTokens([]hsm.Config{one, two}))
	l.until("the second token signs too", func() bool { return len(s.seats()) == 2 })
	l.more(50)
	// Step 2: the first is taken out, and later it is another's: its account is closed.
	w.check(s.SetTokens([]hsm.Config{two}))
	l.until("the first token is out", func() bool {
		seats := s.seats()
		return len(seats) == 1 && seats[0] != first[0] && len(s.openTokens()) == 1 && s.Ready() == nil
	})
	l.until("the account of the first token is closed", func() bool {
		epochs, err := w.book.Epochs(bounded(t))
		w.check(err)
		for _, e := range epochs {
			if e.Token == first[0] {
				return e.Final && e.Signatures > 0
			}
		}
		return false
	})
	l.more(50)
	// Step 3: one is put in the other's place. It comes first, so that there is always one.
	w.check(s.SetTokens([]hsm.Config{one}))
	l.until("the tokens have changed places", func() bool {
		seats := s.seats()
		return len(seats) == 1 && seats[0] == first[0] && len(s.openTokens()) == 1
	})
	l.more(50)
	// Step 4: where the new one cannot be opened, the old one stays.
	gone := one
	gone.TokenLabel = "no such token"
	w.check(s.SetTokens([]hsm.Config{gone}))
	l.more(100)
	if seats := s.seats(); len(seats) != 1 || seats[0] != first[0] {
		t.Errorf("with a token that cannot be opened the signer signs in %v", seats)
	}
	w.check(s.SetTokens([]hsm.Config{one}))
	l.more(50)
	l.end()
	if err := s.SetTokens(nil); err == nil {
		t.Error("a list without tokens is accepted")
	}
	w.check(s.stop())
	epochs, err := w.book.Epochs(bounded(t))
	w.check(err)
	for _, e := range epochs {
		if !e.Final {
			t.Errorf("epoch %d in token %s is not final", e.ID, e.Token)
		}
	}
	t.Logf("%d requests, none failed", len(l.got))
}
