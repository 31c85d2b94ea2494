package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Authorize judges a peer whose chain is verified already.
type Authorize func(peer *x509.Certificate) error

// AllowURI lets peers in that have one of the URIs, a SPIFFE ID for example. A star at
// the end of one stands for any rest.
func AllowURI(allowed ...string) Authorize {
	return func(peer *x509.Certificate) error {
		for _, u := range peer.URIs {
			for _, a := range allowed {
				prefix, open := strings.CutSuffix(a, "*")
				if u.String() == a || open && strings.HasPrefix(u.String(), prefix) {
					return nil
				}
			}
		}
		return fmt.Errorf("the peer %s is not one of %q", peerName(peer), allowed)
	}
}

// AllowAny lets every peer in that has a certificate of the CA.
func AllowAny() Authorize { return func(*x509.Certificate) error { return nil } }

func peerName(peer *x509.Certificate) string {
	switch {
	case len(peer.URIs) > 0:
		return peer.URIs[0].String()
	case len(peer.DNSNames) > 0:
		return peer.DNSNames[0]
	}
	return peer.Subject.String()
}

// ServerTLS returns a server's side of TLS 1.3 that shows the certificate in use,
// demands one of the peer, verifies it by the roots of the moment and asks authorize;
// without one it lets nobody in. ClientAuth of what is returned may be lowered; a
// certificate that is shown is verified all the same.
func (i *Identity) ServerTLS(authorize Authorize) *tls.Config {
	if authorize == nil {
		authorize = func(*x509.Certificate) error { return errors.New("this server authorizes nobody") }
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.usable() },
		ClientAuth:     tls.RequireAnyClientCert, // VerifyConnection verifies
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil // ClientAuth allows it
			}
			return i.judge(cs, x509.ExtKeyUsageClientAuth, "", authorize)
		},
	}
}

// ClientTLS returns a client's side of TLS 1.3 that shows the certificate in use,
// verifies the server by the roots of the moment and asks authorize. Where authorize is
// nil the server must have the host's name, as with HTTPS.
func (i *Identity) ClientTLS(authorize Authorize) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.usable() },
		InsecureSkipVerify:   true, //nolint:gosec // VerifyConnection verifies, by the roots of the moment
		VerifyConnection: func(cs tls.ConnectionState) error {
			name := ""
			if authorize == nil {
				if name = cs.ServerName; name == "" {
					return fmt.Errorf("without a server name the peer %s cannot be judged", peerName(cs.PeerCertificates[0]))
				}
			}
			return i.judge(cs, x509.ExtKeyUsageServerAuth, name, authorize)
		},
	}
}

func (i *Identity) judge(cs tls.ConnectionState, usage x509.ExtKeyUsage, name string, authorize Authorize) error {
	if err := verify(cs, i.Bundle().Pool(), usage, name); err != nil || authorize == nil {
		return err
	}
	return authorize(cs.PeerCertificates[0])
}
