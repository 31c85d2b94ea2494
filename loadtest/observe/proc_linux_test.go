package observe

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheProcessTreeIsSeen(t *testing.T) {
	child := exec.Command("sh", "-c", "sleep 60 & wait")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		f := forest{roots: []int{child.Process.Pid}}
		for _, p := range f.look(time.Now()) {
			if q, err := os.FindProcess(p.pid); err == nil {
				_ = q.Kill()
			}
		}
		_ = child.Wait()
	}()
	deadline := time.Now().Add(10 * time.Second)
	for {
		names := map[string]bool{}
		f := forest{roots: []int{os.Getpid()}}
		for _, p := range f.look(time.Now()) {
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
	// What is known is read again without a search: what has ended is left out, what has
	// begun is found by the next one.
	f := forest{roots: []int{child.Process.Pid}}
	found := f.look(time.Now())
	grandchild := slices.IndexFunc(found, func(p process) bool { return p.name == "sleep" })
	if len(found) != 2 || grandchild < 0 {
		t.Fatalf("%+v", found)
	}
	if p, err := os.FindProcess(found[grandchild].pid); err != nil || p.Kill() != nil {
		t.Fatal("the grandchild cannot be killed")
	}
	scanned := f.scanned
	for len(f.look(scanned)) != 1 {
		if time.Now().After(deadline) {
			t.Fatal("the grandchild is still seen")
		}
		time.Sleep(time.Millisecond)
	}
	if !f.scanned.IsZero() {
		t.Error("no search is due after a process has ended")
	}
	if again := f.look(scanned); len(again) != 1 || again[0].name != "sh" {
		t.Errorf("after a search: %+v", again)
	}
	f.known[child.Process.Pid] = process{started: 1} // as of another process that had this pid
	if still := f.look(scanned); len(still) != 0 {
		t.Errorf("another process: %+v", still)
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

func TestAChildIsSeenByTheNextLook(t *testing.T) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d/children", os.Getpid(), os.Getpid())); err != nil {
		t.Skip("this kernel does not list children")
	}
	shell := exec.Command("sh")
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	o := New(Config{Tree: shell.Process.Pid})
	defer func() {
		for _, p := range o.processes.look(time.Time{}.Add(time.Hour)) {
			if q, err := os.FindProcess(p.pid); err == nil {
				_ = q.Kill()
			}
		}
		_ = in.Close()
		_ = shell.Wait()
	}()
	before := o.Sample(t.Context())
	if _, err := io.WriteString(in, "yes >/dev/null &\n"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(rescan / 2)
	for {
		now := o.Glance(t.Context())
		if now.CPU["yes"] >= 0.1 {
			if used := now.CPU["yes"] - before.CPU["yes"]; used > now.At.Sub(before.At).Seconds()+0.1 {
				t.Errorf("%g s of CPU", used)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is not seen: %v", now.CPU)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestSharedMemoryIsToldFromTheProcesssOwn(t *testing.T) {
	const size = 64 << 20
	before, sharedBefore := memory(os.Getpid())
	shared, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(shared) }()
	for i := 0; i < size; i += 4096 {
		shared[i] = 1
	}
	rss, of := memory(os.Getpid())
	if of-sharedBefore < 0.9*size || of-sharedBefore > 1.1*size || rss < before+size/2 || rss < of {
		t.Errorf("resident %g, then %g; shared %g, then %g", before, rss, sharedBefore, of)
	}
	if rss, of := memory(1 << 30); rss != 0 || of != 0 {
		t.Error("a process that does not run has memory")
	}
}
