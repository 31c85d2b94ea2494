package ocsp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The fields of the shared hash.
const (
	fieldIssuer   = "issuer:" // and the id: certificate in DER
	fieldSigner   = "signer:" // and the id: issuer (4 octets), certificate in DER
	fieldEpochs   = "epochs"  // 8 octets each: epoch, issuer
	fieldComplete = "complete"
)

// Shared reads what all answers have in common. Of an empty Redis it is empty.
func (s *Store) Shared(ctx context.Context) (*Shared, error) {
	fields, err := s.client.HGetAll(ctx, s.keys.shared).Result()
	if err != nil {
		return nil, fmt.Errorf("reading the shared entries from Redis: %w", err)
	}
	out := &Shared{Issuers: map[int32][]byte{}, Signers: map[int32]SharedSigner{}, Epochs: map[uint32]int32{}}
	for name, value := range fields {
		if err := out.take(name, value); err != nil {
			return nil, fmt.Errorf("shared entry %q in Redis: %w", name, err)
		}
	}
	return out, nil
}

var errSharedForm = errors.New("its form is wrong")

func (s *Shared) take(name, value string) error {
	if id, ok := strings.CutPrefix(name, fieldIssuer); ok {
		n, err := strconv.ParseInt(id, 10, 32)
		s.Issuers[int32(n)] = []byte(value)
		return err
	}
	if id, ok := strings.CutPrefix(name, fieldSigner); ok {
		n, err := strconv.ParseInt(id, 10, 32)
		if err != nil || len(value) < 4 {
			return errSharedForm
		}
		s.Signers[int32(n)] = SharedSigner{Issuer: int32(beUint32(value)), DER: []byte(value[4:])}
		return nil
	}
	switch name {
	case fieldEpochs:
		if len(value)%8 != 0 {
			return errSharedForm
		}
		for ; value != ""; value = value[8:] {
			s.Epochs[beUint32(value)] = int32(beUint32(value[4:]))
		}
	case fieldComplete:
		s.Complete = true
	}
	return nil // a field of a newer version is passed over
}

// PutShared writes issuers, signers and epochs and tells the responders. It leaves
// out what Redis has already; it takes nothing away, and does not touch Complete.
func (s *Store) PutShared(ctx context.Context, shared *Shared) error {
	fields := make([]any, 0, 2*(len(shared.Issuers)+len(shared.Signers)+1))
	for id, der := range shared.Issuers {
		fields = append(fields, fieldIssuer+strconv.Itoa(int(id)), der)
	}
	for id, signer := range shared.Signers {
		value := binary.BigEndian.AppendUint32(nil, uint32(signer.Issuer))
		fields = append(fields, fieldSigner+strconv.Itoa(int(id)), append(value, signer.DER...))
	}
	epochs := make([]byte, 0, 8*len(shared.Epochs))
	for epoch, issuer := range shared.Epochs {
		epochs = binary.BigEndian.AppendUint32(epochs, epoch)
		epochs = binary.BigEndian.AppendUint32(epochs, uint32(issuer))
	}
	fields = append(fields, fieldEpochs, epochs)
	if err := s.client.HSet(ctx, s.keys.shared, fields...).Err(); err != nil {
		return fmt.Errorf("writing the shared entries to Redis: %w", err)
	}
	return s.announceShared(ctx)
}

// setComplete says whether Redis holds an answer for everything in the ledger.
func (s *Store) setComplete(ctx context.Context, complete bool) error {
	var err error
	if complete {
		err = s.client.HSet(ctx, s.keys.shared, fieldComplete, "1").Err()
	} else {
		err = s.client.HDel(ctx, s.keys.shared, fieldComplete).Err()
	}
	if err != nil {
		return fmt.Errorf("writing the shared entries to Redis: %w", err)
	}
	return s.announceShared(ctx)
}

// RemoveSigner takes away a signer whose last answer has expired.
func (s *Store) RemoveSigner(ctx context.Context, id int32) error {
	if err := s.client.HDel(ctx, s.keys.shared, fieldSigner+strconv.Itoa(int(id))).Err(); err != nil {
		return fmt.Errorf("removing OCSP signer %d from Redis: %w", id, err)
	}
	return nil
}
