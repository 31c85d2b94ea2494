package profile

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestIssuersShareTheWorkByWeight(t *testing.T) {
	p := parse(t, with(t, "{issuer: null, issuers: [{name: one, weight: 3}, {name: two}, {name: three, weight: 4}]}"))
	without := parse(t, with(t, "{issuer: null, issuers: [{name: one, weight: 3}, {name: two}]}"))
	const n = 40_000
	first := map[string]int{}
	for i := range uint64(n) {
		key := binary.BigEndian.AppendUint64(nil, i)
		rank := p.RankIssuers(key)
		if !slices.Equal(rank, p.RankIssuers(key)) {
			t.Fatal("the same key has two orders")
		}
		first[rank[0]]++
		// Taking an issuer out moves its own requests alone, to the next in their order.
		rest := slices.DeleteFunc(slices.Clone(rank), func(name string) bool { return name == "three" })
		if got := without.RankIssuers(key); !slices.Equal(got, rest) {
			t.Fatalf("without one issuer %v becomes %v", rank, got)
		}
	}
	for name, share := range map[string]float64{"one": 3. / 8, "two": 1. / 8, "three": 4. / 8} {
		if got := p.IssuerShare(name); got != share {
			t.Errorf("IssuerShare(%s) = %v, want %v", name, got, share)
		}
		sigma := math.Sqrt(n * share * (1 - share))
		if off := float64(first[name]) - n*share; math.Abs(off) > 6*sigma {
			t.Errorf("%s comes first %d times of %d; its share is %v (off by %.1f sigma)", name, first[name], n, share, off/sigma)
		}
	}
	if p.IssuedBy("four") || !p.IssuedBy("two") {
		t.Error("IssuedBy knows another list of issuers")
	}
}

func TestIssuersAreChecked(t *testing.T) {
	var many []string
	for i := range maxIssuers + 1 {
		many = append(many, "{name: i"+strconv.Itoa(i)+"}")
	}
	for want, change := range map[string]string{
		"issuer: it stands beside issuers":                      "{issuers: [{name: a}]}",
		`issuers[1].name: "a" is there twice`:                   "{issuer: null, issuers: [{name: a}, {name: a}]}",
		"issuers[0].weight: -1 is not within 1":                 "{issuer: null, issuers: [{name: a, weight: -1}]}",
		"issuers[0].weight: 1001 is not within 1":               "{issuer: null, issuers: [{name: a, weight: 1001}]}",
		`issuers[0].name: "A" is not the name`:                  "{issuer: null, issuers: [{name: A}]}",
		"issuers: 17 are named; at most 16 are":                 "{issuer: null, issuers: [" + strings.Join(many, ", ") + "]}",
		"issuers_url: \"http://ca.test/ca.cer\" needs {issuer}": "{issuer: null, issuers: [{name: a}, {name: b}], issuers_url: 'http://ca.test/ca.cer'}",
		`issuer: "" is not the name of an issuer`:               "{issuer: null}",
	} {
		if _, err := Parse([]byte(with(t, change))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
