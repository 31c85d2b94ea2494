//go:build !linux

package sysmon

import "errors"

// Quiet does nothing: the timer slack is Linux's.
func Quiet() error { return errors.ErrUnsupported }
