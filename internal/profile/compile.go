package profile

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/certmill/certmill/internal/csr"
)

// The longest lifetimes: of any certificate, and of one without revocation.
const (
	maxLifetime     = 20 * 365 * 24 * time.Hour
	maxUnrevocable  = 7 * 24 * time.Hour
	maxBackdate     = 48 * time.Hour
	maxJitter       = 0.5
	defaultBackdate = 2 * time.Minute
	defaultMin      = time.Minute
	maxPatterns     = 256
	maxOrganization = 64 // ub-organization-name of RFC 5280 appendix A.1, in characters
)

var validCountry = regexp.MustCompile(`^[A-Z]{2}$`)

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func (s *Spec) setDefaults() {
	if s.Kind == KindSPIFFE {
		s.setSPIFFEDefaults()
	}
	setDefault(&s.Subject.CommonName, CommonNameEmpty)
	setDefault(&s.Names.Max, csr.MaxNames)
	if s.Subject.CommonName != CommonNameRequired {
		setDefault(&s.Names.Min, 1) // a certificate names somebody
	}
	s.Issuers = slices.Clone(s.Issuers) // the caller's are left alone
	for i := range s.Issuers {
		setDefault(&s.Issuers[i].Weight, 1)
	}
	for _, r := range []*NameRule{&s.Names.DNS, &s.Names.IP, &s.Names.URI, &s.Names.Email} {
		setDefault(&r.Source, SourceCSR)
		if r.Source == SourceIdentity {
			setDefault(&r.Template, identityVariable)
			setDefault(&r.Others, OthersRefuse)
		}
	}
	setDefault(&s.Lifetime.Min, Duration(defaultMin))
	setDefault(&s.Lifetime.Backdate, Duration(defaultBackdate))
	if s.HasCRL() {
		setDefault(&s.Revocation.CRLShards, 1)
	}
	if s.Lint.Sources == nil {
		s.Lint.Sources = []string{"RFC3279", "RFC5280", "RFC5480", "RFC5891", "RFC6960", "RFC6962", "RFC8813", "Community"}
	}
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// faults collects what is wrong under the key that it is wrong in.
type faults []error

func (f *faults) add(key, format string, args ...any) {
	*f = append(*f, fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...)))
}

func (f *faults) addErr(key string, err error) {
	if err != nil {
		*f = append(*f, fmt.Errorf("%s: %w", key, err))
	}
}

func (f *faults) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.add(key, "%q is not one of %q", value, allowed)
	}
}

func (p *Profile) compile() error {
	var f faults
	if !validName.MatchString(p.Name) {
		f.add("name", "%q is not 1–63 of a–z, 0–9 and \"-\"", p.Name)
	}
	p.compileIssuers(&f)
	p.compileCross(&f)
	if len(p.KeyTypes) == 0 {
		f.add("key_types", "at least one is needed of %q", csr.KeyTypes)
	}
	for _, k := range p.KeyTypes {
		if !slices.Contains(csr.KeyTypes, k) {
			f.add("key_types", "%q is not one of %q", k, csr.KeyTypes)
		}
	}
	for i, m := range p.RequiredMetadata {
		f.oneOf(fmt.Sprintf("required_metadata[%d]", i), m, "owner", "service", "environment")
	}
	p.checkSPIFFE(&f)
	p.compileCallers(&f)
	p.compileSubject(&f)
	p.compileNames(&f)
	p.checkLifetime(&f)
	p.checkExtensions(&f)
	p.compileRules(&f)
	return errors.Join(f...)
}

func (p *Profile) compileCallers(f *faults) {
	for i, c := range p.Callers {
		key := fmt.Sprintf("callers[%d]", i)
		if len(c.Kinds)+len(c.IDs)+len(c.Roles) == 0 {
			f.add(key, "an entry without conditions would let everybody in; remove callers if that is meant")
		}
		for _, k := range c.Kinds {
			f.oneOf(key+".kinds", k, KindMTLS, KindJWT, KindToken, KindLocal)
		}
		for _, r := range c.Roles {
			f.oneOf(key+".roles", r, "viewer", "operator", "auditor", "admin")
		}
		p.callers = append(p.callers, callerMatch{kinds: c.Kinds, roles: c.Roles, ids: compileAll(f, key+".ids", c.IDs, compileGlob)})
	}
}

