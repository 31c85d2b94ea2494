package presign

import (
	"context"
	"crypto"
	"sync/atomic"
)

// brokenKey signs another message than it was given after some signatures.
type brokenKey struct {
	ContextSigner
	after int64
	count atomic.Int64
}

func (k *brokenKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.count.Add(1) > k.after {
		digest = append([]byte{digest[0] ^ 1}, digest[1:]...)
	}
	return k.ContextSigner.SignContext(ctx, digest, opts)
}
