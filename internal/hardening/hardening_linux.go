package hardening

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NoCore forbids core dumps to this process and to those it starts (setrlimit(2)).
func NoCore() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	return nil
}

// Seal makes this process undumpable (PR_SET_DUMPABLE in prctl(2)): a process of the
// same user can neither attach to it nor read its memory and its environment through
// /proc, and a core dump that a kernel pipes to a handler in spite of the limit is not
// made. It is for services: a sealed process cannot open /dev/stdout.
func Seal() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process undumpable: %w", err)
	}
	return nil
}