func (p *Profile) compileSubject(f *faults) {
	s := p.Subject
	f.oneOf("subject.common_name", s.CommonName, CommonNameEmpty, CommonNameFromNames, CommonNameOptional, CommonNameRequired)
	taken := s.CommonName == CommonNameOptional || s.CommonName == CommonNameRequired
	if taken != (len(s.Allow) > 0) {
		f.add("subject.allow", "patterns are needed with common_name optional or required, and have no use with the others")
	}
	p.commonName = compileAll(f, "subject.allow", s.Allow, compileGlob)
	if len([]rune(s.Organization)) > maxOrganization || !printable(s.Organization) {
		f.add("subject.organization", "it has at most %d printable characters (X.520)", maxOrganization)
	}
	if s.Country != "" && !validCountry.MatchString(s.Country) {
		f.add("subject.country", "%q is not two capital letters (ISO 3166)", s.Country)
	}
}

func (p *Profile) compileNames(f *faults) {
	n := &p.Names
	if n.Max < 1 || n.Max > csr.MaxNames {
		f.add("names.max", "%d is not within 1 and %d", n.Max, csr.MaxNames)
	}
	if n.Min < 0 || n.Min > n.Max {
		f.add("names.min", "%d is not within 0 and max", n.Min)
	}
	p.dns = compileKind(f, "dns", &n.DNS, compileDNS)
	p.ip = compileKind(f, "ip", &n.IP, compilePrefix)
	p.uri = compileKind(f, "uri", &n.URI, compileURI)
	p.email = compileKind(f, "email", &n.Email, compileGlob)
	if n.IP.Wildcard || n.URI.Wildcard || n.Email.Wildcard {
		f.add("names", "wildcard is for DNS names only")
	}
	if len(n.DNS.Allow)+len(n.IP.Allow)+len(n.URI.Allow)+len(n.Email.Allow) == 0 && n.Min > 0 {
		f.add("names", "no kind allows a name, and min is %d", n.Min)
	}
}

func compileKind[P any](f *faults, name string, r *NameRule, compile func(string) (P, error)) kind[P] {
	key := "names." + name
	k := kind[P]{NameRule: r, name: name, allow: compileAll(f, key+".allow", r.Allow, compile)}
	f.oneOf(key+".source", r.Source, SourceCSR, SourceIdentity)
	if r.Min < 0 || r.Max < 0 || r.Max > 0 && r.Min > r.Max {
		f.add(key, "min %d and max %d contradict each other", r.Min, r.Max)
	}
	if r.Source != SourceIdentity {
		if r.Template != "" || r.Others != "" {
			f.add(key, "template and others go with source: identity")
		}
		return k
	}
	f.oneOf(key+".others", r.Others, OthersRefuse, OthersIgnore)
	if len(r.Allow) == 0 {
		f.add(key+".allow", "patterns are needed: an identity gives a name only where one allows it")
	}
	var err error
	k.template, err = compileGlob(r.Template)
	f.addErr(key+".template", err)
	if !slices.ContainsFunc(k.template, func(p part) bool { return p.kind == identity }) ||
		slices.ContainsFunc(k.template, func(p part) bool { return p.kind >= star }) {
		f.add(key+".template", "%q must hold %s and no star", r.Template, identityVariable)
	}
	return k
}

func compileAll[P any](f *faults, key string, patterns []string, compile func(string) (P, error)) []P {
	if len(patterns) > maxPatterns {
		f.add(key, "%d patterns; at most %d are allowed", len(patterns), maxPatterns)
		return nil
	}
	out := make([]P, 0, len(patterns))
	for i, s := range patterns {
		c, err := compile(s)
		f.addErr(fmt.Sprintf("%s[%d]", key, i), err)
		out = append(out, c)
	}
	return out
}

// compilePrefix reads an address or a CIDR prefix, whose host bits must be zero.
func compilePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is neither an address nor a CIDR prefix", s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has host bits; write %q", s, p.Masked())
	}
	return p, nil
}

func (p *Profile) checkLifetime(f *faults) {
	l := p.Lifetime
	switch {
	case l.Default <= 0 || l.Max <= 0:
		f.add("lifetime", "default and max are needed")
	case l.Min <= 0 || l.Min > l.Default || l.Default > l.Max:
		f.add("lifetime", "min %s, default %s and max %s are not in this order", l.Min, l.Default, l.Max)
	case l.Max.D() > maxLifetime:
		f.add("lifetime.max", "%s is more than %s", l.Max, Duration(maxLifetime))
	}
	for _, d := range []Duration{l.Default, l.Max, l.Min, l.Backdate} {
		if d.D()%time.Second != 0 {
			f.add("lifetime", "%s is not in whole seconds, in which certificates count", d)
		}
	}
	if l.Backdate < 0 || l.Backdate.D() > maxBackdate {
		f.add("lifetime.backdate", "%s is not within 0 and %s", l.Backdate, Duration(maxBackdate))
	}
	if !(l.Jitter >= 0 && l.Jitter <= maxJitter) {
		f.add("lifetime.jitter", "%v is not within 0 and %v", l.Jitter, maxJitter)
	}
}
