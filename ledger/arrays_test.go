package ledger

import (
	"bytes"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// TestArraysAreEncodedAsPgxEncodesThem compares them octet by octet.
func TestArraysAreEncodedAsPgxEncodesThem(t *testing.T) {
	moments := []time.Time{time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC), time.Date(2057, 1, 2, 3, 4, 5, 0, time.FixedZone("", 7200))}
	some := "ü"
	for name, c := range map[string]struct {
		array array
		fill  func(*array)
		oid   uint32
		want  any
	}{
		"octets":  {byteaArray(0), func(a *array) { a.octets([]byte{1, 2}); a.octets(nil) }, pgtype.ByteaArrayOID, [][]byte{{1, 2}, {}}},
		"text":    {textArray(99), func(a *array) { a.text("a"); a.text("") }, pgtype.TextArrayOID, []string{"a", ""}},
		"nulls":   {textArray(0), func(a *array) { a.null(); a.text(some) }, pgtype.TextArrayOID, []*string{nil, &some}},
		"moments": {timeArray(2), func(a *array) { a.time(moments[0]); a.time(moments[1]) }, pgtype.TimestamptzArrayOID, moments},
		"int2":    {newArray(pgtype.Int2OID, 0), func(a *array) { a.int2(-1); a.int2(3) }, pgtype.Int2ArrayOID, []int16{-1, 3}},
		"int4":    {newArray(pgtype.Int4OID, 0), func(a *array) { a.int4(-1); a.int4(1 << 30) }, pgtype.Int4ArrayOID, []int32{-1, 1 << 30}},
		"nothing": {byteaArray(0), func(*array) {}, pgtype.ByteaArrayOID, [][]byte{}},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := pgtype.NewMap().Encode(c.oid, pgtype.BinaryFormatCode, c.want, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.fill(&c.array)
			if got := c.array.encoded(); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}
