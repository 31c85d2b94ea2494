package profile

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

const issuerVariable = "{issuer}"

// The bounds of Issuers.
const (
	maxIssuers = 16
	maxWeight  = 1000
)

func (p *Profile) compileIssuers(f *faults) {
	if len(p.Issuers) == 0 {
		if !validName.MatchString(p.Issuer) {
			f.add("issuer", "%q is not the name of an issuer", p.Issuer)
		}
		p.issuers = []WeightedIssuer{{Name: p.Issuer, Weight: 1}}
		return
	}
	if p.Issuer != "" {
		f.add("issuer", "it stands beside issuers; a profile has one of the two")
	}
	if len(p.Issuers) > maxIssuers {
		f.add("issuers", "%d are named; at most %d are allowed", len(p.Issuers), maxIssuers)
	}
	seen := map[string]bool{}
	for i, w := range p.Issuers {
		key := fmt.Sprintf("issuers[%d]", i)
		if !validName.MatchString(w.Name) {
			f.add(key+".name", "%q is not the name of an issuer", w.Name)
		}
		if seen[w.Name] {
			f.add(key+".name", "%q is there twice", w.Name)
		}
		seen[w.Name] = true
		if w.Weight < 1 || w.Weight > maxWeight {
			f.add(key+".weight", "%d is not within 1 and %d", w.Weight, maxWeight)
		}
	}
	if len(p.Issuers) > 1 && p.IssuersURL != "" && !strings.Contains(p.IssuersURL, issuerVariable) {
		f.add("issuers_url", "%q needs %s, since there are several issuers", p.IssuersURL, issuerVariable)
	}
	p.issuers = p.Issuers
}

// IssuersURLOf returns the issuers_url of one generation of an issuer, by its name and its
// id in the ledger.
func (p *Profile) IssuersURLOf(issuer string, generation int32) string {
	return strings.ReplaceAll(p.IssuersURL, issuerVariable, issuer+"-"+strconv.Itoa(int(generation)))
}

// IssuerNames returns the issuers that may issue by the profile.
func (p *Profile) IssuerNames() []string {
	names := make([]string, len(p.issuers))
	for i, w := range p.issuers {
		names[i] = w.Name
	}
	return names
}

// IssuedBy reports whether an issuer may issue by the profile.
func (p *Profile) IssuedBy(issuer string) bool {
	return slices.ContainsFunc(p.issuers, func(w WeightedIssuer) bool { return w.Name == issuer })
}

// IssuerShare is the part of the profile's certificates, 0 to 1, that an issuer has by
// its weight.
func (p *Profile) IssuerShare(issuer string) float64 {
	sum, own := 0, 0
	for _, w := range p.issuers {
		sum += w.Weight
		if w.Name == issuer {
			own = w.Weight
		}
	}
	return float64(own) / float64(sum)
}

// RankIssuers orders the issuers for one request: the first is to issue, the next stands
// in for it, and so on. The order depends on the key alone, so every gateway finds the
// same one for every repetition. Over many keys each issuer comes first as often as its
// weight says, and when one is taken out only its own requests go elsewhere (weighted
// rendezvous hashing).
func (p *Profile) RankIssuers(key []byte) []string {
	if len(p.issuers) == 1 {
		return []string{p.issuers[0].Name}
	}
	type ranked struct {
		name  string
		score float64
	}
	all := make([]ranked, len(p.issuers))
	for i, w := range p.issuers {
		sum := sha256.Sum256(append(append([]byte(nil), key...), w.Name...))
		// 53 bits, moved off 0 and 1: even in (0, 1). Its negative logarithm over the weight
		// is exponentially distributed, and the least of such has the share of its weight.
		u := (float64(binary.BigEndian.Uint64(sum[:8])>>11) + 0.5) / (1 << 53)
		all[i] = ranked{w.Name, -math.Log(u) / float64(w.Weight)}
	}
	slices.SortFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.name, b.name)) })
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.name
	}
	return names
}
