package ceremony

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/spiffe"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// Mesh is the kind of mesh that an intermediate is for.
type Mesh string

// The meshes. istiod signs workloads with its intermediate; a SPIRE server signs, with
// the key of its disk UpstreamAuthority, a CA of its own that signs workloads, so that
// its intermediate needs a path length of 1.
const (
	Istio Mesh = "istio"
	SPIRE Mesh = "spire"
)

// pathLength is how many CAs may stand between the intermediate and a workload.
func (m Mesh) pathLength() int {
	if m == SPIRE {
		return 1
	}
	return 0
}

// maxIntermediate is the longest life of an intermediate. Its key lies in a file and
// not in an HSM.
const maxIntermediate = 365 * day

// IntermediateSpec says what a mesh's intermediate may sign, and for how long.
type IntermediateSpec struct {
	Mesh Mesh
	// TrustDomains are the SPIFFE trust domains of the workloads; no URI of another host
	// can be signed.
	TrustDomains []string
	// DNSDomains are the domains under which DNS names can be signed; empty: no DNS name.
	DNSDomains []string
	// CommonName begins the subject's; eight digits of the key's identifier follow.
	CommonName string
	// Lifetime is 1h to 365d.
	Lifetime profile.Duration
}

// Validate returns every error, joined.
func (s IntermediateSpec) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Mesh != Istio && s.Mesh != SPIRE {
		bad("mesh: %q is neither %s nor %s", s.Mesh, Istio, SPIRE)
	}
	if len(s.TrustDomains) == 0 {
		bad("trust domain: at least one is needed; without a constraint it could sign for all")
	}
	for _, d := range s.TrustDomains {
		// A constraint is a host of RFC 5280 section 4.2.1.10, in which "_" is none's.
		if spiffe.CheckTrustDomain(d) != nil || csr.CheckDNS(d) != nil {
			bad("trust domain: %q is not one that a name constraint can hold", d)
		}
	}
	for _, d := range s.DNSDomains {
		if csr.CheckDNS(d) != nil || strings.HasPrefix(d, "*") {
			bad("DNS domain: %q is not a domain", d)
		}
	}
	if n := len([]rune(s.CommonName)); n == 0 || n > 64-9 {
		bad("common name: must have 1 to 55 characters")
	}
	if s.Lifetime.D() < time.Hour || s.Lifetime.D() > maxIntermediate {
		bad("lifetime: must be 1h to %s", profile.Duration(maxIntermediate))
	}
	return errors.Join(errs...)
}

// version names the spec, as a profile's version does.
func (s IntermediateSpec) version() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []any{s.Mesh, s.TrustDomains, s.DNSDomains, s.CommonName, s.Lifetime}))
	return hex.EncodeToString(sum[:6])
}

// IntermediateBook keeps intermediates: among the certificates, with who approved them.
type IntermediateBook interface {
	Registrar
	AppendAudit(ctx context.Context, e ledger.AuditEntry) (ledger.AuditEntry, error)
}

// Intermediate is what a mesh gets.
type Intermediate struct {
	Certificate *x509.Certificate
	Root        *x509.Certificate
	// Duplicate says that the same request was approved before and had this certificate.
	Duplicate bool

	root   *CA
	detail string // what was approved, and by whom
}

// intermediateReuse is how long a repeated approval yields the same certificate.
const intermediateReuse = 24 * time.Hour

