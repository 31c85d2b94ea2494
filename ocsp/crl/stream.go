package crl

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"

	"github.com/certmill/certmill/internal/tlv"
	"github.com/certmill/certmill/ledger"
)

// ChunkBytes is the size of the pieces in which a CRL is made, kept and served; the
// last one is smaller.
const ChunkBytes = 256 << 10

// maxUnhashed bounds a CRL whose key signs the message and no hash of it (Ed25519):
// it must be held whole.
const maxUnhashed = 32 << 20

// Key signs for an issuer.
type Key interface {
	// Algorithm is the AlgorithmIdentifier of the signatures, as DER.
	Algorithm() []byte
	// Hash is what Sign takes the digest of; 0 means that it takes the message itself.
	Hash() crypto.Hash
	// Sign returns a signature that has been verified with the issuer's key.
	Sign(ctx context.Context, digest []byte) ([]byte, error)
}

// Entries calls add for each entry of a CRL, in any order; it returns the first error,
// its own or add's.
type Entries func(add func(ledger.CRLEntry) error) error

// Made is what Write has written.
type Made struct {
	Bytes  int64
	Chunks int
	// Digest is the SHA-256 over the tbsCertList and what follows it: all that stands
	// behind the tag and length of the whole.
	Digest [sha256.Size]byte
}

// errCount says that the entries were not those that were counted.
var errCount = errors.New("the entries are not those that were counted before")

// Write makes a CRL in pieces of ChunkBytes, holding two of them at a time whatever
// the number of entries. The length of the whole depends on the signature's, so piece
// 0 is put last.
func Write(ctx context.Context, h *Header, key Key, entries Entries, put func(chunk int, der []byte) error) (Made, error) {
	head, tail, err := h.ends()
	if err != nil {
		return Made{}, err
	}
	w := &writer{put: put, digest: sha256.New(), next: 1, first: make([]byte, 0, ChunkBytes), chunk: make([]byte, 0, ChunkBytes)}
	if key.Hash() == 0 {
		if h.Count.entriesLength() > maxUnhashed {
			return Made{}, fmt.Errorf("a CRL of %d entries is too large for an Ed25519 key: use more shards", h.Count.Entries)
		}
		w.message = &message{}
	} else {
		w.message = &hashed{key.Hash().New()}
	}
	if err := w.tbs(head); err != nil {
		return Made{}, err
	}
	if err := w.entries(h.Count, entries); err != nil {
		return Made{}, err
	}
	if err := w.tbs(tail); err != nil {
		return Made{}, err
	}
	signature, err := key.Sign(ctx, w.message.digest())
	if err != nil {
		return Made{}, fmt.Errorf("signing: %w", err)
	}
	return w.finish(h.Algorithm, signature)
}

// writer cuts what is written into chunks. The first one is kept back: it begins with
// the length of the whole.
type writer struct {
	put     func(chunk int, der []byte) error
	message interface {
		write([]byte)
		digest() []byte
	}
	digest hash.Hash
	first  []byte
	chunk  []byte
	next   int
	bytes  int64
	full   bool // the first chunk is
}

// hashed and message are what the key signs.
type hashed struct{ hash.Hash }

func (h *hashed) write(b []byte) { h.Write(b) }
func (h *hashed) digest() []byte { return h.Sum(nil) }

type message struct{ whole []byte }

func (m *message) write(b []byte) { m.whole = append(m.whole, b...) }
func (m *message) digest() []byte { return m.whole }

// tbs writes a part of what is signed.
func (w *writer) tbs(b []byte) error {
	w.message.write(b)
	return w.write(b)
}

func (w *writer) write(b []byte) error {
	w.digest.Write(b)
	w.bytes += int64(len(b))
	// Room for the whole's tag and length is left in the first chunk.
	if !w.full {
		n := min(len(b), ChunkBytes-maxOuter-len(w.first))
		w.first, b = append(w.first, b[:n]...), b[n:]
		w.full = len(b) > 0
	}
	for len(b) > 0 {
		n := min(len(b), ChunkBytes-len(w.chunk))
		w.chunk, b = append(w.chunk, b[:n]...), b[n:]
		if len(w.chunk) == ChunkBytes {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxOuter is the longest tag and length.
const maxOuter = 10

func (w *writer) flush() error {
	if len(w.chunk) == 0 {
		return nil
	}
	if err := w.put(w.next, w.chunk); err != nil {
		return fmt.Errorf("storing piece %d: %w", w.next, err)
	}
	w.next++
	w.chunk = w.chunk[:0]
	return nil
}

// entries writes the entries and checks them against their count, by which the
// lengths were written.
func (w *writer) entries(want Count, entries Entries) error {
	var got Count
	var buf [64]byte
	err := entries(func(e ledger.CRLEntry) error {
		got.Entries++
		if e.Reason == 0 {
			got.Unspecified++
		}
		if late(e.RevokedAt) {
			got.Late++
		}
		return w.tbs(appendEntry(buf[:0], e.Serial, e.RevokedAt, e.Reason))
	})
	if err != nil {
		return fmt.Errorf("reading the entries: %w", err)
	}
	if got != want {
		return fmt.Errorf("%w: %+v, not %+v", errCount, got, want)
	}
	return nil
}

// finish adds algorithm and signature, and then the tag and length before all.
func (w *writer) finish(algorithm, signature []byte) (Made, error) {
	end := tlv.AppendHead(append([]byte(nil), algorithm...), byte(0x03), int64(len(signature)+1)) // BIT STRING
	end = append(append(end, 0), signature...)
	if err := w.write(end); err != nil {
		return Made{}, err
	}
	if err := w.flush(); err != nil {
		return Made{}, err
	}
	outer := tlv.AppendHead(make([]byte, 0, ChunkBytes), tagSequence, w.bytes)
	m := Made{Bytes: w.bytes + int64(len(outer)), Chunks: w.next}
	w.digest.Sum(m.Digest[:0])
	if err := w.put(0, append(outer, w.first...)); err != nil {
		return Made{}, fmt.Errorf("storing piece 0: %w", err)
	}
	return m, nil
}
