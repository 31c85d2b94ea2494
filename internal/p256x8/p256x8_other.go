//go:build !amd64

package p256x8

import "crypto/ecdsa"

// Supported reports whether this processor can work in lanes.
func Supported() bool { return false }

func inLanes([]Signature, []bool) {}

// FixedKey verifies signatures of one key.
type FixedKey struct{}

// NewFixedKey fails with [ErrUnsupported].
func NewFixedKey(*ecdsa.PublicKey) (*FixedKey, error) { return nil, ErrUnsupported }

// Verify reports false: there is no key.
func (*FixedKey) Verify(_, _ []byte) bool { return false }