// SignIntermediate has the root sign an intermediate for the key of a request that actor
// has approved. Of the request only the key counts. The approval is in the audit trail
// before anything is signed, the certificate in the ledger before it is returned. It
// fails where the root allows no such CA below it.
func SignIntermediate(ctx context.Context, spec Spec, in IntermediateSpec, request *csr.Request, actor string, token *hsm.Token, book IntermediateBook, deps Deps) (*Intermediate, error) {
	if err := errors.Join(spec.Validate(), in.Validate()); err != nil {
		return nil, err
	}
	c := &ceremony{Deps: deps.withDefaults(), spec: spec, token: token, book: book}
	root, err := c.registered(ctx, spec.Root.Name)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, problem.New(problem.NotFound, "the ledger has no root %q; make it with \"certmill ca init\"", spec.Root.Name)
	}
	if below := root.Certificate.MaxPathLen; below >= 0 && below < in.Mesh.pathLength()+1 {
		return nil, problem.Rejected("mesh", "path_length", "the root allows %d CA below each other and %s needs %d: make a root with path_length %[3]d", below, in.Mesh, in.Mesh.pathLength()+1)
	}
	key := ledger.NewRequestKey("intermediate", string(request.SHA256[:]), in.version())
	digest := hex.EncodeToString(request.SHA256[:])
	detail := fmt.Sprintf("mesh %s, trust domains %q, DNS domains %q, lifetime %s", in.Mesh, in.TrustDomains, in.DNSDomains, in.Lifetime)
	_, err = book.AppendAudit(ctx, ledger.AuditEntry{Actor: actor, Action: "intermediate.approve", Subject: digest, Detail: detail})
	if err != nil {
		return nil, fmt.Errorf("recording the approval: %w", err)
	}
	cert, err := c.issueFor(ctx, root, in, request)
	if err != nil {
		return nil, err
	}
	number, err := serial.FromBig(cert.SerialNumber)
	if err != nil {
		return nil, err
	}
	row := ledger.Certificate{
		Serial: number, Issuer: root.Issuer.ID, Profile: "intermediate", ProfileVersion: in.version(), Names: []string{},
		SPKI: sha256.Sum256(request.SPKI), Caller: actor, Service: string(in.Mesh),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, DER: cert.Raw,
	}
	if len(cert.CRLDistributionPoints) > 0 {
		row.Revocation = ledger.RevocationCRL
	}
	result := book.CommitBatch(ctx, []ledger.Entry{{Certificate: row, RequestKey: key, CSR: request.SHA256, ReuseUntil: c.Now().Add(intermediateReuse)}})[0]
	if result.Err != nil {
		return nil, fmt.Errorf("committing the intermediate: %w", result.Err)
	}
	if cert, err = x509.ParseCertificate(result.Certificate.DER); err != nil {
		return nil, fmt.Errorf("the ledger's certificate: %w", err)
	}
	return &Intermediate{Certificate: cert, Root: root.Certificate, Duplicate: result.Duplicate, root: root, detail: "approved by " + actor + ": request " + digest + ", " + detail}, nil
}

// issueFor signs for the request's key.
func (c *ceremony) issueFor(ctx context.Context, root *CA, in IntermediateSpec, r *csr.Request) (*x509.Certificate, error) {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: in.CommonName, Organization: root.Certificate.Subject.Organization, Country: root.Certificate.Subject.Country},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: in.Mesh.pathLength(), MaxPathLenZero: in.Mesh.pathLength() == 0,
	}
	if c.spec.Issuing.IssuersURL != "" {
		t.IssuingCertificateURL = []string{c.spec.Issuing.IssuersURL}
	}
	if c.spec.Issuing.CRLURL != "" {
		t.CRLDistributionPoints = []string{c.spec.Issuing.CRLURL}
	}
	constrain(t, in)
	return c.issue(ctx, request{template: t, public: r.PublicKey, signer: root, issuer: root.Issuer.ID, lifetime: in.Lifetime.D()})
}

// constrain adds name constraints (RFC 5280 section 4.2.1.10). A kind of name that no
// constraint speaks of is unconstrained, so what a mesh does not need is excluded whole.
func constrain(t *x509.Certificate, in IntermediateSpec) {
	t.PermittedDNSDomainsCritical = true // all of the extension
	t.PermittedURIDomains = slices.Clone(in.TrustDomains)
	for _, d := range in.TrustDomains {
		// A host stands for itself alone by the RFC, and for what is below it by crypto/x509.
		sub := "." + d
		if !slices.ContainsFunc(in.TrustDomains, func(other string) bool { return strings.HasSuffix(other, sub) }) {
			t.ExcludedURIDomains = append(t.ExcludedURIDomains, sub)
		}
	}
	if len(in.DNSDomains) > 0 {
		t.PermittedDNSDomains = slices.Clone(in.DNSDomains)
	} else {
		t.ExcludedDNSDomains = []string{""}
	}
	// An excluded "" is every host to crypto/x509 and none to OpenSSL; a host that cannot
	// be (RFC 2606) as the only one permitted is the same to both.
	t.PermittedEmailAddresses = []string{"invalid"}
	t.ExcludedIPRanges = []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}
