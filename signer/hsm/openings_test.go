package hsm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/certmill/certmill/internal/testenv"
)

// A token that cannot be opened is shown, and tried again but after a refused PIN, which
// would take the token nearer to its lock with each try.
func TestTokensThatCouldNotBeOpenedAreShown(t *testing.T) {
	soft := testenv.SoftHSM(t)
	pin := filepath.Join(t.TempDir(), "pin")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(pin, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("this is not the PIN")
	cfg := DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = soft.Module, soft.TokenLabel, pin
	absent := cfg
	absent.TokenLabel = "nobody-has-this"
	o := NewOpenings(Deps{Registry: prometheus.NewRegistry()})
	for range 2 {
		for _, c := range []Config{cfg, absent} {
			if token, err := o.Open(t.Context(), c); err == nil {
				t.Fatalf("%s was opened", token.Info().Label)
			}
		}
	}
	write(soft.PIN)
	if _, err := o.Open(t.Context(), cfg); RemedyFor(err) != Fatal {
		t.Errorf("after a refused PIN it is tried again: %v", err)
	}
	all := o.Unopened()
	if len(all) != 2 || all[0].Name != "nobody-has-this" || all[0].Condition != string(Down) || all[1].Name != soft.TokenLabel || all[1].Condition != string(Failed) {
		t.Fatalf("shown is %v", all)
	}
	if all[0].Reason == "" || all[1].Reason == "" || all[0].Since == nil {
		t.Errorf("no reason is shown: %v", all)
	}
	if got := testutil.ToFloat64(o.unopened.WithLabelValues(soft.TokenLabel)); got != 1 {
		t.Errorf("certmill_hsm_unopened is %g", got)
	}

	o.Keep([]Config{cfg})
	if all := o.Unopened(); len(all) != 1 || all[0].Name != soft.TokenLabel {
		t.Errorf("after a token was taken out of the configuration: %v", all)
	}

	next := NewOpenings(Deps{}) // a restart
	token, err := next.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(next.Unopened()) != 0 || token.Status().Condition != string(Ready) {
		t.Errorf("the open token is %v, unopened are %v", token.Status(), next.Unopened())
	}
	if err := token.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
