package hsm

import (
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricsTellWhatHappened(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := openWith(t, seamConfig(t, nil), Deps{Registry: registry, load: loadSeam})
	key, err := f.GenerateKey(t.Context(), KeySpec{Label: "key", Algorithm: ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	f.key = key
	f.seam.set(once("SignInit", pkcs11.CKR_SESSION_HANDLE_INVALID))
	for range 3 {
		if err := f.sign(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]float64{
		"certmill_hsm_sessions": 4, "certmill_hsm_sessions_busy": 0, "certmill_hsm_sign_seconds": 3, "certmill_hsm_wait_seconds": 3,
		"certmill_hsm_errors_total/reopen": 1, "certmill_hsm_errors_total/fatal": 0, "certmill_hsm_breaker_state": 0,
		"certmill_hsm_condition/ready": 1, "certmill_hsm_condition/down": 0, "certmill_hsm_calls_hanging": 0,
		"certmill_hsm_calls_abandoned_total": 0, "certmill_hsm_reinitialisations_total/ok": 0,
	} {
		if got := gathered(t, registry)[name]; got != want {
			t.Errorf("%s is %v, not %v", name, got, want)
		}
	}
	f.Condemn(errWrongSignature)
	if all := gathered(t, registry); all["certmill_hsm_condition/failed"] != 1 || all["certmill_hsm_condition/ready"] != 0 {
		t.Errorf("the metrics do not show that the token failed: %v", all)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := gathered(t, registry); len(all) != 0 {
		t.Errorf("a closed token leaves metrics behind: %v", all)
	}
}

// gathered returns the values, or for histograms the counts, by name and the label
// other than the token's.
func gathered(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			name := family.GetName()
			for _, l := range m.Label {
				if l.GetName() != "token" {
					name += "/" + l.GetValue()
				}
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}
