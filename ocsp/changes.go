package ocsp

import (
	"context"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/serial"
)

// The stream of changes tells responders what their caches cannot know. A refreshed
// answer is not in it: the one that a cache holds stays true until its nextUpdate.
const (
	changeKind    = "t"
	changeSerial  = "n"
	changeRecord  = "v"
	changeAcked   = "a" // Unix milliseconds at which the revocation was acknowledged
	kindIsRevoked = "revoked"
	kindIsShared  = "shared"
)

// changesBound is about how many entries the stream keeps. A responder that was away
// for longer looks at everything again.
const changesBound = 50_000

// Revoked is a revoked record that responders must hear of at once.
type Revoked struct {
	Serial serial.Number
	Record string // encoded
	// AcknowledgedMS is when the ledger had the revocation, in Unix milliseconds; 0
	// where that is not known. Responders measure their lag by it.
	AcknowledgedMS int64
}

// AnnounceRevoked tells the responders of records that Put has written. It may be
// repeated.
func (s *Store) AnnounceRevoked(ctx context.Context, revoked []Revoked) error {
	if len(revoked) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	for _, r := range revoked {
		s.addChange(ctx, pipe, changeKind, kindIsRevoked, changeSerial, string(r.Serial[:]),
			changeRecord, r.Record, changeAcked, strconv.FormatInt(r.AcknowledgedMS, 10))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("telling the responders of %d revocations through Redis: %w", len(revoked), err)
	}
	return nil
}

// announceShared tells the responders to read the shared entries again.
func (s *Store) announceShared(ctx context.Context) error {
	if err := s.addChange(ctx, s.client, changeKind, kindIsShared).Err(); err != nil {
		return fmt.Errorf("telling the responders of new shared entries through Redis: %w", err)
	}
	return nil
}

func (s *Store) addChange(ctx context.Context, c redis.Cmdable, values ...string) *redis.StringCmd {
	return c.XAdd(ctx, &redis.XAddArgs{Stream: s.keys.changes, MaxLen: changesBound, Approx: true, Values: values})
}
