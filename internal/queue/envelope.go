package queue

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
)

// An envelope is version (1 octet) ‖ key id (4) ‖ HMAC-SHA256 (32) ‖ message. The
// MAC covers the version, the key id, the subject and the message, so that a
// message cannot be moved to another issuer, priority or gateway. Replay needs no
// memory here: a request carries its deadline and its request key, and the ledger
// makes one certificate of any number of copies.
const (
	envelopeVersion = 1
	keyIDSize       = 4
	macSize         = sha256.Size
	headerSize      = 1 + keyIDSize + macSize
)

// ErrForged says that a message was not made by a holder of one of the keys.
var ErrForged = errors.New("the message's authentication code is wrong or its key is unknown")

// Keys are the secrets that gateways, signers and presigners share. Of the keys that
// serve a subject the first seals and all open, so that a key can be changed without a
// stop. Keys is safe for concurrent use.
type Keys struct {
	seal, sealEvent *key // nil where there is none
	open            map[[keyIDSize]byte]*key
}

type key struct {
	id     [keyIDSize]byte
	secret []byte
	// event says that the key serves events alone.
	event bool
}

// serves reports whether the key may seal and open messages on a subject. A key for
// events is what presigners have: it makes no request and no reply.
func (k *key) serves(subject string) bool { return !k.event || isEvent(subject) }

// ParseKeys reads one key a line, 64 hexadecimal digits each (32 octets); empty
// lines and lines that start with "#" are passed over. A line that begins with the
// word "events" holds a key for events alone; where there is one it seals them.
func ParseKeys(text string) (*Keys, error) {
	k := &Keys{open: map[[keyIDSize]byte]*key{}}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		digits, event := strings.CutPrefix(line, "events ")
		secret, err := hex.DecodeString(strings.TrimSpace(digits))
		if err != nil || len(secret) != 32 {
			return nil, fmt.Errorf(`queue key file, line %d: a key is 64 hexadecimal digits, after the word "events" or alone`, i+1)
		}
		id := sha256.Sum256(append([]byte("certmill queue key id\x00"), secret...))
		e := &key{secret: secret, event: event}
		copy(e.id[:], id[:])
		switch {
		case event && k.sealEvent == nil:
			k.sealEvent = e
		case !event && k.seal == nil:
			k.seal = e
		}
		k.open[e.id] = e
	}
	if len(k.open) == 0 {
		return nil, errors.New("queue key file: no key in it")
	}
	return k, nil
}

// sealing returns the key that seals messages on a subject, nil where there is none.
func (k *Keys) sealing(subject string) *key {
	if isEvent(subject) && k.sealEvent != nil {
		return k.sealEvent
	}
	return k.seal
}

// mac appends the code to out.
func (k *key) mac(subject string, message, out []byte) []byte {
	h := hmac.New(sha256.New, k.secret)
	h.Write([]byte{envelopeVersion})
	h.Write(k.id[:])
	h.Write([]byte(subject))
	h.Write([]byte{0})
	h.Write(message)
	return h.Sum(out)
}

// Seal encodes m for the subject it is to be published on.
func (k *Keys) Seal(subject string, m proto.Message) ([]byte, error) {
	out := make([]byte, headerSize, headerSize+proto.Size(m))
	out, err := proto.MarshalOptions{}.MarshalAppend(out, m)
	if err != nil {
		return nil, fmt.Errorf("encoding a message for %s: %w", subject, err)
	}
	if len(out) > MaxMessageBytes {
		return nil, fmt.Errorf("a message for %s has %d bytes, more than %d", subject, len(out), MaxMessageBytes)
	}
	if err := k.sealInPlace(subject, out); err != nil {
		return nil, err
	}
	return out, nil
}

// sealInPlace fills in the header, for which out has left room.
func (k *Keys) sealInPlace(subject string, out []byte) error {
	with := k.sealing(subject)
	if with == nil {
		return fmt.Errorf("the queue key file has no key for messages on %s", subject)
	}
	out[0] = envelopeVersion
	copy(out[1:], with.id[:])
	with.mac(subject, out[headerSize:], out[1+keyIDSize:1+keyIDSize])
	return nil
}

// Open checks the envelope that came on subject and decodes its message into m. It
// fails with ErrForged before it looks at a message that it cannot trust.
func (k *Keys) Open(subject string, data []byte, m proto.Message) error {
	if len(data) < headerSize || len(data) > MaxMessageBytes || data[0] != envelopeVersion {
		return ErrForged
	}
	e := k.open[[keyIDSize]byte(data[1:1+keyIDSize])]
	if e == nil || !e.serves(subject) || !hmac.Equal(e.mac(subject, data[headerSize:], nil), data[1+keyIDSize:headerSize]) {
		return ErrForged
	}
	if err := proto.Unmarshal(data[headerSize:], m); err != nil {
		return fmt.Errorf("decoding a message of %s: %w", subject, err)
	}
	return nil
}
