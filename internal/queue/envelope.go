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

// Keys are the secrets that gateways, signers and presigners share. The first seals;
// all of them open, so that a key can be changed without a stop. Keys is safe for
// concurrent use.
type Keys struct {
	seal *key
	open map[[keyIDSize]byte]*key
}

type key struct {
	id     [keyIDSize]byte
	secret []byte
}

// ParseKeys reads one key a line, 64 hexadecimal digits each (32 octets); empty
// lines and lines that start with "#" are passed over.
func ParseKeys(text string) (*Keys, error) {
	k := &Keys{open: map[[keyIDSize]byte]*key{}}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secret, err := hex.DecodeString(line)
		if err != nil || len(secret) != 32 {
			return nil, fmt.Errorf("queue key file, line %d: a key is 64 hexadecimal digits", i+1)
		}
		id := sha256.Sum256(append([]byte("certmill queue key id\x00"), secret...))
		e := &key{secret: secret}
		copy(e.id[:], id[:])
		if k.seal == nil {
			k.seal = e
		}
		k.open[e.id] = e
	}
	if k.seal == nil {
		return nil, errors.New("queue key file: no key in it")
	}
	return k, nil
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
	k.sealInPlace(subject, out)
	return out, nil
}

// sealInPlace fills in the header, for which out has left room.
func (k *Keys) sealInPlace(subject string, out []byte) {
	out[0] = envelopeVersion
	copy(out[1:], k.seal.id[:])
	k.seal.mac(subject, out[headerSize:], out[1+keyIDSize:1+keyIDSize])
}

// Open checks the envelope that came on subject and decodes its message into m. It
// fails with ErrForged before it looks at a message that it cannot trust.
func (k *Keys) Open(subject string, data []byte, m proto.Message) error {
	if len(data) < headerSize || len(data) > MaxMessageBytes || data[0] != envelopeVersion {
		return ErrForged
	}
	e := k.open[[keyIDSize]byte(data[1:1+keyIDSize])]
	if e == nil || !hmac.Equal(e.mac(subject, data[headerSize:], nil), data[1+keyIDSize:headerSize]) {
		return ErrForged
	}
	if err := proto.Unmarshal(data[headerSize:], m); err != nil {
		return fmt.Errorf("decoding a message of %s: %w", subject, err)
	}
	return nil
}
