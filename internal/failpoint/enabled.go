//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled says whether this build has failpoints.
const Enabled = true

// Variable names the point and how many times it is passed before the process dies
// there, as in CERTMILL_FAILPOINT=signer-signed:10.
const Variable = "CERTMILL_FAILPOINT"

var (
	point string
	left  atomic.Int64
)

func init() {
	name, times, _ := strings.Cut(os.Getenv(Variable), ":")
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
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
