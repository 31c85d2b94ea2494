//go:build !linux

package engine

import "time"

// preciseSleep is as precise as Go's timers.
func preciseSleep(d time.Duration) { time.Sleep(d) }
