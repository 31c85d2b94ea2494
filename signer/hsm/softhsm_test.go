package hsm_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/signer/hsm"
	"github.com/certmill/certmill/signer/hsm/hsmtest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestSoftHSM(t *testing.T) {
	hsmtest.Run(t, hsmtest.Backend{Name: "SoftHSM", Config: softHSM, TakeAway: takeSoftHSMAway})
}

// softHSM names a new SoftHSM token, with times short enough for a test.
func softHSM(t *testing.T) hsm.Config {
	token := testenv.SoftHSM(t)
	cfg := hsm.DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = token.Module, token.TokenLabel, token.PINFile
	cfg.ProbeInterval = 20 * time.Millisecond
	return cfg
}

// takeSoftHSMAway moves the folder of all tokens away and back.
func takeSoftHSMAway(t *testing.T, _ hsm.Config) (putBack func()) {
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "softhsm")
	away := tokens + ".away"
	if err := os.Rename(tokens, away); err != nil {
		t.Fatal(err)
	}
	back := false
	putBack = func() {
		if back {
			return
		}
		back = true
		if err := os.Rename(away, tokens); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(putBack)
	return putBack
}
