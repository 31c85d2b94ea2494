package gateway

import (
	"bytes"
	"crypto/x509"
	"slices"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
)

// held is a valid certificate of our own that a caller has shown. It is immutable.
type held struct {
	leaf *x509.Certificate
	uris []string
	ips  []string
}

func newHeld(leaf *x509.Certificate) *held {
	h := &held{leaf: leaf}
	for _, u := range leaf.URIs {
		h.uris = append(h.uris, u.String())
	}
	for _, a := range leaf.IPAddresses {
		h.ips = append(h.ips, a.String())
	}
	return h
}

// covers reports whether the certificate serves already for what is asked: it has every
// name of the request, or is for the same key.
func (h *held) covers(r *profile.Request) bool {
	if bytes.Equal(h.leaf.RawSubjectPublicKeyInfo, r.SPKI) {
		return true
	}
	if len(r.DNSNames)+len(r.IPAddresses)+len(r.URIs)+len(r.Emails) == 0 {
		return r.CommonName != "" && r.CommonName == h.leaf.Subject.CommonName
	}
	for _, a := range r.IPAddresses {
		if !slices.Contains(h.ips, a.String()) {
			return false
		}
	}
	return within(r.DNSNames, h.leaf.DNSNames) && within(r.URIs, h.uris) && within(r.Emails, h.leaf.EmailAddresses)
}

func within(asked, has []string) bool {
	for _, n := range asked {
		if !slices.Contains(has, n) {
			return false
		}
	}
	return true
}

// priority lets a workload that has nothing go before one that renews in good time. r
// has passed its profile, so its names are those of the certificate to be.
func (c *Caller) priority(r *profile.Request) queue.Priority {
	if c.held != nil && c.held.covers(r) {
		return queue.Renewal
	}
	return queue.First
}
