package ocsp

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed putcrl.lua
var putCRLSource string

var putCRLScript = redis.NewScript(putCRLSource)

// CRLInfo describes a CRL in Redis.
type CRLInfo struct {
	Number                 int64 // CRLNumber
	ThisUpdate, NextUpdate int64 // Unix seconds
	Bytes                  int64
	Chunks                 int
	// Digest names the CRL: the SHA-256 over the tbsCertList and what follows it.
	Digest [sha256.Size]byte
}

// ErrNoCRL says that Redis has no CRL, or not all pieces of it.
var ErrNoCRL = errors.New("the CRL is not in Redis")

const (
	// crlLinger is how long the pieces of a CRL stay after its end or its successor:
	// who has begun to send it goes on.
	crlLinger = 10 * time.Minute
	crlForm   = "%d %d %d %d %d %x"
)

func (i *CRLInfo) encode() string {
	return fmt.Sprintf(crlForm, i.Number, i.ThisUpdate, i.NextUpdate, i.Bytes, i.Chunks, i.Digest)
}

func decodeCRLInfo(s string) (i CRLInfo, err error) {
	var digest []byte
	if _, err = fmt.Sscanf(s, crlForm, &i.Number, &i.ThisUpdate, &i.NextUpdate, &i.Bytes, &i.Chunks, &digest); err != nil {
		return i, fmt.Errorf("what Redis says of a CRL, %.80q: %w", s, err)
	}
	if len(digest) != sha256.Size || i.Chunks < 1 || i.Bytes < 1 {
		return i, fmt.Errorf("what Redis says of a CRL, %.80q, is no description", s)
	}
	i.Digest = [sha256.Size]byte(digest)
	return i, nil
}

func (k *keys) crlChunk(i *CRLInfo, chunk int) string {
	return k.crl + hex.EncodeToString(i.Digest[:]) + ":" + strconv.Itoa(chunk)
}

// PutCRL stores a CRL under the path of its URL, piece by piece, unless one of a higher
// number stands there; then it reports false.
func (s *Store) PutCRL(ctx context.Context, path string, i CRLInfo, now time.Time, chunk func(n int) ([]byte, error)) (bool, error) {
	life := time.Unix(i.NextUpdate, 0).Sub(now) + crlLinger
	if life <= crlLinger {
		return false, nil // nobody may be given it any more
	}
	for n := range i.Chunks {
		der, err := chunk(n)
		if err != nil {
			return false, err
		}
		if err := s.client.Set(ctx, s.keys.crlChunk(&i, n), der, life).Err(); err != nil {
			return false, fmt.Errorf("writing a CRL to Redis: %w", err)
		}
	}
	reply, err := putCRLScript.Run(ctx, s.client, []string{s.keys.crls}, path, i.encode(), now.Unix()).Slice()
	if err != nil {
		return false, fmt.Errorf("writing a CRL to Redis: %w", err)
	}
	if reply[0] != int64(1) {
		return false, nil
	}
	if len(reply) > 1 {
		if before, ok := reply[1].(string); ok {
			s.expireCRL(ctx, before, &i)
		}
	}
	return true, nil
}

// expireCRL lets the pieces of a CRL that was replaced go soon. They go by themselves
// later, so a failure is of no weight.
func (s *Store) expireCRL(ctx context.Context, value string, successor *CRLInfo) {
	old, err := decodeCRLInfo(value)
	if err != nil || old.Digest == successor.Digest {
		return
	}
	pipe := s.client.Pipeline()
	for n := range old.Chunks {
		pipe.Expire(ctx, s.keys.crlChunk(&old, n), crlLinger)
	}
	_, _ = pipe.Exec(ctx)
}

// CRLs returns the CRLs of all paths. One whose pieces are not all there is left out.
func (s *Store) CRLs(ctx context.Context) (map[string]CRLInfo, error) {
	values, err := s.client.HGetAll(ctx, s.keys.crls).Result()
	if err != nil {
		return nil, fmt.Errorf("reading from Redis which CRLs there are: %w", err)
	}
	out := make(map[string]CRLInfo, len(values))
	found := make(map[string][]*redis.IntCmd, len(values))
	pipe := s.client.Pipeline()
	for path, v := range values {
		i, err := decodeCRLInfo(v)
		if err != nil {
			continue // it is written again
		}
		out[path] = i
		for n := range i.Chunks {
			found[path] = append(found[path], pipe.Exists(ctx, s.keys.crlChunk(&i, n)))
		}
	}
	if len(found) == 0 {
		return out, nil
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("looking for the pieces of CRLs in Redis: %w", err)
	}
	for path, replies := range found {
		for _, r := range replies {
			if r.Val() == 0 {
				delete(out, path)
			}
		}
	}
	return out, nil
}

// CRL describes the CRL of a path; without one it is ErrNoCRL.
func (s *Store) CRL(ctx context.Context, path string) (CRLInfo, error) {
	v, err := s.client.HGet(ctx, s.keys.crls, path).Result()
	if errors.Is(err, redis.Nil) {
		return CRLInfo{}, ErrNoCRL
	}
	if err != nil {
		return CRLInfo{}, fmt.Errorf("asking Redis for a CRL: %w", err)
	}
	return decodeCRLInfo(v)
}

// CRLChunk returns a piece of a CRL, or ErrNoCRL.
func (s *Store) CRLChunk(ctx context.Context, i *CRLInfo, n int) ([]byte, error) {
	der, err := s.client.Get(ctx, s.keys.crlChunk(i, n)).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, ErrNoCRL
	}
	if err != nil {
		return nil, fmt.Errorf("reading a CRL from Redis: %w", err)
	}
	return der, nil
}
