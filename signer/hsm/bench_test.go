package hsm

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/testenv"
)

// benchKey opens a SoftHSM token with one P-256 key.
func benchKey(b *testing.B, copies bool, sessions int) *Key {
	b.Helper()
	where := testenv.SoftHSM(b)
	cfg := DefaultConfig()
	cfg.Module, cfg.TokenLabel, cfg.PINFile = where.Module, where.TokenLabel, where.PINFile
	cfg.SessionKeys, cfg.Sessions = copies, sessions
	token, err := Open(b.Context(), cfg, Deps{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := token.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	key, err := token.GenerateKey(b.Context(), KeySpec{Label: "bench " + rand.Text(), Algorithm: ECDSAP256})
	if err != nil {
		b.Fatal(err)
	}
	return key
}

// BenchmarkSign is a P-256 signature from the caller's side: pool, breaker, C.
func BenchmarkSign(b *testing.B) {
	for name, copies := range map[string]bool{"stored key": false, "session copy": true} {
		digest := make([]byte, 32)
		b.Run(name, func(b *testing.B) {
			key := benchKey(b, copies, 1)
			for b.Loop() {
				if _, err := key.SignContext(b.Context(), digest, hashOpts); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+", 4 sessions", func(b *testing.B) {
			key := benchKey(b, copies, 4)
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := key.SignContext(b.Context(), digest, hashOpts); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkSignBare is C_SignInit and C_Sign alone, to show what the rest costs.
func BenchmarkSignBare(b *testing.B) {
	key := benchKey(b, true, 1)
	s, err := key.token.acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer key.token.release(s)
	handle, err := key.handle(s)
	if err != nil {
		b.Fatal(err)
	}
	lib, ecdsa := key.token.module.lib, pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)
	for _, n := range []int{1, batchSize} {
		digests := make([][]byte, n)
		for i := range digests {
			digests[i] = make([]byte, 32)
		}
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			for i := 0; i < b.N; i += n {
				if _, err := lib.SignEach(s.handle, ecdsa, handle, digests, 64, time.Hour); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCgo is one call through cgo that does next to nothing.
func BenchmarkCgo(b *testing.B) {
	key := benchKey(b, true, 1)
	s, err := key.token.acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer key.token.release(s)
	for b.Loop() {
		if _, err := key.token.module.lib.GetSessionInfo(s.handle); err != nil {
			b.Fatal(err)
		}
	}
}
