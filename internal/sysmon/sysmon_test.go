//go:build linux

package sysmon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A child of the test, told by this in its environment, is what becomes quiet.
const child = "SYSMON_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) == "" {
		os.Exit(m.Run())
	}
	r, err := quiet()
	if errors.Is(err, os.ErrPermission) {
		r, err = report{Forbidden: true}, nil
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// report is what a child has seen.
type report struct {
	Forbidden     bool
	Before, After int             // how often sysmon slept under a load
	Sysmon        time.Duration   // its timer slack
	Others        []time.Duration // and that of each other thread
}

func quiet() (r report, err error) {
	id, err := thread()
	if err != nil {
		return r, err
	}
	r.Before = sleeps(id)
	if err := Quiet(); err != nil {
		return r, err
	}
	r.After = sleeps(id)
	threads, err := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		text, readErr := os.ReadFile("/proc/" + t.Name() + "/timerslack_ns")
		err = errors.Join(err, readErr)
		var slack time.Duration
		fmt.Sscan(string(text), &slack)
		if t.Name() == id {
			r.Sysmon = slack
		} else {
			r.Others = append(r.Others, slack)
		}
	}
	return r, err
}

// sleeps counts how often a thread sleeps while more goroutines than there are cores wait
// in the kernel, time and again.
func sleeps(thread string) int {
	count := func() (n int) {
		status, _ := os.ReadFile("/proc/self/task/" + thread + "/status")
		_, after, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		fmt.Sscan(after, &n)
		return n
	}
	before := count()
	var wait sync.WaitGroup
	for range 6 {
		wait.Go(func() {
			for range 400 {
				_ = unix.Nanosleep(&unix.Timespec{Nsec: 500_000}, nil)
			}
		})
	}
	wait.Wait()
	return count() - before
}

// The thread that is taken for sysmon behaves like it, sleeps longer afterwards, and is
// the only one that does.
func TestQuiet(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), child+"=1")
	printed, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(printed, &r); err != nil {
		t.Fatal(err)
	}
	if r.Forbidden {
		t.Skip("this takes CAP_SYS_NICE")
	}
	t.Logf("sysmon slept %d times before, %d times after", r.Before, r.After)
	if r.Before < 300 || 3*r.After > r.Before {
		t.Errorf("sysmon slept %d times before, and %d times after", r.Before, r.After)
	}
	if r.Sysmon != Slack {
		t.Errorf("sysmon has a timer slack of %s", r.Sysmon)
	}
	for _, s := range r.Others {
		if s >= Slack {
			t.Errorf("another thread has a timer slack of %s", s)
		}
	}
	if len(r.Others) < 8 {
		t.Errorf("only %d other threads", len(r.Others))
	}
}

// What the environment says is kept to, and a value that says nothing is told.
func TestTheEnvironmentDecides(t *testing.T) {
	for value, want := range map[string]string{"": "", "0": "", "false": "", "maybe": Environment + ` must be 1 or 0, not "maybe"`} {
		t.Setenv(Environment, value)
		got := ""
		if err := FromEnvironment(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, not %q", value, got, want)
		}
	}
	t.Setenv(Environment, "0")
	if err := ByDefault(); !errors.Is(err, ErrForbidden) {
		t.Errorf("forbidden, and yet %v", err)
	}
}
