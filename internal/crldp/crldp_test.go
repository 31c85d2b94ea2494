package crldp

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
)

func TestEverySerialIsInTheSlotsOfItsShard(t *testing.T) {
	now := time.Now()
	for range 1000 {
		n, err := serial.New(rand.Reader, 1, now, now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for shards := 1; shards <= MaxShards; shards *= 2 {
			shard := Of(n, shards)
			first, last := Slots(shard, shards)
			if shard < 0 || shard >= shards || bytes.Compare(n[14:], first[:]) < 0 || bytes.Compare(n[14:], last[:]) > 0 {
				t.Fatalf("%s: shard %d of %d has %x to %x", n, shard, shards, first, last)
			}
		}
	}
}

func TestShardsAreOfOneSizeAndCoverAll(t *testing.T) {
	for _, shards := range []int{1, 2, 64, MaxShards} {
		counts := make([]int, shards)
		for slot := range 1 << 16 {
			var n serial.Number
			n[14], n[15] = byte(slot>>8), byte(slot)
			counts[Of(n, shards)]++
		}
		for i, c := range counts {
			if c != 1<<16/shards {
				t.Fatalf("shard %d of %d has %d slots", i, shards, c)
			}
		}
	}
}

func TestTheURLNamesGenerationAndShard(t *testing.T) {
	p := Point{"http://crl.test/c/{issuer}/{shard}.crl", 64}.For("issuing", 3)
	if got := p.Shard(17); got != "http://crl.test/c/issuing-3/64-17.crl" {
		t.Error(got)
	}
	if path, err := p.Path(17); err != nil || path != "/c/issuing-3/64-17.crl" {
		t.Error(path, err)
	}
}

func TestAPointIsChecked(t *testing.T) {
	for _, c := range []struct {
		url    string
		shards int
		want   string // part of the error; "" for none
	}{
		{"http://crl.test/{issuer}.crl", 1, ""},
		{"http://crl.test/{issuer}/{shard}.crl", 1, ""},
		{"http://crl.test/{issuer}/{shard}.crl", 4096, ""},
		{"http://crl.test/{issuer}.crl", 2, "needs {shard}"},
		{"http://crl.test/{shard}.crl", 2, "needs {issuer}"},
		{"http://{issuer}.test/{shard}.crl", 2, "needs {issuer}"},
		{"http://crl.test/{issuer}/{shard}", 2, "must end in .crl"},
		{"http://crl.test/{issuer}/{shard}.crl?x", 2, "query"},
		{"http://crl.test/{issuer}/{shard}.crl", 3, "power of two"},
		{"http://crl.test/{issuer}/{shard}.crl", 0, "power of two"},
		{"http://crl.test/{issuer}/{shard}-delta.crl", 4, "for delta CRLs"},
		{"http://crl.test/{issuer}/{shard}.crl", 8192, "power of two"},
	} {
		err := Point{c.url, c.shards}.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %d shards: %v, want %q", c.url, c.shards, err, c.want)
		}
	}
}
