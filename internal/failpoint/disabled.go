//go:build !failpoints

package failpoint

// Enabled says whether this build has failpoints.
const Enabled = false

// Hit does nothing.
func Hit(string) {}

// HitOn does nothing.
func HitOn(string, ...string) {}
