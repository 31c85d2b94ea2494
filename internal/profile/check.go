package profile

import (
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
)

// maxMetadata bounds owner, service and environment, in bytes; maxCaller the caller's id.
const (
	maxMetadata = 128
	maxCaller   = 1024
)

// Check brings r into its final form and reports whether the profile allows it: the
// default lifetime is filled in, names that come from the identity are put there, and
// the common name is settled. Doing it again changes nothing, so the signer does after
// the gateway. Errors are *problem.Error: Denied where the caller may not, Invalid
// where nobody may; both name field and rule. It does no I/O and trusts no field of r.
func (p *Profile) Check(r *Request) error {
	if err := p.checkCaller(&r.Caller); err != nil {
		return err
	}
	if err := p.checkKey(r); err != nil {
		return err
	}
	if err := p.checkNames(r); err != nil {
		return err
	}
	if err := p.checkCommonName(r); err != nil {
		return err
	}
	if err := p.checkRequestedLifetime(r); err != nil {
		return err
	}
	if err := p.checkMetadata(r); err != nil {
		return err
	}
	return p.checkRules(r)
}

func (p *Profile) checkCaller(c *Caller) error {
	if c.ID == "" || len(c.ID) > maxCaller || len(c.Identity) > maxCaller {
		return problem.Forbidden("caller", "caller_required", "the request names no caller, or one of more than %d bytes", maxCaller)
	}
	if len(p.callers) == 0 {
		return nil
	}
	for i := range p.callers {
		if p.callers[i].match(c) {
			return nil
		}
	}
	return problem.Forbidden("profile", "caller_not_allowed", "this caller may not use profile %s", p.Name)
}

func (m *callerMatch) match(c *Caller) bool {
	if len(m.kinds) > 0 && !slices.Contains(m.kinds, c.Kind) {
		return false
	}
	if len(m.roles) > 0 && !slices.ContainsFunc(m.roles, func(r string) bool { return slices.Contains(c.Roles, r) }) {
		return false
	}
	return len(m.ids) == 0 || slices.ContainsFunc(m.ids, func(g glob) bool { return g.match(c.ID, c.Identity) })
}

func (p *Profile) checkKey(r *Request) error {
	if k := csr.KeyTypeOf(r.PublicKey); !slices.Contains(p.KeyTypes, k) {
		return problem.Rejected("csr.public_key", "key_type_not_allowed", "profile %s does not take keys of type %q; it takes %q", p.Name, k, p.KeyTypes)
	}
	return nil
}

func (p *Profile) checkRequestedLifetime(r *Request) error {
	l := &p.Lifetime
	switch {
	case r.Lifetime == 0:
		r.Lifetime = l.Default.D()
	case r.Lifetime < l.Min.D():
		return problem.Rejected("lifetime", "lifetime_min", "%s is asked for; profile %s gives at least %s", r.Lifetime, p.Name, l.Min)
	case r.Lifetime > l.Max.D():
		return problem.Rejected("lifetime", "lifetime_max", "%s is asked for; profile %s gives at most %s", r.Lifetime, p.Name, l.Max)
	}
	r.Lifetime = r.Lifetime.Truncate(time.Second)
	return nil
}

func (p *Profile) checkMetadata(r *Request) error {
	if err := checkText("metadata.owner", r.Owner); err != nil {
		return err
	}
	if err := checkText("metadata.service", r.Service); err != nil {
		return err
	}
	if err := checkText("metadata.environment", r.Environment); err != nil {
		return err
	}
	for _, name := range p.RequiredMetadata {
		if name == "owner" && r.Owner == "" || name == "service" && r.Service == "" || name == "environment" && r.Environment == "" {
			return problem.Rejected("metadata."+name, "metadata_required", "profile %s needs metadata.%s", p.Name, name)
		}
	}
	return nil
}

func checkText(field, s string) error {
	if len(s) > maxMetadata {
		return problem.Rejected(field, "metadata_length", "it has %d bytes; at most %d are allowed", len(s), maxMetadata)
	}
	if !utf8.ValidString(s) {
		return problem.Rejected(field, "metadata_text", "it is not UTF-8")
	}
	if !printable(s) {
		return problem.Rejected(field, "metadata_text", "it holds an unprintable character")
	}
	return nil
}

// printable reports whether s holds characters to be seen, and blanks, alone.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}
