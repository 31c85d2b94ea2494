package profile

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
)

const namesField = "csr.names"

// checkNames settles and checks the names of all kinds.
func (p *Profile) checkNames(r *Request) error {
	if n := len(r.DNSNames) + len(r.IPAddresses) + len(r.URIs) + len(r.Emails); n > csr.MaxNames {
		return p.tooMany(n, csr.MaxNames) // before the names are looked at, whoever sent them
	}
	if err := p.settleNames(r); err != nil {
		return err
	}
	if p.Kind == KindSPIFFE {
		if err := p.checkID(r); err != nil {
			return err
		}
	}
	id := r.Caller.Identity
	for _, name := range r.DNSNames {
		if err := csr.CheckDNS(name); err != nil {
			return err
		}
		if name[0] == '*' && !p.dns.Wildcard {
			return problem.Forbidden(namesField, "wildcard_not_allowed", "profile %s allows no wildcard names such as %q", p.Name, name)
		}
		if !slices.ContainsFunc(p.dns.allow, func(d dnsPattern) bool { return d.match(name, id) }) {
			return p.notAllowed("dns", name)
		}
	}
	for _, ip := range r.IPAddresses {
		if err := csr.CheckIP(ip); err != nil {
			return err
		}
		if !slices.ContainsFunc(p.ip.allow, func(n netip.Prefix) bool { return n.Contains(ip) }) {
			return p.notAllowed("ip", ip.String())
		}
	}
	if err := p.checkGlobs(&p.uri, r.URIs, id, csr.CheckURI); err != nil {
		return err
	}
	if err := p.checkGlobs(&p.email, r.Emails, id, csr.CheckEmail); err != nil {
		return err
	}
	return p.checkCounts(r)
}

func (p *Profile) checkGlobs(k *kind[glob], names []string, id string, syntax func(string) error) error {
	for _, name := range names {
		if err := syntax(name); err != nil {
			return err
		}
		if !slices.ContainsFunc(k.allow, func(g glob) bool { return g.match(name, id) }) {
			return p.notAllowed(k.name, name)
		}
	}
	return nil
}

func (p *Profile) notAllowed(kind, name string) error {
	return problem.Forbidden(namesField, kind+"_not_allowed", "profile %s does not allow this caller the %s name %.253q", p.Name, kind, name)
}

func (p *Profile) tooMany(n, limit int) error {
	return problem.Rejected(namesField, "names_max", "%d names are asked for; at most %d are allowed", n, limit)
}

func (p *Profile) checkCounts(r *Request) error {
	total := 0
	for _, c := range [...]struct {
		rule *NameRule
		name string
		n    int
	}{
		{&p.Names.DNS, "dns", len(r.DNSNames)}, {&p.Names.IP, "ip", len(r.IPAddresses)},
		{&p.Names.URI, "uri", len(r.URIs)}, {&p.Names.Email, "email", len(r.Emails)},
	} {
		total += c.n
		if c.n < c.rule.Min {
			return problem.Rejected(namesField, c.name+"_required", "profile %s needs at least %d %s name(s); the request has %d", p.Name, c.rule.Min, c.name, c.n)
		}
		if c.rule.Max > 0 && c.n > c.rule.Max {
			return problem.Rejected(namesField, c.name+"_max", "profile %s takes at most %d %s name(s); the request has %d", p.Name, c.rule.Max, c.name, c.n)
		}
	}
	if total < p.Names.Min {
		return problem.Rejected(namesField, "names_required", "profile %s needs at least %d subject alternative name(s); the request has %d", p.Name, p.Names.Min, total)
	}
	if total > p.Names.Max {
		return p.tooMany(total, p.Names.Max)
	}
	return nil
}

// settleNames puts the names there that come from the caller's identity.
func (p *Profile) settleNames(r *Request) (err error) {
	id := r.Caller.Identity
	if r.DNSNames, err = settle(p, &p.dns, r.DNSNames, id, asIs); err != nil {
		return err
	}
	if r.IPAddresses, err = settle(p, &p.ip, r.IPAddresses, id, netip.ParseAddr); err != nil {
		return err
	}
	if r.URIs, err = settle(p, &p.uri, r.URIs, id, asIs); err != nil {
		return err
	}
	r.Emails, err = settle(p, &p.email, r.Emails, id, asIs)
	return err
}

func asIs(s string) (string, error) { return s, nil }

func settle[P any, N comparable](p *Profile, k *kind[P], asked []N, id string, parse func(string) (N, error)) ([]N, error) {
	if k.template == nil {
		return asked, nil
	}
	if id == "" {
		return nil, problem.Forbidden("caller", "identity_required", "profile %s takes names from the caller's identity, and this credential proves none", p.Name)
	}
	text, ok := k.template.expand(id)
	own, err := parse(text)
	if err != nil || !ok {
		return nil, problem.Forbidden("caller", "identity_kind", "the caller's identity %.253q makes no %s name", id, k.name)
	}
	if k.Others == OthersRefuse && slices.ContainsFunc(asked, func(n N) bool { return n != own }) {
		return nil, problem.Forbidden(namesField, k.name+"_not_identity", "profile %s gives the %s name %.253q of the caller's identity and no other", p.Name, k.name, text)
	}
	if len(asked) == 1 && asked[0] == own {
		return asked, nil
	}
	return []N{own}, nil
}

// checkCommonName settles the common name by the profile's rule. It runs after the
// names have been checked.
func (p *Profile) checkCommonName(r *Request) error {
	switch p.Subject.CommonName {
	case CommonNameEmpty:
		r.CommonName = ""
		return nil
	case CommonNameFromNames:
		return p.commonNameFromNames(r)
	}
	if r.CommonName == "" {
		if p.Subject.CommonName == CommonNameRequired {
			return problem.Rejected("csr.subject", "cn_required", "profile %s needs a common name in the subject", p.Name)
		}
		return nil
	}
	if err := csr.CheckCommonName(r.CommonName); err != nil {
		return err
	}
	if !slices.ContainsFunc(p.commonName, func(g glob) bool { return g.match(r.CommonName, r.Caller.Identity) }) {
		return problem.Forbidden("csr.subject", "cn_not_allowed", "profile %s does not allow this caller the common name %q", p.Name, r.CommonName)
	}
	return nil
}

func (p *Profile) commonNameFromNames(r *Request) error {
	if r.CommonName == "" {
		r.CommonName = firstName(r)
		return nil
	}
	if err := csr.CheckCommonName(r.CommonName); err != nil {
		return err
	}
	for _, name := range r.DNSNames {
		if strings.EqualFold(name, r.CommonName) {
			r.CommonName = name
			return nil
		}
	}
	for _, ip := range r.IPAddresses {
		if ip.String() == r.CommonName {
			return nil
		}
	}
	if slices.Contains(r.URIs, r.CommonName) || slices.Contains(r.Emails, r.CommonName) {
		return nil
	}
	return problem.Rejected("csr.subject", "cn_not_a_name", "the common name %q is not among the subject alternative names; add it there or leave it out", r.CommonName)
}

// firstName returns the first DNS name, else the first address, that fits a common name.
func firstName(r *Request) string {
	for _, name := range r.DNSNames {
		if len(name) <= csr.MaxCommonName {
			return name
		}
	}
	if len(r.IPAddresses) > 0 {
		return r.IPAddresses[0].String()
	}
	return ""
}
