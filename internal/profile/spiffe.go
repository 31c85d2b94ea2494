package profile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/spiffe"
)

// setSPIFFEDefaults fills in what X.509-SVIDs have where a file says nothing.
func (s *Spec) setSPIFFEDefaults() {
	if len(s.SPIFFE.Paths) == 0 {
		s.SPIFFE.Paths = []string{"/**"}
	}
	uri := &s.Names.URI
	if len(uri.Allow) == 0 {
		uri.Allow = s.SPIFFE.patterns()
	}
	setDefault(&uri.Min, 1)
	setDefault(&uri.Max, 1)
	setDefault(&uri.Source, SourceIdentity)
	if uri.Source == SourceIdentity {
		setDefault(&uri.Others, OthersIgnore)
	}
	if len(s.KeyUsage) == 0 {
		s.KeyUsage = []string{"digitalSignature"}
	}
	if s.ExtendedKeyUsage == nil { // an empty list, written as such, leaves it out
		s.ExtendedKeyUsage = []string{"serverAuth", "clientAuth"}
	}
	setDefault(&s.Lifetime.Max, Duration(24*time.Hour))
	setDefault(&s.Lifetime.Default, min(Duration(time.Hour), s.Lifetime.Max))
	setDefault(&s.Revocation.Mode, RevocationNone)
}

// patterns returns the patterns of the IDs.
func (s *SPIFFE) patterns() []string {
	var all []string
	for _, domain := range s.TrustDomains {
		for _, path := range s.Paths {
			all = append(all, "spiffe://"+domain+path)
		}
	}
	return all
}

// svidUsages are the key usages of a leaf X.509-SVID (X509-SVID section 4.3):
// digitalSignature must be there, keyCertSign and cRLSign must not.
var svidUsages = []string{"digitalSignature", "keyEncipherment", "keyAgreement"}

// checkSPIFFE holds a profile of kind spiffe to the X.509-SVID standard. That cA is
// false and an empty subject makes the names critical is so in every profile.
func (p *Profile) checkSPIFFE(f *faults) {
	s := &p.SPIFFE
	if p.Kind != KindSPIFFE {
		f.oneOf("kind", p.Kind, "", KindSPIFFE)
		if len(s.TrustDomains)+len(s.Paths) > 0 {
			f.add("spiffe", "it goes with kind: spiffe")
		}
		return
	}
	if len(s.TrustDomains) == 0 {
		f.add("spiffe.trust_domains", "at least one is needed")
	}
	f.distinct("spiffe.trust_domains", s.TrustDomains)
	for i, domain := range s.TrustDomains {
		f.addErr(fmt.Sprintf("spiffe.trust_domains[%d]", i), spiffe.CheckTrustDomain(domain))
	}
	for i, path := range s.Paths {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "{}") {
			f.add(fmt.Sprintf("spiffe.paths[%d]", i), "%q does not begin with \"/\", or holds a brace", path)
		}
	}
	uri := &p.Names.URI
	if !slices.Equal(uri.Allow, s.patterns()) {
		f.add("names.uri.allow", "it is made of spiffe.trust_domains and spiffe.paths; leave it out")
	}
	if uri.Min != 1 || uri.Max != 1 {
		f.add("names.uri", "an X.509-SVID has exactly one URI name (X509-SVID section 2)")
	}
	if !slices.Contains(p.KeyUsage, "digitalSignature") || slices.ContainsFunc(p.KeyUsage, func(u string) bool { return !slices.Contains(svidUsages, u) }) {
		f.add("key_usage", "an X.509-SVID has digitalSignature, and of the others only keyEncipherment and keyAgreement (X509-SVID section 4.3)")
	}
	if n := len(p.ExtendedKeyUsage); n > 0 && (!slices.Contains(p.ExtendedKeyUsage, "serverAuth") || !slices.Contains(p.ExtendedKeyUsage, "clientAuth")) {
		f.add("extended_key_usage", "an X.509-SVID has serverAuth and clientAuth, or an empty list (X509-SVID section 4.4)")
	}
}

// checkID refuses what is not one SPIFFE ID. Whether it is an allowed one is for the
// patterns to say.
func (p *Profile) checkID(r *Request) error {
	if len(r.URIs) != 1 {
		return problem.Rejected(namesField, "spiffe_id", "profile %s needs exactly one URI name; the request has %d", p.Name, len(r.URIs))
	}
	if _, err := spiffe.Parse(r.URIs[0]); err != nil {
		return problem.Rejected(namesField, "spiffe_id", "%s", problem.From(err).Detail)
	}
	return nil
}
