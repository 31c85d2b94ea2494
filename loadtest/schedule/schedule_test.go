package schedule

import (
	"math"
	"testing"
	"time"
)

// collect returns the arrivals before end.
func collect(s Schedule, seed uint64, end time.Duration) []time.Duration {
	var out []time.Duration
	for a := s.Arrivals(seed); ; {
		due, ok := a.Next()
		if !ok || due >= end {
			return out
		}
		out = append(out, due)
	}
}

// between counts the arrivals in [from, to).
func between(due []time.Duration, from, to time.Duration) int {
	n := 0
	for _, d := range due {
		if d >= from && d < to {
			n++
		}
	}
	return n
}

func mustParse(t *testing.T, spec string) Schedule {
	t.Helper()
	s, err := Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConstantArrivalsAreEvenlySpaced(t *testing.T) {
	due := collect(mustParse(t, "constant:rate=200"), 1, 10*time.Second)
	if len(due) != 2000 {
		t.Fatalf("%d arrivals in 10 s at 200/s", len(due))
	}
	if due[0] != 0 {
		t.Errorf("the first is due at %s, not at once", due[0])
	}
	for i := 1; i < len(due); i++ {
		if gap := due[i] - due[i-1]; (gap - 5*time.Millisecond).Abs() > time.Microsecond {
			t.Fatalf("gap %d is %s, not 5ms", i, gap)
		}
	}
}

func TestPoissonArrivalsHaveExponentialGaps(t *testing.T) {
	due := collect(mustParse(t, "poisson:rate=1000"), 7, 100*time.Second)
	if n := float64(len(due)); math.Abs(n-100_000) > 5*math.Sqrt(100_000) {
		t.Fatalf("%g arrivals, not about 100,000", n)
	}
	var sum, squares float64
	for i := 1; i < len(due); i++ {
		g := (due[i] - due[i-1]).Seconds()
		sum += g
		squares += g * g
	}
	n := float64(len(due) - 1)
	mean := sum / n
	cv := math.Sqrt(squares/n-mean*mean) / mean
	if math.Abs(cv-1) > 0.03 {
		t.Errorf("coefficient of variation of the gaps is %.3f; of a Poisson process it is 1", cv)
	}
	again := collect(mustParse(t, "poisson:rate=1000"), 7, time.Second)
	for i := range again {
		if again[i] != due[i] {
			t.Fatal("the same seed gave other arrivals")
		}
	}
}

func TestRatesFollowTheShape(t *testing.T) {
	type window struct {
		from, to time.Duration
		want     float64
	}
	for spec, windows := range map[string][]window{
		"ramp:from=0,to=1000,over=10s,spacing=even":            {{0, 10 * time.Second, 5000}, {0, 5 * time.Second, 1250}, {10 * time.Second, 12 * time.Second, 2000}},
		"ramp:from=1000,to=100,over=10s":                       {{0, 10 * time.Second, 5500}, {10 * time.Second, 20 * time.Second, 1000}},
		"step:from=100,by=200,every=5s,spacing=even":           {{0, 5 * time.Second, 500}, {5 * time.Second, 10 * time.Second, 1500}, {10 * time.Second, 15 * time.Second, 2500}},
		"spike:base=100,peak=2000,at=4s,for=2s,spacing=even":   {{0, 4 * time.Second, 400}, {4 * time.Second, 6 * time.Second, 4000}, {6 * time.Second, 10 * time.Second, 400}},
		"spike:base=0,peak=500,at=1s,for=1s,spacing=even":      {{0, time.Second, 0}, {time.Second, 2 * time.Second, 500}},
		"step:from=300,by=-100,every=1s,spacing=even":          {{0, time.Second, 300}, {2 * time.Second, 3 * time.Second, 100}, {3 * time.Second, 20 * time.Second, 0}},
		"herd:agents=5000,lifetime=20s,spread=2s,ca_jitter=0":  {{0, 2 * time.Second, 5000}, {3 * time.Second, 9 * time.Second, 0}, {9 * time.Second, 13 * time.Second, 5000}},
		"herd:agents=500,lifetime=4s,spread=500ms,jitter=0.01": {{0, time.Second, 500}, {1 * time.Second, 1900 * time.Millisecond, 0}},
	} {
		t.Run(spec, func(t *testing.T) {
			due := collect(mustParse(t, spec), 3, 20*time.Second)
			for i := 1; i < len(due); i++ {
				if due[i] < due[i-1] {
					t.Fatalf("arrival %d is due before the one ahead of it", i)
				}
			}
			for _, w := range windows {
				got := float64(between(due, w.from, w.to))
				if slack := 2 + 5*math.Sqrt(w.want); math.Abs(got-w.want) > slack {
					t.Errorf("%g arrivals in [%s, %s), want %g", got, w.from, w.to, w.want)
				}
			}
		})
	}
}

func TestExpectedAgreesWithArrivals(t *testing.T) {
	for _, spec := range []string{"constant:rate=50", "ramp:from=10,to=300,over=8s", "step:from=10,by=50,every=3s", "spike:base=20,peak=900,at=2s,for=3s", "herd:agents=900,lifetime=10s,spread=1s"} {
		s := mustParse(t, spec)
		for _, d := range []time.Duration{2500 * time.Millisecond, 13 * time.Second} {
			want := float64(len(collect(s, 5, d)))
			if got := s.Expected(d); math.Abs(got-want) > 3+5*math.Sqrt(want) {
				t.Errorf("%s: Expected(%s) = %g, there were %g", spec, d, got, want)
			}
		}
	}
}

func TestAHerdStaysTogetherUnlessTheCAVariesTheLifetime(t *testing.T) {
	// The busiest second of the 8th wave, with and without a jitter of the CA.
	busiest := func(spec string) int {
		due, most := collect(mustParse(t, spec), 11, 85*time.Second), 0
		for s := 75 * time.Second; s < 85*time.Second; s += time.Second {
			most = max(most, between(due, s, s+time.Second))
		}
		return most
	}
	herd := busiest("herd:agents=10000,lifetime=20s,spread=1s,jitter=0.001")
	spread := busiest("herd:agents=10000,lifetime=20s,spread=1s,jitter=0.001,ca_jitter=0.2")
	if herd < 2*spread {
		t.Errorf("busiest second: %d without and %d with a CA jitter; it should have dissolved", herd, spread)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for _, spec := range []string{"", "burst:rate=1", "constant", "constant:rate=0", "constant:rate=x", "constant:rate=1,spacing=even", "ramp:from=1,to=2", "herd:agents=0,lifetime=1h", "constant:rate", "poisson:rate=1e9", "step:from=1,every=1s", "spike:base=1,peak=2,at=1s,for=-1s", "ramp:from=1,to=2,over=1s,spacing=odd"} {
		if s, err := Parse(spec); err == nil {
			t.Errorf("Parse(%q) = %s, want an error", spec, s)
		}
	}
	for _, spec := range []string{"250", "herd:agents=10,lifetime=1h", "spike:base=0,peak=5,at=1s,for=1s"} {
		s := mustParse(t, spec)
		if again := mustParse(t, s.String()); again.String() != s.String() {
			t.Errorf("%q became %q and then %q", spec, s, again)
		}
	}
}
