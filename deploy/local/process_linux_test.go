package local

import (
	"os/exec"
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
	if got := scheduled(); got != "0" {
		t.Skipf("this process is scheduled by policy %s already", got)
	}
	if err := Batch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := everyThread(unix.SCHED_BATCH, unix.SCHED_NORMAL); err != nil {
			t.Error(err)
		}
	})
	for range 8 { // whichever thread starts it
		if got := scheduled(); got != "3" {
			t.Errorf("a child is scheduled by policy %s, not by SCHED_BATCH", got)
		}
	}
}
