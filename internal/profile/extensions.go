package profile

import (
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/certmill/certmill/internal/crldp"
)

// keyUsageBits are the bits of KeyUsage (RFC 5280 section 4.2.1.3) for end entities.
var keyUsageBits = map[string]int{
	"digitalSignature": 0, "nonRepudiation": 1, "contentCommitment": 1, "keyEncipherment": 2,
	"dataEncipherment": 3, "keyAgreement": 4, "encipherOnly": 7, "decipherOnly": 8,
}

// KeyUsageBits returns the numbers of the bits, ascending.
func (s *Spec) KeyUsageBits() []int {
	var bits []int
	for _, name := range s.KeyUsage {
		bits = append(bits, keyUsageBits[name])
	}
	slices.Sort(bits)
	return slices.Compact(bits)
}

var extKeyUsages = map[string]asn1.ObjectIdentifier{
	"serverAuth":      {1, 3, 6, 1, 5, 5, 7, 3, 1},
	"clientAuth":      {1, 3, 6, 1, 5, 5, 7, 3, 2},
	"codeSigning":     {1, 3, 6, 1, 5, 5, 7, 3, 3},
	"emailProtection": {1, 3, 6, 1, 5, 5, 7, 3, 4},
	"timeStamping":    {1, 3, 6, 1, 5, 5, 7, 3, 8},
}

// What would make a leaf speak for the CA, or for everything.
var forbiddenUsages = map[string]string{
	"1.3.6.1.5.5.7.3.9": "OCSPSigning",
	"2.5.29.37.0":       "anyExtendedKeyUsage",
}

// ExtKeyUsageOIDs returns the purposes in the order of the file.
func (s *Spec) ExtKeyUsageOIDs() []asn1.ObjectIdentifier {
	var oids []asn1.ObjectIdentifier
	for _, name := range s.ExtendedKeyUsage {
		oid, ok := extKeyUsages[name]
		if !ok {
			oid, _ = ParseOID(name) // checked at load
		}
		oids = append(oids, oid)
	}
	return oids
}

// ParseOID reads a dotted object identifier.
func ParseOID(s string) (asn1.ObjectIdentifier, error) {
	var oid asn1.ObjectIdentifier
	for arc := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(arc, 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != arc {
			return nil, fmt.Errorf("%q is not a dotted object identifier", s)
		}
		oid = append(oid, int(n))
	}
	if len(oid) < 2 || oid[0] > 2 || oid[0] < 2 && oid[1] > 39 {
		return nil, fmt.Errorf("%q is not an object identifier", s)
	}
	return oid, nil
}

// ownExtensions are those that other keys of the profile make.
var ownExtensions = map[string]string{
	"2.5.29.14": "subjectKeyIdentifier", "2.5.29.15": "key_usage", "2.5.29.17": "names", "2.5.29.19": "basicConstraints",
	"2.5.29.31": "revocation", "2.5.29.32": "policies", "2.5.29.35": "authorityKeyIdentifier",
	"2.5.29.37": "extended_key_usage", "2.5.29.56": "revocation", "1.3.6.1.5.5.7.1.1": "revocation and issuers_url",
	// What would make a leaf a CA's or a responder's certificate, or change how chains are judged.
	"2.5.29.30": "nothing (name constraints are for CAs)", "2.5.29.33": "nothing (policy mappings are for CAs)",
	"2.5.29.36": "nothing (policy constraints are for CAs)", "2.5.29.54": "nothing (inhibitAnyPolicy is for CAs)",
	"1.3.6.1.5.5.7.48.1.5": "nothing (ocsp-nocheck is for responders)",
}

func (p *Profile) checkExtensions(f *faults) {
	for i, name := range p.KeyUsage {
		if _, ok := keyUsageBits[name]; !ok {
			f.add(fmt.Sprintf("key_usage[%d]", i), "%q is not a key usage of an end entity (RFC 5280 section 4.2.1.3)", name)
		}
	}
	if len(p.KeyUsage) == 0 {
		f.add("key_usage", "at least one is needed; digitalSignature serves TLS")
	}
	f.distinct("extended_key_usage", p.ExtendedKeyUsage)
	for i, name := range p.ExtendedKeyUsage {
		key := fmt.Sprintf("extended_key_usage[%d]", i)
		if _, ok := extKeyUsages[name]; ok {
			continue
		}
		_, err := ParseOID(name)
		f.addErr(key, err)
		if what, ok := forbiddenUsages[name]; ok {
			f.add(key, "%s is not for profiles", what)
		}
	}
	f.distinct("policies", p.Policies)
	for i, oid := range p.Policies {
		_, err := ParseOID(oid)
		f.addErr(fmt.Sprintf("policies[%d]", i), err)
	}
	p.checkExtra(f)
	p.checkRevocation(f)
}

