//go:build !linux

package local

import (
	"context"
	"errors"
	"math"
	"syscall"
)

// Elsewhere than on Linux a child outlives a parent that is killed with SIGKILL; the
// next start finds its lock and says so.
func attributes(_ syscall.Signal, cred *syscall.Credential) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Credential: cred}
}

func enter(string) error { return errors.New("network namespaces are Linux's") }

// Batch does nothing: the scheduling class is Linux's.
func Batch() error { return nil }

// LateTimers does nothing: the timer slack is Linux's.
func LateTimers() {}

func childSlack() (undo func()) { return func() {} }

// Writeback does nothing: when the kernel writes is Linux's.
func Writeback(context.Context, ...string) {}

// room does not know.
func room(string) (int64, error) { return math.MaxInt64, nil }
