package profile

import (
	"crypto"
	"net/netip"
	"time"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// Caller is who asks, as authenticated.
type Caller struct {
	// ID is stable and unique over all kinds.
	ID string
	// Kind is one of KindMTLS, KindJWT, KindToken, KindLocal.
	Kind string
	// Identity is the name that the credential proves: a SPIFFE ID, a DNS name, a subject.
	Identity string
	Roles    []string
}

// Request is what Check judges and what becomes a certificate. SPKI and PublicKey must
// be the same key: take both from csr.Parse, csr.ParseKey or FromQueue.
type Request struct {
	// Profile names the profile.
	Profile     string
	Caller      Caller
	CommonName  string
	DNSNames    []string
	IPAddresses []netip.Addr
	URIs        []string
	Emails      []string
	SPKI        []byte
	PublicKey   crypto.PublicKey
	// Lifetime is what is asked for; 0 means the profile's default. Whole seconds.
	Lifetime    time.Duration
	Owner       string
	Service     string
	Environment string
}

// FromCSR returns the request for a parsed CSR; the caller fills in the rest. It shares
// c's slices, which Check may replace but never changes.
func FromCSR(c *csr.Request) *Request {
	return &Request{
		CommonName: c.CommonName, DNSNames: c.DNSNames, IPAddresses: c.IPAddresses, URIs: c.URIs, Emails: c.Emails,
		SPKI: c.SPKI, PublicKey: c.PublicKey,
	}
}

// ToQueue writes the request into m, all but the issuer, which the profile knows. It
// shares r's slices.
func (r *Request) ToQueue(m *queuev1.SignRequest) {
	m.Profile = r.Profile
	m.CommonName, m.DnsNames, m.Uris, m.Emails = r.CommonName, r.DNSNames, r.URIs, r.Emails
	m.IpAddresses = nil
	for _, a := range r.IPAddresses {
		m.IpAddresses = append(m.IpAddresses, a.AsSlice())
	}
	m.Spki = r.SPKI
	m.LifetimeSeconds = uint32(r.Lifetime / time.Second)
	m.Owner, m.Service, m.Environment = r.Owner, r.Service, r.Environment
	m.Caller = &queuev1.Caller{Id: r.Caller.ID, Kind: r.Caller.Kind, Identity: r.Caller.Identity, Roles: r.Caller.Roles}
}

// FromQueue reads a request from the queue, trusting nothing: the key is parsed again,
// and Check judges the rest. It shares m's slices. Errors are *problem.Error.
func FromQueue(m *queuev1.SignRequest) (*Request, error) {
	if m.GetCaller().GetId() == "" {
		return nil, problem.Rejected("caller", "caller_required", "the request names no caller")
	}
	public, _, err := csr.ParseKey(m.Spki)
	if err != nil {
		return nil, err
	}
	r := &Request{
		Profile:    m.Profile,
		Caller:     Caller{ID: m.Caller.Id, Kind: m.Caller.Kind, Identity: m.Caller.Identity, Roles: m.Caller.Roles},
		CommonName: m.CommonName, DNSNames: m.DnsNames, URIs: m.Uris, Emails: m.Emails,
		SPKI: m.Spki, PublicKey: public,
		Lifetime: time.Duration(m.LifetimeSeconds) * time.Second,
		Owner:    m.Owner, Service: m.Service, Environment: m.Environment,
	}
	if len(m.IpAddresses) > csr.MaxNames {
		return nil, problem.Rejected("csr.names", "names_max", "the request has %d addresses; at most %d names are allowed", len(m.IpAddresses), csr.MaxNames)
	}
	for _, b := range m.IpAddresses {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, problem.Rejected("csr.names", "ip_length", "an IP address has 4 or 16 bytes, not %d", len(b))
		}
		r.IPAddresses = append(r.IPAddresses, a)
	}
	return r, nil
}
