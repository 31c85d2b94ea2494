// Package profile is what a certificate may be: the YAML files that operators write,
// and the one check that gateway and signer both put every request through.
//
// A Profile is immutable once loaded, and Check does no I/O, so that the signer can
// enforce again what the gateway has allowed, on every request, for a few microseconds.
package profile

import "github.com/certmill/certmill/internal/csr"

// Spec is a profile as its YAML file states it. Unknown keys are errors.
type Spec struct {
	// Name is what requests call the profile: 1–63 of a–z, 0–9 and "-". The file is
	// called <name>.yaml.
	Name string `yaml:"name" json:"name"`
	// Description says to people what the profile is for.
	Description string `yaml:"description" json:"description"`
	// Issuer names the issuing CA, as "certmill ca show" lists it.
	Issuer string `yaml:"issuer" json:"issuer"`
	// Issuers names several issuing CAs instead of one: each issues its share of the
	// certificates, and the others do its work while none of its signers can. A request
	// and its repetitions go to the same one. Relying parties must trust the roots of all.
	Issuers []WeightedIssuer `yaml:"issuers" json:"issuers,omitempty"`
	// Kind is empty, or spiffe for X.509-SVIDs, the certificates of SPIFFE identities:
	// exactly one URI name, which is a SPIFFE ID of the section spiffe, and nothing that
	// the X.509-SVID standard forbids. What it leaves open has other defaults: the ID is
	// the caller's (names.uri.source: identity, others: ignore), key_usage
	// digitalSignature, extended_key_usage serverAuth and clientAuth, a lifetime of 1h and
	// at most 24h, revocation.mode none.
	Kind string `yaml:"kind" json:"kind,omitempty"`
	// SPIFFE says which identities a profile of kind spiffe is for.
	SPIFFE SPIFFE `yaml:"spiffe" json:"spiffe,omitzero"`
	// KeyTypes are the subject keys allowed: ecdsa-p256, ecdsa-p384, ed25519,
	// rsa-2048, rsa-3072, rsa-4096.
	KeyTypes []csr.KeyType `yaml:"key_types" json:"key_types"`
	// Callers says who may use the profile; one entry that fits is enough. Empty means
	// every authenticated caller.
	Callers []CallerRule `yaml:"callers" json:"callers"`
	// Subject says what stands in the certificate's subject.
	Subject Subject `yaml:"subject" json:"subject"`
	// Names says which subject alternative names are allowed.
	Names Names `yaml:"names" json:"names"`
	// Lifetime bounds the validity.
	Lifetime Lifetime `yaml:"lifetime" json:"lifetime"`
	// KeyUsage lists bits by their names of RFC 5280 section 4.2.1.3, for example
	// digitalSignature. keyCertSign and cRLSign are refused.
	KeyUsage []string `yaml:"key_usage" json:"key_usage"`
	// ExtendedKeyUsage lists purposes by their names of RFC 5280 section 4.2.1.12
	// (serverAuth, clientAuth, codeSigning, emailProtection, timeStamping) or as dotted
	// OIDs. OCSPSigning and anyExtendedKeyUsage are refused.
	ExtendedKeyUsage []string `yaml:"extended_key_usage" json:"extended_key_usage"`
	// Policies lists certificate policy OIDs (RFC 5280 section 4.2.1.4).
	Policies []string `yaml:"policies" json:"policies"`
	// Revocation says how the certificate's status is published.
	Revocation Revocation `yaml:"revocation" json:"revocation"`
	// IssuersURL is where the issuer's certificate can be fetched (AIA caIssuers). {issuer}
	// becomes the issuer's name and generation; with several issuers it is needed.
	IssuersURL string `yaml:"issuers_url" json:"issuers_url"`
	// CrossCertificates are certificates in PEM for the keys of the profile's issuers, or of
	// their roots, by other CAs, as "certmill ca init" makes them. They are delivered behind
	// the chain of what those issue, so that who trusts the other CA alone gets to it too.
	CrossCertificates string `yaml:"cross_certificates" json:"cross_certificates,omitempty"`
	// ExtraExtensions are put into every certificate as they stand here.
	ExtraExtensions []Extension `yaml:"extra_extensions" json:"extra_extensions"`
	// RequiredMetadata lists what a request must bring: owner, service, environment.
	RequiredMetadata []string `yaml:"required_metadata" json:"required_metadata"`
	// Rules are CEL conditions that must all hold.
	Rules []Rule `yaml:"rules" json:"rules"`
	// Lint says how certificates are linted.
	Lint Lint `yaml:"lint" json:"lint"`
}

