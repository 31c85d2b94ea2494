package hardening

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is also the process that hardens itself and dies: a test must not do that
// to the process of all the others.
func TestMain(m *testing.M) {
	if os.Getenv("HARDENING_CHILD") == "" {
		os.Exit(m.Run())
	}
	if err := NoCore(); err != nil {
		panic(err)
	}
	if err := Seal(); err != nil {
		panic(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		panic(err)
	}
	fmt.Println("dumpable", dumpable)
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max core file size") {
			fmt.Println(strings.Join(strings.Fields(line), " "))
		}
	}
}

func TestAHardenedProcessLeavesNoCore(t *testing.T) {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "HARDENING_CHILD=1")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "dumpable 0\n") || !strings.Contains(string(out), "Max core file size 0 0 bytes") {
		t.Errorf("%v\n%s", err, out)
	}
}