func (f *faults) distinct(key string, list []string) {
	seen := make(map[string]bool, len(list))
	for _, s := range list {
		if seen[s] {
			f.add(key, "%q stands there twice", s)
		}
		seen[s] = true
	}
}

func (p *Profile) checkExtra(f *faults) {
	seen := make(map[string]bool, len(p.ExtraExtensions))
	for i, e := range p.ExtraExtensions {
		key := fmt.Sprintf("extra_extensions[%d]", i)
		_, err := ParseOID(e.OID)
		f.addErr(key+".oid", err)
		if own, ok := ownExtensions[e.OID]; ok {
			f.add(key+".oid", "%s is made by %s", e.OID, own)
		}
		if seen[e.OID] {
			f.add(key+".oid", "%s stands there twice", e.OID)
		}
		seen[e.OID] = true
		_, err = e.DER()
		f.addErr(key+".value", err)
	}
}

// DER returns the content of the extension. It fails where Value is not the base64 of
// one DER element.
func (e *Extension) DER() ([]byte, error) {
	der, err := base64.StdEncoding.DecodeString(e.Value)
	if err != nil {
		return nil, fmt.Errorf("not base64: %w", err)
	}
	var any asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &any); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("%q does not hold one DER element", e.Value)
	}
	return der, nil
}

func (p *Profile) checkRevocation(f *faults) {
	r := p.Revocation
	f.oneOf("revocation.mode", r.Mode, RevocationOCSP, RevocationCRL, RevocationBoth, RevocationNone)
	if p.HasOCSP() != (r.OCSPURL != "") {
		f.add("revocation.ocsp_url", "it goes with mode ocsp or both, and those need it")
	}
	if p.HasCRL() != (r.CRLURL != "") {
		f.add("revocation.crl_url", "it goes with mode crl or both, and those need it")
	}
	if r.Mode == RevocationNone && p.Lifetime.Max.D() > maxUnrevocable {
		f.add("revocation.mode", "none is for lifetimes of up to %s (RFC 9608); lifetime.max is %s", Duration(maxUnrevocable), p.Lifetime.Max)
	}
	f.httpURL("revocation.ocsp_url", r.OCSPURL)
	f.httpURL("revocation.crl_url", r.CRLURL)
	if p.HasCRL() {
		f.addErr("revocation.crl_url", p.CRLPoint().Check())
	} else if r.CRLShards != 0 {
		f.add("revocation.crl_shards", "it goes with mode crl or both")
	}
	f.httpURL("issuers_url", p.IssuersURL)
}

// httpURL: relying parties fetch status over plain HTTP; over HTTPS they would need
// the status of another certificate first (RFC 5280 section 8).
func (f *faults) httpURL(key, s string) {
	if s == "" {
		return
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			f.add(key, "%q holds a character outside printable ASCII", s)
			return
		}
	}
	if u, err := url.Parse(s); err != nil || u.Scheme != "http" || u.Host == "" {
		f.add(key, "%q is not an http:// URL", s)
	}
}

// HasOCSP reports whether the profile publishes status by OCSP.
func (s *Spec) HasOCSP() bool {
	return s.Revocation.Mode == RevocationOCSP || s.Revocation.Mode == RevocationBoth
}

// CRLPoint returns where the CRLs are, for any issuer.
func (s *Spec) CRLPoint() crldp.Point {
	return crldp.Point{URL: s.Revocation.CRLURL, Shards: s.Revocation.CRLShards}
}

// HasCRL reports whether the profile publishes status by CRL.
func (s *Spec) HasCRL() bool {
	return s.Revocation.Mode == RevocationCRL || s.Revocation.Mode == RevocationBoth
}
