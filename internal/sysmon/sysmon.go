// Package sysmon lets the thread by which Go's runtime watches the others sleep longer.
//
// That thread, sysmon (runtime/proc.go), looks after the others every 20 µs, and more
// seldom only after they have given it nothing to do for a millisecond without a pause. In
// a process whose goroutines wait most of the time, each for a moment, it begins anew each
// time: at two requests a millisecond it wakes some thousand times a second, more often
// than all other threads together. Where several such processes share a few cores, each of
// these wakes is a turn that somebody else waits for.
//
// Linux may wake a thread later than it asked, by its timer slack (prctl(2),
// PR_SET_TIMERSLACK; 50 µs by default). Here sysmon alone gets a larger one: the others
// would be late too, with timers, and where the runtime asks for 3 µs to take work from a
// neighbour. What sysmon does comes so much later: it takes a core of the process
// (GOMAXPROCS) from a goroutine that is in a long system call or in C, tells one that has
// computed for 10 ms to make room, and looks at the network when nobody has for 10 ms. So
// this is not for a process that waits in C for milliseconds, as a signer does for a
// hardware HSM.
package sysmon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Slack is how late sysmon may be after Quiet. By itself it waits for up to 10 ms.
const Slack = 5 * time.Millisecond

// Environment is the variable that asks a certmill process to be quiet: "1" or "true".
const Environment = "CERTMILL_QUIET_SYSMON"

// FromEnvironment calls Quiet where the environment asks for it.
func FromEnvironment() error {
	quiet, _, err := told()
	if err != nil || !quiet {
		return err
	}
	if err := Quiet(); err != nil {
		return fmt.Errorf("%s: %w", Environment, err)
	}
	return nil
}

// ErrForbidden says that the environment asks a process not to be quiet.
var ErrForbidden = errors.New(Environment + " forbids it")

// ByDefault calls Quiet for a process that gains by it, unless the environment forbids it.
func ByDefault() error {
	if quiet, said, _ := told(); said && !quiet {
		return ErrForbidden
	}
	return Quiet()
}

// told returns what the environment says, if it does.
func told() (quiet, said bool, err error) {
	value := os.Getenv(Environment)
	if value == "" {
		return false, false, nil
	}
	if quiet, err = strconv.ParseBool(value); err != nil {
		return false, false, fmt.Errorf("%s must be 1 or 0, not %q", Environment, value)
	}
	return quiet, true, nil
}