// KindSPIFFE is the value of Spec.Kind for X.509-SVIDs.
const KindSPIFFE = "spiffe"

// SPIFFE says which SPIFFE IDs a profile is for: each trust domain with each path. It
// makes names.uri.allow, which must be left out.
type SPIFFE struct {
	// TrustDomains lists the trust domains, for example cluster.local. The gateway
	// publishes the bundle of each.
	TrustDomains []string `yaml:"trust_domains" json:"trust_domains"`
	// Paths lists patterns of the ID's path: "*" stands for any characters but "/", "**"
	// for any. Default: "/**". Istio's service accounts are "/ns/*/sa/*".
	Paths []string `yaml:"paths" json:"paths"`
}

// WeightedIssuer is one of several issuing CAs of a profile.
type WeightedIssuer struct {
	// Name is the issuing CA's, as "certmill ca show" lists it.
	Name string `yaml:"name" json:"name"`
	// Weight is the CA's part of the certificates, against the sum of all weights: 1 to
	// 1000; default 1.
	Weight int `yaml:"weight" json:"weight"`
}

// CallerRule fits a caller that meets each of its lists that is not empty.
type CallerRule struct {
	// Kinds are mtls, jwt, token, and local for an operator at the signer's own machine.
	Kinds []string `yaml:"kinds" json:"kinds"`
	// IDs are patterns over the caller's id: "*" stands for any characters but "/", "?"
	// and "#", "**" for any characters.
	IDs []string `yaml:"ids" json:"ids"`
	// Roles are operator roles, of which the caller must have one: viewer, operator,
	// auditor, admin.
	Roles []string `yaml:"roles" json:"roles"`
}

// The kinds of caller.
const (
	KindMTLS  = "mtls"
	KindJWT   = "jwt"
	KindToken = "token"
	// KindLocal is a person who runs certmill where the HSM's PIN is.
	KindLocal = "local"
)

// Values of Subject.CommonName.
const (
	CommonNameEmpty     = "empty"
	CommonNameFromNames = "from_names"
	CommonNameOptional  = "optional"
	CommonNameRequired  = "required"
)

// Subject says what stands in the subject. Other attributes of a CSR's subject are
// never taken over.
type Subject struct {
	// CommonName is
	//   empty       there is none, and a CSR's is ignored (default);
	//   from_names  the CSR's, which must be one of its names, else its first DNS name
	//               of up to 64 characters, else its first address, else none;
	//   optional    the CSR's, if it has one;
	//   required    the CSR's, which must have one.
	CommonName string `yaml:"common_name" json:"common_name"`
	// Allow lists patterns for optional and required: "*" stands for any characters but
	// "/", "?" and "#", "**" for any characters, {caller.identity} for what the caller
	// proves to be.
	Allow []string `yaml:"allow" json:"allow"`
	// Organization stands in the subject of every certificate; empty leaves it out.
	Organization string `yaml:"organization" json:"organization,omitempty"`
	// Country, two capital letters, stands in the subject of every certificate.
	Country string `yaml:"country" json:"country,omitempty"`
}

// Names says which subject alternative names are allowed. A kind whose allow list is
// empty is not allowed at all.
type Names struct {
	// Max bounds the names of all kinds together; default 100, which is also the most.
	Max int `yaml:"max" json:"max"`
	// Min is the least number of names of all kinds together; default 1, and 0 where
	// subject.common_name is required.
	Min int `yaml:"min" json:"min"`
	// DNS patterns: "a.example.test" is itself, "*.example.test" any one label before
	// it, "**.example.test" one or more; "**" alone is every name.
	DNS NameRule `yaml:"dns" json:"dns"`
	// IP patterns are addresses and CIDR prefixes.
	IP NameRule `yaml:"ip" json:"ip"`
	// URI patterns: "*" stands for any characters but "/", "?" and "#", "**" for any
	// characters, in the path only.
	URI NameRule `yaml:"uri" json:"uri"`
	// Email patterns: as for URI; "*@example.test" is every mailbox of a domain.
	Email NameRule `yaml:"email" json:"email"`
}

// Values of NameRule.Source and NameRule.Others.
const (
	SourceCSR      = "csr"
	SourceIdentity = "identity"
	OthersRefuse   = "refuse"
	OthersIgnore   = "ignore"
)

