package presence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func states(r *Roll) string {
	var out []string
	for _, m := range r.Roles() {
		out = append(out, m.Role+" "+m.Name+" "+m.State)
	}
	return strings.Join(out, ", ")
}

func TestAProcessIsSilentThenForgottenAndItsSuccessorTakesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		roll := NewRoll(time.Now)
		first := NewReporter(Signer, "s1", func(*certmillv1.RoleStatus) {})
		roll.Hear(first.Report())
		if got := states(roll); got != "signer s1 ready" {
			t.Fatalf("after a report: %s", got)
		}
		time.Sleep(SilentAfter + time.Second)
		if got := states(roll); got != "signer s1 silent" {
			t.Fatalf("after a silence: %s", got)
		}
		second := NewReporter(Signer, "s1", func(m *certmillv1.RoleStatus) { State(m, errors.New("no token")) })
		roll.Hear(second.Report())
		if got := states(roll); got != "signer s1 not_ready" {
			t.Fatalf("after a new start: %s", got)
		}
		time.Sleep(forgetAfter + time.Second)
		if got := states(roll); got != "" {
			t.Fatalf("after ten minutes: %s", got)
		}
	})
}

func TestTheRollKnowsWhichIssuersCanBeSignedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		roll := NewRoll(time.Now)
		say := func(name, state string, issuers ...string) {
			time.Sleep(time.Millisecond)
			roll.Hear(NewReporter(Signer, name, func(m *certmillv1.RoleStatus) { m.State, m.Issuers = state, issuers }).Report())
		}
		begin := time.Now()
		say("a", Ready, "one", "two")
		say("b", NotReady, "two", "three")
		say("c", Draining, "four")
		say("d", Stopped, "five")
		got := roll.Signing()
		if len(got) != 3 || got["one"].Sub(begin) != time.Millisecond || got["two"].Sub(begin) != 2*time.Millisecond || got["three"].IsZero() {
			t.Errorf("the roll has %v", got)
		}
		time.Sleep(SilentAfter)
		if got := roll.Signing(); len(got) != 0 {
			t.Errorf("after a silence the roll has %v", got)
		}
	})
}

func TestReportsThatAreOldStrangeOrTooManyAreNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		roll := NewRoll(time.Now)
		r := NewReporter(Gateway, "g", func(*certmillv1.RoleStatus) {})
		old := r.Report()
		time.Sleep(time.Second)
		now := r.Report()
		if !roll.Hear(now) || roll.Hear(old) || roll.Hear(now) {
			t.Error("an older report or a repetition is heard")
		}
		for name, skew := range map[string]time.Duration{"past": -2 * time.Minute, "future": 2 * time.Minute} {
			if roll.Hear(&certmillv1.RoleStatus{Instance: name, Reported: timestamppb.New(time.Now().Add(skew))}) {
				t.Errorf("a report of the %s is heard", name)
			}
		}
		if roll.Hear(&certmillv1.RoleStatus{Reported: timestamppb.Now()}) {
			t.Error("a report of nobody is heard")
		}
		for i := range maxHeard + 10 {
			roll.Hear(&certmillv1.RoleStatus{Instance: fmt.Sprint(i), Reported: timestamppb.Now()})
		}
		if n := len(roll.Roles()); n != maxHeard {
			t.Errorf("%d processes are kept", n)
		}
	})
}

func TestAReporterReportsAtOnceAtIntervalsAndAtItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		var broken atomic.Bool
		failures := 0
		go func() {
			defer close(done)
			NewReporter(Signer, "s", func(*certmillv1.RoleStatus) {}).Run(ctx, func(_ context.Context, m *certmillv1.RoleStatus) error {
				if broken.Load() {
					return errors.New("away")
				}
				got = append(got, m.State)
				return nil
			}, func(error) { failures++ })
		}()
		synctest.Wait()
		time.Sleep(2*Interval + time.Millisecond)
		broken.Store(true)
		time.Sleep(3 * Interval)
		broken.Store(false)
		cancel()
		<-done
		if want := "[ready ready ready stopped]"; fmt.Sprint(got) != want {
			t.Errorf("sent %v, want %s", got, want)
		}
		if failures != 1 {
			t.Errorf("a broker that is away is told %d times", failures)
		}
	})
}

func TestAReportStaysWithinItsBounds(t *testing.T) {
	m := NewReporter(Signer, "s", func(m *certmillv1.RoleStatus) {
		State(m, errors.New(strings.Repeat("é", maxReason)))
		for range 2 * maxParts {
			m.Bounds = append(m.Bounds, &certmillv1.Bound{})
			m.Tokens = append(m.Tokens, &certmillv1.TokenStatus{Reason: strings.Repeat("x", 2*maxReason)})
		}
	}).Report()
	if len(m.Bounds) != maxParts || len(m.Tokens) != maxParts || len(m.Tokens[0].Reason) != maxReason {
		t.Errorf("%d bounds, %d tokens, a reason of %d bytes", len(m.Bounds), len(m.Tokens), len(m.Tokens[0].Reason))
	}
	if len(m.Reason) > maxReason || !strings.HasSuffix(m.Reason, "é") {
		t.Errorf("a reason of %d bytes ends in %q", len(m.Reason), m.Reason[len(m.Reason)-2:])
	}
}

func TestAnActivityCountsTheWholeSecondsOfItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Window
		for range 30 { // seconds, of which the window holds nine
			for range 10 {
				w.Count(Issued, 4*time.Millisecond, time.Now())
			}
			w.Count(Issued, 40*time.Second, time.Now())
			w.Count(Failed, 0, time.Now())
			w.Count(Refused, 0, time.Now())
			time.Sleep(time.Second)
		}
		a := w.Activity(time.Now())
		if a.Seconds != 9 || a.Issued != 99 || a.Failed != 9 || a.Refused != 9 {
			t.Fatalf("got %v", a)
		}
		both := Sum([]*certmillv1.Activity{a, w.Activity(time.Now()), nil})
		if got := Rate(both); got != 22 {
			t.Errorf("two gateways issue %g certificates a second", got)
		}
		if p50, p99 := Quantile(both, .5), Quantile(both, .99); p50 != 5*time.Millisecond || p99 != 30*time.Second {
			t.Errorf("p50 %s, p99 %s", p50, p99)
		}
		time.Sleep(time.Minute)
		if a := w.Activity(time.Now()); a.Issued != 0 || Quantile(a, .5) != 0 {
			t.Errorf("after a minute without work: %v", a)
		}
	})
}

func TestAReportThatIsReadLaterIsWhatItIsByNow(t *testing.T) {
	for _, c := range []struct {
		state string
		age   time.Duration
		want  string // "": forgotten
	}{
		{Ready, time.Second, Ready}, {NotReady, SilentAfter, NotReady}, {Ready, SilentAfter + time.Millisecond, Silent}, {Ready, forgetAfter + time.Second, ""},
		{Stopped, stoppedFor, Stopped}, {Stopped, stoppedFor + time.Second, ""},
	} {
		m := &certmillv1.RoleStatus{State: c.state}
		if shown := Age(m, c.age); shown != (c.want != "") || shown && m.State != c.want {
			t.Errorf("%s after %s: %s, shown %v", c.state, c.age, m.State, shown)
		}
	}
}
