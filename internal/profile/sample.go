package profile

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/certmill/certmill/internal/csr"
)

// Sample returns a request with names as the profile allows them, one for each pattern,
// for linting at load. It has no key, and neither callers nor rules have a say in it.
func (p *Profile) Sample() *Request {
	r := &Request{Profile: p.Name, Caller: Caller{ID: "local:sample", Kind: KindLocal, Identity: "sample"}, Lifetime: p.Lifetime.Default.D()}
	r.DNSNames = sample(&p.dns, func(d dnsPattern, star string) (string, bool) {
		name := d.base.sample(star, "sample.example.test")
		switch {
		case len(d.base) == 0:
			name = star + ".example.test"
		case d.depth != literal:
			name = star + "." + name
		}
		return name, csr.CheckDNS(name) == nil
	})
	if p.dns.Wildcard && len(r.DNSNames) > 0 {
		if _, base, ok := strings.Cut(r.DNSNames[0], "."); ok && csr.CheckDNS("*."+base) == nil {
			r.DNSNames[0] = "*." + base
		}
	}
	r.IPAddresses = sample(&p.ip, func(n netip.Prefix, _ string) (netip.Addr, bool) {
		if n.IsSingleIP() {
			return n.Addr(), true
		}
		return n.Addr().Next(), true
	})
	r.URIs = sample(&p.uri, func(g glob, star string) (string, bool) {
		uri := g.sample(star, "https://sample.example.test/")
		return uri, csr.CheckURI(uri) == nil
	})
	r.Emails = sample(&p.email, func(g glob, star string) (string, bool) {
		email := g.sample(star, "sample@example.test")
		return email, csr.CheckEmail(email) == nil
	})
	switch {
	case p.Subject.CommonName == CommonNameFromNames:
		r.CommonName = firstName(r)
	case len(p.commonName) > 0:
		r.CommonName = p.commonName[0].sample("sample", "sample")
	}
	return r
}

// sample makes a name for each pattern, at least Min and at most Max of the kind, and
// never more than fit with the other kinds.
func sample[P, N any](k *kind[P], name func(p P, star string) (N, bool)) []N {
	if len(k.allow) == 0 {
		return nil
	}
	n := max(len(k.allow), k.Min)
	if k.Max > 0 {
		n = min(n, k.Max)
	}
	if k.template != nil {
		n = 1
	}
	var names []N
	for i := range min(n, csr.MaxNames/4) {
		if s, ok := name(k.allow[i%len(k.allow)], "sample"+strconv.Itoa(i)); ok {
			names = append(names, s)
		}
	}
	return names
}

// sample fills the stars and the variable in. whole stands for a pattern that is
// nothing else.
func (g glob) sample(star, whole string) string {
	if len(g) == 1 && g[0].kind != literal {
		return whole
	}
	var b strings.Builder
	for _, p := range g {
		switch p.kind {
		case literal:
			b.WriteString(p.literal)
		case identity:
			b.WriteString("sample")
		default:
			b.WriteString(star)
		}
	}
	return b.String()
}
