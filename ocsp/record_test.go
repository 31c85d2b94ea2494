package ocsp

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRecordsAreReadBackWhole(t *testing.T) {
	sig := func(n int, c string) string { return strings.Repeat(c, n) }
	for name, rec := range map[string]Record{
		"good":              {Status: testGood, Signer: 7, Signatures: [Hashes]string{sig(64, "a"), sig(64, "b")}},
		"revoked":           {Status: revoked(testGood, 5), Signer: 1 << 20, Signatures: [Hashes]string{sig(64, "a"), sig(64, "b")}},
		"one hash":          {Status: testGood, Signatures: [Hashes]string{SHA256: sig(256, "x")}},
		"of no time at all": {Status: Status{}, Signatures: [Hashes]string{SHA1: sig(96, "x")}},
	} {
		t.Run(name, func(t *testing.T) {
			encoded := encode(t, &rec)
			got, err := DecodeRecord(encoded)
			if err != nil || !reflect.DeepEqual(got, rec) {
				t.Errorf("read %+v, %v", got, err)
			}
			for i := range len(encoded) {
				if got, err := DecodeRecord(encoded[:i]); err == nil && reflect.DeepEqual(got, rec) {
					t.Errorf("the first %d octets read as the whole", i)
				}
			}
		})
	}
}

func TestARecordIsSmall(t *testing.T) {
	rec := Record{Status: testGood, Signer: 7, Signatures: [Hashes]string{strings.Repeat("a", 64), strings.Repeat("b", 64)}}
	if n := len(encode(t, &rec)); n > 140 {
		t.Errorf("%d octets: README.md's arithmetic is off", n)
	}
}

func TestRecordsOutOfRangeAreNotEncoded(t *testing.T) {
	good := Record{Status: testGood, Signatures: [Hashes]string{SHA1: "12345678"}}
	for name, spoil := range map[string]func(*Record){
		"no signature":         func(r *Record) { r.Signatures = [Hashes]string{} },
		"unequal signatures":   func(r *Record) { r.Signatures[SHA256] = "1" },
		"times in disorder":    func(r *Record) { r.NextUpdate = r.ThisUpdate - 1 },
		"produced before this": func(r *Record) { r.ProducedAt = r.ThisUpdate - 1 },
		"after 2106":           func(r *Record) { r.ThisUpdate = 1 << 32 },
		"before 1970":          func(r *Record) { r.Revoked, r.RevokedAt = true, -1 },
	} {
		r := good
		spoil(&r)
		if _, err := r.AppendTo(nil); !errors.Is(err, errRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRevokedAndLaterRecordsStand(t *testing.T) {
	at := func(d time.Duration, isRevoked bool) string {
		s := testGood
		s.ThisUpdate += int64(d.Seconds())
		s.ProducedAt, s.NextUpdate = s.ThisUpdate, s.ThisUpdate+60
		if isRevoked {
			s = revoked(s, 1)
		}
		return encode(t, &Record{Status: s, Signatures: [Hashes]string{SHA1: "12345678"}})
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{at(0, false), at(0, false), true},
		{at(time.Hour, false), at(0, false), true},
		{at(0, false), at(time.Hour, false), false},
		{at(0, true), at(time.Hour, false), true},
		{at(time.Hour, false), at(0, true), false},
		{at(0, true), at(time.Hour, true), false},
		{"", at(0, false), false},
		{at(0, false), "", true},
	} {
		if got := stands(c.a, c.b); got != c.want {
			t.Errorf("stands(%x, %x) is %v", c.a, c.b, got)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	good := Record{Status: testGood, Signer: 300, Signatures: [Hashes]string{strings.Repeat("a", 64), strings.Repeat("b", 64)}}
	bad := Record{Status: revoked(testGood, 1), Signer: 300, Signatures: [Hashes]string{strings.Repeat("a", 64), strings.Repeat("b", 64)}}
	f.Add(encode(f, &good))
	f.Add(encode(f, &bad))
	f.Fuzz(func(t *testing.T, s string) {
		rec, err := DecodeRecord(s)
		if err != nil {
			return
		}
		if again := encode(t, &rec); again != s {
			t.Errorf("%x encodes again as %x", s, again)
		}
	})
}
