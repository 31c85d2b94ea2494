package serial

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math/big"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func TestNewKeepsRFC5280AndBR(t *testing.T) {
	for _, life := range []time.Duration{time.Minute, DayMax, DayMax + time.Second, MonthMax, MonthMax + time.Second, 20 * 365 * 24 * time.Hour} {
		n, err := New(rand.Reader, 0xdeadbeef, noon, noon.Add(life))
		if err != nil {
			t.Fatal(err)
		}
		if n.Big().Sign() != 1 || n.Big().BitLen() > 159 || n[0] == 0 || n[0] >= 0x80 {
			t.Errorf("life %s: serial %s is not a positive integer of at most 159 bits without a leading zero", life, n)
		}
		if n.Epoch() != 0xdeadbeef {
			t.Errorf("epoch %x", n.Epoch())
		}
		if end := n.Bucket().End(); end.Before(noon.Add(life)) {
			t.Errorf("life %s: the bucket ends at %s, before the certificate", life, end)
		}
		for _, again := range []func() (Number, error){
			func() (Number, error) { return FromBytes(n[:]) },
			func() (Number, error) { return FromBig(n.Big()) },
			func() (Number, error) { return Parse(n.String()) },
			func() (Number, error) { return Parse(strings.ToUpper(n.String())) },
		} {
			if m, err := again(); err != nil || m != n {
				t.Errorf("%s came back as %s, %v", n, m, err)
			}
		}
	}
}

func TestNewTakes80BitsFromTheReader(t *testing.T) {
	a, _ := New(bytes.NewReader(bytes.Repeat([]byte{0x00}, 10)), 1, noon, noon.Add(time.Hour))
	b, _ := New(bytes.NewReader(bytes.Repeat([]byte{0xff}, 10)), 1, noon, noon.Add(time.Hour))
	diff := 0
	for i := range a {
		for x := a[i] ^ b[i]; x != 0; x &= x - 1 {
			diff++
		}
	}
	if diff != 80 {
		t.Errorf("%d bits come from the reader, not 80", diff)
	}
}

func TestNewRefuses(t *testing.T) {
	broken := errors.New("no entropy")
	for name, err := range map[string]error{
		"epoch 0":            func() error { _, err := New(rand.Reader, 0, noon, noon.Add(time.Hour)); return err }(),
		"a time before 2024": func() error { _, err := New(rand.Reader, 1, time.Unix(0, 0), time.Unix(3600, 0)); return err }(),
		"a time beyond the buckets": func() error {
			_, err := New(rand.Reader, 1, noon, noon.AddDate(5000, 0, 0))
			return err
		}(),
		"a broken reader": func() error { _, err := New(iotest.ErrReader(broken), 1, noon, noon.Add(time.Hour)); return err }(),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestSerialsSortByExpiryWithinAClass(t *testing.T) {
	var last Number
	for d := range 300 {
		n, err := New(rand.Reader, 7, noon.AddDate(0, 0, d), noon.AddDate(0, 0, d+1))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Compare(last[:], n[:]) >= 0 {
			t.Fatalf("day %d: %s does not come after %s", d, n, last)
		}
		last = n
	}
}

func TestRangesCoverWhatTheyBound(t *testing.T) {
	from, to := noon, noon.AddDate(0, 3, 0)
	in := func(b Bucket) bool {
		for _, r := range Ranges(from, to) {
			if r[0] <= b && b <= r[1] {
				return true
			}
		}
		return false
	}
	for h := time.Duration(0); h < 120*24; h++ {
		notAfter := noon.Add(h * time.Hour)
		for _, life := range []time.Duration{time.Hour, 30 * 24 * time.Hour, 500 * 24 * time.Hour} {
			b, err := BucketOf(notAfter.Add(-life), notAfter)
			if err != nil {
				t.Fatal(err)
			}
			if !notAfter.After(to) && !in(b) {
				t.Fatalf("a certificate of %s that expires at %s is in bucket %x, outside the ranges", life, notAfter, b)
			}
		}
	}
	if far := Ranges(time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)); far[0] != [2]Bucket{dayBase, monthBase - 1} || far[2] != [2]Bucket{yearBase, end - 1} {
		t.Errorf("an open range is %x", far)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	for _, s := range []string{"", "zz", "00", strings.Repeat("00", 16), strings.Repeat("ff", 16), "1000" + strings.Repeat("00", 14), strings.Repeat("10", 17), strings.Repeat(":", 48)} {
		if n, err := Parse(s); err == nil {
			t.Errorf("%q was taken as %s", s, n)
		}
	}
	for _, i := range []*big.Int{nil, big.NewInt(0), big.NewInt(-1), new(big.Int).Lsh(big.NewInt(1), 200)} {
		if n, err := FromBig(i); err == nil {
			t.Errorf("%v was taken as %s", i, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("37730000000701020304050607080910")
	f.Add("37:73:00:00:00:07:01:02:03:04:05:06:07:08:09:10")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		if m, err := Parse(n.String()); err != nil || m != n {
			t.Fatalf("%q became %s and then %s, %v", s, n, m, err)
		}
	})
}
