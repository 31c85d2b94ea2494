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

var healScript = redis.NewScript(healSource)

const fieldGeneration = "generation"

// Generation returns the token of the present filling of Redis. It goes with
// everything else when Redis is emptied, and a new one begins. A sweep that began
// under a token counts towards completeness only while the token stands.
func (s *Store) Generation(ctx context.Context) (string, error) {
	if err := s.client.HSetNX(ctx, s.keys.healing, fieldGeneration, rand.Text()).Err(); err != nil {
		return "", fmt.Errorf("beginning a generation in Redis: %w", err)
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

// Lost begins a new generation: records may be missing, and responders must not take
// a missing one for one that never was.
func (s *Store) Lost(ctx context.Context) error {
	if err := s.setComplete(ctx, false); err != nil {
		return err
	}
	pipe := s.client.TxPipeline()
	pipe.Del(ctx, s.keys.healing)
	pipe.HSet(ctx, s.keys.healing, fieldGeneration, rand.Text())
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("beginning a generation in Redis: %w", err)
	}
	return nil
}
