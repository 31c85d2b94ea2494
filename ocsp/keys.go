package ocsp

import (
	"encoding/hex"
	"fmt"

	"github.com/certmill/certmill/internal/serial"
)

// Shards is the number of Redis hashes that share the records. The shard is two of
// the random octets of a serial, so records spread evenly, and the field needs only
// the other fourteen. A hash of 8 to 512 records is one allocation in Redis, which is
// what makes a record cheap: half a million to thirty million certificates.
const Shards = 1 << 16

const (
	shardOctet = 6 // the first two of the ten random octets of a serial
	fieldSize  = serial.Size - 2
)

// ShardOf returns the shard of a serial.
func ShardOf(n serial.Number) uint16 {
	return uint16(n[shardOctet])<<8 | uint16(n[shardOctet+1])
}

// fieldOf returns the field of a serial in its shard: the serial without the octets
// that chose the shard.
func fieldOf(n serial.Number) string {
	var f [fieldSize]byte
	copy(f[:], n[:shardOctet])
	copy(f[shardOctet:], n[shardOctet+2:])
	return string(f[:])
}

// serialOf puts a serial together again.
func serialOf(shard uint16, field string) (serial.Number, error) {
	if len(field) != fieldSize {
		return serial.Number{}, fmt.Errorf("shard %04x: a field of %d octets", shard, len(field))
	}
	var b [serial.Size]byte
	copy(b[:], field[:shardOctet])
	b[shardOctet], b[shardOctet+1] = byte(shard>>8), byte(shard)
	copy(b[shardOctet+2:], field[shardOctet:])
	return serial.FromBytes(b[:])
}

// keys are the names in Redis under one namespace.
type keys struct {
	shard    string // and four hexadecimal digits: HASH field → Record
	shared   string // HASH of what all answers share
	changes  string // STREAM of revocations and of changes of shared
	leases   string // HASH of which presigner works on what
	healing  string // HASH of what was swept since Redis was last empty
	presence string // HASH of instance → what a responder says of itself
	crls     string // HASH of path → CRLInfo
	crl      string // and a digest and a number: STRING of a piece of a CRL
}

func newKeys(namespace string) keys {
	p := namespace + ":ocsp:"
	return keys{shard: p + "s:", shared: p + "shared", changes: p + "changes", leases: p + "leases", healing: p + "healing", presence: p + "presence", crls: p + "crls", crl: p + "crl:"}
}

func (k *keys) shardKey(shard uint16) string {
	var b [64]byte
	return string(hex.AppendEncode(append(b[:0], k.shard...), []byte{byte(shard >> 8), byte(shard)}))
}
