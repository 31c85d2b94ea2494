//go:build failpoints

package failpoint

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled says whether this build has failpoints.
const Enabled = true

// Variable names the point and how many times it is passed before the process dies
// there, as in CERTMILL_FAILPOINT=signer-signed:10. For a point of HitOn it names the
// subject instead: CERTMILL_FAILPOINT=signer-poisoned=poison.example.test.
const Variable = "CERTMILL_FAILPOINT"

var (
	point   string
	left    atomic.Int64
	subject string
)

func init() {
	name, times, _ := strings.Cut(os.Getenv(Variable), ":")
	if on, what, ok := strings.Cut(name, "="); ok {
		name, subject = on, what
	}
	n, _ := strconv.ParseInt(times, 10, 64)
	point = name
	left.Store(n)
}

// Hit kills the process with SIGKILL when name is the point asked for and has been
// passed often enough. It does not return then.
func Hit(name string) {
	if name != point || left.Add(-1) >= 0 {
		return
	}
	die()
}

// HitOn kills the process when name is the point asked for and one of the subjects is
// the one named with it.
func HitOn(name string, subjects ...string) {
	if name == point && slices.Contains(subjects, subject) {
		die()
	}
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
