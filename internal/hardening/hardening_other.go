//go:build !linux

package hardening

// NoCore does nothing here: core dumps are the system's to configure.
func NoCore() error { return nil }

// Seal does nothing here.
func Seal() error { return nil }
