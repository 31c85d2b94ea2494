package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatABatchProcessStartsIsScheduledSo(t *testing.T) {
	const policy = "cut -d' ' -f41 /proc/self/stat" // proc(5)
	scheduled := func() string {
		out, err := exec.Command("sh", "-c", policy).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	ordinary := func() {
		if err := everyThread(unix.SCHED_BATCH, unix.SCHED_NORMAL); err != nil {
			t.Error(err)
		}
	}
	ordinary() // whoever runs the test may have scheduled it as batch work
	t.Cleanup(ordinary)
	if got := scheduled(); got != "0" {
		t.Fatalf("this process is scheduled by policy %s, and a test of Batch needs the ordinary one", got)
	}
	if err := Batch(); err != nil {
		t.Fatal(err)
	}
	for range 8 { // whichever thread starts it
		if got := scheduled(); got != "3" {
			t.Errorf("a child is scheduled by policy %s, not by SCHED_BATCH", got)
		}
	}
}

func TestTimersOfChildrenMayBeLate(t *testing.T) {
	childs := func() string {
		log := filepath.Join(t.TempDir(), "log")
		p, err := Start(Command{Name: "sh", Path: "/bin/sh", Args: []string{"-c", "cat /proc/self/timerslack_ns"}, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		out, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	before := childs()
	LateTimers()
	if got := childs(); got != "200000" {
		t.Errorf("the timer slack of a child is %s ns, not 200 µs", got)
	}
	lateTimers.Store(false)
	if got := childs(); got != before {
		t.Errorf("the timer slack of a later child is %s ns, and was %s", got, before)
	}
}