// NameRule is the rule for one kind of name.
type NameRule struct {
	// Allow lists the patterns, of which one must fit each name. {caller.identity}
	// stands for what the caller proves to be, character by character; where a pattern
	// does not start with it, it fits only if it is letters, digits, ".", "-" and "_".
	Allow []string `yaml:"allow" json:"allow"`
	// Source is csr (default): the names are those asked for; or identity: there is one
	// name, Template, and the CSR need not ask for it.
	Source string `yaml:"source" json:"source"`
	// Template makes the name where Source is identity; default {caller.identity}.
	Template string `yaml:"template" json:"template"`
	// Others is what happens to other names of a CSR where Source is identity: refuse
	// (default) or ignore.
	Others string `yaml:"others" json:"others"`
	// Wildcard allows DNS names whose first label is "*".
	Wildcard bool `yaml:"wildcard" json:"wildcard"`
	// Min and Max bound the names of this kind; Max 0 means no bound but that of all.
	Min int `yaml:"min" json:"min"`
	Max int `yaml:"max" json:"max"`
}

// Lifetime bounds the validity. A lifetime counts from the time of issue and leaves
// the backdate out. Units: s, m, h and d (24 h), for example 90d or 1h30m.
type Lifetime struct {
	// Default is for requests that ask for none.
	Default Duration `yaml:"default" json:"default"`
	// Max and Min bound what may be asked for. The end of the issuing certificate
	// bounds every certificate as well.
	Max Duration `yaml:"max" json:"max"`
	Min Duration `yaml:"min" json:"min"`
	// Backdate puts notBefore into the past, for relying parties whose clocks are late;
	// default 2m.
	Backdate Duration `yaml:"backdate" json:"backdate"`
	// Jitter is the share of the lifetime, 0 to 0.5, that may be taken off at random,
	// so that certificates issued together do not expire, and are not renewed, together.
	Jitter float64 `yaml:"jitter" json:"jitter"`
}

// Values of Revocation.Mode.
const (
	RevocationOCSP = "ocsp"
	RevocationCRL  = "crl"
	RevocationBoth = "both"
	RevocationNone = "none"
)

// Revocation says how the certificate's status is published.
type Revocation struct {
	// Mode is ocsp, crl, both, or none. none puts noRevAvail (RFC 9608) into the
	// certificate and is for lifetimes of up to 7d.
	Mode string `yaml:"mode" json:"mode"`
	// OCSPURL is where responders answer (AIA).
	OCSPURL string `yaml:"ocsp_url" json:"ocsp_url"`
	// CRLURL is where the CRL is fetched (CRL distribution point), ending in .crl.
	// {issuer} becomes the issuer's name and generation, which have CRLs of their own,
	// {shard} the certificate's shard: http://crl.example.com/{issuer}/{shard}.crl.
	CRLURL string `yaml:"crl_url" json:"crl_url"`
	// CRLShards is over how many CRLs the certificates are spread by their serials: a
	// power of two up to 4096; default 1. A relying party fetches one of them. It may be
	// changed at any time: certificates stay with the CRL that they name.
	CRLShards int `yaml:"crl_shards" json:"crl_shards"`
}

// Extension is a fixed extension.
type Extension struct {
	// OID is dotted. Extensions that other keys of the profile make are refused here.
	OID string `yaml:"oid" json:"oid"`
	// Critical marks it critical.
	Critical bool `yaml:"critical" json:"critical"`
	// Value is the DER of the extension's content, in base64. MAMCAQU= under OID
	// 1.3.6.1.5.5.7.1.24 is OCSP must-staple (RFC 7633).
	Value string `yaml:"value" json:"value"`
}

// Rule is one condition in CEL (cel.dev). Variables:
//
//	caller.id, caller.kind, caller.identity   string
//	caller.roles                              list of string
//	request.common_name, request.key_type,
//	request.owner, request.service,
//	request.environment                       string
//	request.dns_names, request.ip_addresses,
//	request.uris, request.emails              list of string
//	request.lifetime                          duration
type Rule struct {
	// Name is a stable word for the rule; it is part of the answer to a caller.
	Name string `yaml:"name" json:"name"`
	// Expr must be true; for example request.dns_names.all(n, n.endsWith(caller.identity)).
	Expr string `yaml:"expr" json:"expr"`
	// Message says to the caller what is wrong where it is not.
	Message string `yaml:"message" json:"message"`
}

// Lint says how certificates are linted. A certificate with an error of a lint that
// applies is not signed, and neither is a profile loaded whose samples have one.
type Lint struct {
	// Sources are zlint's sources; default: the RFCs and Community. Add CABF_BR for
	// certificates that public relying parties are to trust. An empty list, [], switches
	// linting off.
	Sources []string `yaml:"sources" json:"sources"`
	// Ignore lists lints by name. Say beside each why.
	Ignore []string `yaml:"ignore" json:"ignore"`
}
