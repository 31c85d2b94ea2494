package gateway

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/spiffe"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
	istioauth "github.com/certmill/certmill/proto/istio/v1/auth"
)

// The keys of a request's metadata (istio.io/istio, pkg/security).
const (
	metadataSigner       = "CertSigner"
	metadataImpersonated = "ImpersonatedIdentity"
)

// istioServer is istio.v1.auth.IstioCertificateService, by which sidecars and ztunnel
// get their certificates.
type istioServer struct {
	istioauth.UnimplementedIstioCertificateServiceServer
	api *grpcAPI
}

// CreateCertificate issues a certificate for the caller's identity, or for one that a
// trusted node account may act for. Of the CSR only the key counts.
func (a *istioServer) CreateCertificate(ctx context.Context, in *istioauth.IstioCertificateRequest) (*istioauth.IstioCertificateResponse, error) {
	x := exchangeOf(ctx)
	s := a.api.service
	// Step 1: for whom.
	fields := in.GetMetadata().GetFields()
	caller, err := a.api.auth.meshCaller(ctx, x.caller, fields[metadataImpersonated].GetStringValue())
	if err != nil {
		return nil, err
	}
	// Step 2: by which profile, and so by which issuer.
	p, err := s.meshProfile(fields[metadataSigner].GetStringValue())
	if err != nil {
		return nil, err
	}
	x.profile = p.Name
	// Step 3: the certificate.
	request := &certmillv1.IssueRequest{Csr: []byte(in.Csr), Profile: p.Name, Lifetime: meshLifetime(p, in.ValidityDuration)}
	i, err := s.issueNamed(ctx, caller, x.requestID, request, ownIdentity)
	if err != nil {
		return nil, err
	}
	x.issued = i
	// Step 4: the chain, and the roots of the identity's trust domain.
	id, err := spiffe.Parse(caller.Identity)
	if err != nil {
		return nil, err
	}
	return &istioauth.IstioCertificateResponse{CertChain: s.meshChain(i, id.TrustDomain)}, nil
}

// meshCaller returns the caller with the identity that the certificate is to have.
// Certificates count only where they are our own, with which a workload renews: what
// else is trusted for client certificates is trusted to call, not to name workloads.
func (a *authenticator) meshCaller(ctx context.Context, c *Caller, impersonated string) (*Caller, error) {
	if c.Kind == kindMTLS && !c.Renewal {
		return nil, problem.Forbidden("caller", "own_certificate", "a mesh's certificates are renewed with certificates of this CA; this one is another CA's")
	}
	if impersonated != "" {
		return a.kubernetes.actFor(ctx, c, impersonated)
	}
	if _, err := spiffe.Parse(c.Identity); err != nil {
		return nil, problem.Forbidden("caller", "identity_kind", "the credential does not prove a SPIFFE ID")
	}
	return c, nil
}

// meshProfile returns the profile of a CertSigner; proxies that know of none send "".
func (s *service) meshProfile(signer string) (*profile.Profile, error) {
	name := s.cfg.Istio.Profile
	if signer != "" {
		name = s.cfg.Istio.CertSigners[signer]
	}
	if name == "" {
		return nil, problem.Rejected("metadata."+metadataSigner, "cert_signer", "there is no signer %.128q here", signer)
	}
	return s.profiles.Get(name)
}

// meshLifetime brings what a proxy asks for within the profile's bounds: proxies take
// their renewal from the certificate that they get, and one that is refused for its
// lifetime would have none.
func meshLifetime(p *profile.Profile, seconds int64) *durationpb.Duration {
	if seconds <= 0 {
		return nil
	}
	limit := int64(p.Lifetime.Max.D() / time.Second)
	d := time.Duration(min(seconds, limit)) * time.Second
	return durationpb.New(max(d, p.Lifetime.Min.D()))
}

// ownIdentity puts the caller's identity in the place of what a CSR asks for.
func ownIdentity(r *profile.Request) {
	r.CommonName, r.DNSNames, r.IPAddresses, r.Emails = "", nil, nil, nil
	r.URIs = []string{r.Caller.Identity}
}

// meshChain returns one PEM for each certificate of the chain, the leaf first, and all
// roots as the last element, which is how Istio's clients tell them apart.
func (s *service) meshChain(i *issued, trustDomain string) []string {
	chain := make([]string, 0, len(i.issuer.chain)+2)
	chain = append(chain, pemOf(i.result.Der))
	for _, der := range i.issuer.chain {
		chain = append(chain, pemOf(der))
	}
	var roots strings.Builder
	for _, der := range s.bundles.roots(s.issuers.current(), trustDomain, i.issuer) {
		roots.WriteString(pemOf(der))
	}
	return append(chain, roots.String())
}
