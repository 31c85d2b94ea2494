package ocsp

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"
)

//go:embed heal.lua
var healSource string

//go:embed lost.lua
var lostSource string

var (
	healScript = redis.NewScript(healSource)
	lostScript = redis.NewScript(lostSource)
)

const fieldGeneration = "generation"

// Generation returns the token of the present filling of Redis. It goes with
// everything else when Redis is emptied, and a new one begins, incomplete. A sweep
// that began under a token counts towards completeness only while the token stands.
func (s *Store) Generation(ctx context.Context) (string, error) {
	began, err := s.client.HSetNX(ctx, s.keys.healing, fieldGeneration, rand.Text()).Result()
	if err != nil {
		return "", fmt.Errorf("beginning a generation in Redis: %w", err)
	}
	if began { // in a Cluster the flag may have outlived it
		if err := s.setComplete(ctx, false); err != nil {
			return "", err
		}
	}
	token, err := s.client.HGet(ctx, s.keys.healing, fieldGeneration).Result()
	if err != nil {
		return "", fmt.Errorf("reading the generation in Redis: %w", err)
	}
	return token, nil
}

// Swept notes that these slices, of so many, were swept whole under a generation. When
// all are, Redis is complete and the responders are told. It returns false where the
// generation has ended meanwhile: the sweep does not count.
func (s *Store) Swept(ctx context.Context, generation string, of int, slices []int) (counts bool, err error) {
	args := []any{generation, of}
	for _, n := range slices {
		args = append(args, n)
	}
	state, err := healScript.Run(ctx, s.client, []string{s.keys.healing}, args...).Int()
	if err != nil {
		return false, fmt.Errorf("noting swept slices in Redis: %w", err)
	}
	if state != 1 {
		return state == 0, nil
	}
	complete, err := s.client.HExists(ctx, s.keys.shared, fieldComplete).Result()
	if err != nil {
		return false, fmt.Errorf("reading whether Redis is complete: %w", err)
	}
	if complete {
		return true, nil
	}
	return true, s.setComplete(ctx, true)
}

// Lost begins a new generation after the one that the caller knew: records may be
// missing, and responders must not take a missing one for one that never was. Of many
// callers that have seen the same loss, one begins it.
func (s *Store) Lost(ctx context.Context, known string) error {
	began, err := lostScript.Run(ctx, s.client, []string{s.keys.healing}, known, rand.Text()).Int()
	if err != nil {
		return fmt.Errorf("beginning a generation in Redis: %w", err)
	}
	if began == 0 {
		return nil
	}
	return s.setComplete(ctx, false)
}
