package engine

import (
	"time"

	"golang.org/x/sys/unix"
)

// preciseSleep sleeps for d or less (a signal may cut it short; the caller asks the
// clock again). The timer slack of a thread is 50 µs unless it asks for less, and a
// goroutine may be on another thread each time, so it is asked for each time: 0.2 µs.
func preciseSleep(d time.Duration) {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0) // without it sleeps are just coarser
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // EINTR is the only error there can be
}
