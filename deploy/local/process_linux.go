package local

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func attributes(onDeath syscall.Signal, cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: onDeath, Credential: cred}
}

// enter moves the calling thread into a network namespace.
func enter(namespace string) error {
	f, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace %s: %w", namespace, err)
	}
	return nil
}

// Batch has the kernel treat this process, and every one that it starts from now on, as
// one that computes (SCHED_BATCH, sched(7)): a thread that becomes ready waits for the
// turn that it has anyway instead of interrupting another. Where many processes share a
// few cores and pass work on to each other, more of it is then ready at each turn, and
// caches are less often cold. Shares of the cores stay as they are.
//
// Threads to which somebody has given another policy than the ordinary one keep it.
func Batch() error { return everyThread(unix.SCHED_NORMAL, unix.SCHED_BATCH) }

// LateTimers gives the children that are started from now on a timer slack of 200 µs: the
// poor man's [sysmon.Quiet], which takes a capability. Of all their timers sysmon's go off
// the most often.
func LateTimers() { lateTimers.Store(true) }

// lateTimers is set by LateTimers.
var lateTimers atomic.Bool

const timerSlack = 200 * time.Microsecond

// childSlack sets the timer slack that children of the calling thread get, where LateTimers
// asks for it, and returns what undoes it.
func childSlack() (undo func()) {
	if !lateTimers.Load() {
		return func() {}
	}
	// prctl(2): neither has another error than for a number that is not known.
	before, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	set := func(ns uintptr) { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, ns, 0, 0, 0) }
	set(uintptr(timerSlack.Nanoseconds()))
	return func() { set(uintptr(before)) }
}

// everyThread changes the policy of all threads of this process that have the first of
// the two. Those to come inherit it from the thread that starts them, as children do; so
// it looks again until it finds none that was started meanwhile.
func everyThread(from, to uint32) error {
	for changed := true; changed; {
		changed = false
		err := eachThread(func(id int) error {
			did, err := changePolicy(id, from, to)
			changed = changed || did
			if err != nil {
				return fmt.Errorf("setting the scheduling policy of thread %d: %w", id, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eachThread calls change for each thread of this process, which may end meanwhile.
func eachThread(change func(id int) error) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := change(id); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// changePolicy leaves a thread its niceness.
func changePolicy(thread int, from, to uint32) (changed bool, err error) {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil || attr.Policy != from {
		return false, err
	}
	// As the runtime Linux from 6.12 on tells the length of a turn; 0 leaves that to it.
	attr.Policy, attr.Runtime = to, 0
	return true, unix.SchedSetAttr(thread, attr, 0)
}
