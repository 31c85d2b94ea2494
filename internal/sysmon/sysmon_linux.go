package sysmon

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
)

// Quiet gives sysmon of this process the timer slack Slack. That takes CAP_SYS_NICE: the
// error is os.ErrPermission without it, and os.ErrNotExist on a Linux before 4.6.
func Quiet() error {
	thread, err := thread()
	if err != nil {
		return err
	}
	startSpares()
	err = os.WriteFile("/proc/"+thread+"/timerslack_ns", strconv.AppendInt(nil, Slack.Nanoseconds(), 10), 0)
	if err != nil {
		return fmt.Errorf("setting the timer slack of sysmon: %w", err)
	}
	return nil
}

// thread returns the id of sysmon: it is the first thread that the runtime starts
// (runtime.main), and the kernel lists threads by their age. A library that starts threads
// when it is loaded, before main, would be taken for it; none of ours does.
func thread() (string, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return "", err
	}
	defer dir.Close()
	threads, err := dir.Readdirnames(0)
	if err != nil {
		return "", err
	}
	if len(threads) < 2 {
		return "", fmt.Errorf("sysmon cannot be told from the %d threads in %s", len(threads), dir.Name())
	}
	return threads[1], nil
}

// startSpares has the runtime start threads. A thread inherits the timer slack of the one
// that starts it, which is sysmon when it needs one and none is idle: in a process of which
// more than these wait in the kernel or in C at one time.
func startSpares() {
	const spares = 8
	var all, wait sync.WaitGroup
	n := runtime.GOMAXPROCS(0) + spares
	all.Add(n)
	for range n {
		wait.Go(func() {
			runtime.LockOSThread() // each needs a thread of its own
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		})
	}
	wait.Wait()
}
