package observe

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestTheProcessTreeIsSeen(t *testing.T) {
	child := exec.Command("sh", "-c", "sleep 60 & wait")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, p := range trees([]int{child.Process.Pid}) {
			if q, err := os.FindProcess(p.pid); err == nil {
				_ = q.Kill()
			}
		}
		_ = child.Wait()
	}()
	deadline := time.Now().Add(10 * time.Second)
	for {
		names := map[string]bool{}
		for _, p := range trees([]int{os.Getpid()}) {
			names[p.name] = true
		}
		if names["sleep"] && names["sh"] {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the grandchild is not in %v", names)
		}
		time.Sleep(time.Millisecond)
	}
	if parent, err := Parent(child.Process.Pid); err != nil || parent != os.Getpid() {
		t.Errorf("parent %d, %v", parent, err)
	}
	before := ownCPU()
	for ownCPU()-before < 0.02 {
		_ = fmt.Sprint(before)
	}
	if busy, idle := machineCPU(); busy <= 0 || idle <= 0 {
		t.Errorf("machine: busy %g, idle %g", busy, idle)
	}
	if Here().Cores < 1 || Here().Kernel == "" {
		t.Errorf("%+v", Here())
	}
}
