package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideVariable is set in the process that has namespaces of its own.
const insideVariable = "CERTMILL_CHAOS_INSIDE"

// inside reports whether this process has namespaces of its own.
func inside() bool { return os.Getenv(insideVariable) == "1" }

// errNoNamespaces says that this machine or user does not allow them.
var errNoNamespaces = errors.New("network namespaces are not allowed here")

// runInside runs this program again in network and mount namespaces of its own, which
// end with it, whatever becomes of it: nothing is left on the machine. It returns the
// exit code of the other process.
func runInside(ctx context.Context, args []string) (code int, err error) {
	if _, err := exec.LookPath("ip"); err != nil || os.Geteuid() != 0 {
		return 0, errNoNamespaces
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	// Ctrl-C reaches it from the terminal too; it stops the service in order.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Minute
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			return 0, errNoNamespaces
		}
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// furnish makes the mount namespace private and gives `ip netns` a place of its own.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	return mountTmpfs("/run/netns", 1<<20)
}

// mountTmpfs puts a file system of a size in bytes on a folder.
func mountTmpfs(path string, size int64) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return fmt.Errorf("mounting a file system on %s: %w", path, err)
	}
	return nil
}
