package ledger

import (
	"encoding/binary"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// array is one parameter of the commit statement in PostgreSQL's binary form for arrays,
// written as the rows come: by way of pgx's types each element is boxed and its encoding
// looked up, which for eighteen arrays costs more than all else that a signer does for a
// commit.
type array struct {
	buf   []byte
	count int32
}

// arrayHead is: the number of dimensions, whether there are NULLs, the type of the
// elements, and for the one dimension its length and its lower bound.
const arrayHead = 5 * 4

// newArray returns an empty array of elements of a type, with room for octets of them.
func newArray(oid uint32, octets int) array {
	buf := make([]byte, arrayHead, arrayHead+octets)
	binary.BigEndian.PutUint32(buf, 1)
	binary.BigEndian.PutUint32(buf[8:], oid)
	binary.BigEndian.PutUint32(buf[16:], 1)
	return array{buf: buf}
}

// encoded returns the whole array; nothing is to be added after it.
func (a *array) encoded() []byte {
	binary.BigEndian.PutUint32(a.buf[12:], uint32(a.count))
	return a.buf
}

func (a *array) octets(v []byte) {
	a.buf = append(binary.BigEndian.AppendUint32(a.buf, uint32(len(v))), v...)
	a.count++
}

func (a *array) text(v string) {
	a.buf = append(binary.BigEndian.AppendUint32(a.buf, uint32(len(v))), v...)
	a.count++
}

func (a *array) null() {
	a.buf = binary.BigEndian.AppendUint32(a.buf, 1<<32-1)
	binary.BigEndian.PutUint32(a.buf[4:], 1)
	a.count++
}

func (a *array) int2(v int16) {
	a.buf = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(a.buf, 2), uint16(v))
	a.count++
}

func (a *array) int4(v int32) {
	a.buf = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(a.buf, 4), uint32(v))
	a.count++
}

func (a *array) time(v time.Time) {
	a.buf = appendTime(binary.BigEndian.AppendUint32(a.buf, 8), v)
	a.count++
}

// appendTime appends a timestamptz: microseconds since the beginning of 2000.
func appendTime(to []byte, v time.Time) []byte {
	return binary.BigEndian.AppendUint64(to, uint64(v.UnixMicro()-y2000))
}

var y2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// The types of the elements.
func byteaArray(octets int) array { return newArray(pgtype.ByteaOID, octets) }
func textArray(octets int) array  { return newArray(pgtype.TextOID, octets) }
func timeArray(n int) array       { return newArray(pgtype.TimestamptzOID, 12*n) }
