// Package floor is the yardstick: the least that a server in Go can do for a
// certificate or an OCSP answer over the same TLS and HTTP.
//
// Issuing: net/http, the CSR parsed and its signature checked, an in-memory P-256 key,
// x509.CreateCertificate (which checks its own signature), nothing stored, nobody
// asked. OCSP: net/http and a map from serial to a signed answer. What a real service
// reaches on a machine is best said as a share of this on the same machine.
package floor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Config says how the yardstick runs.
type Config struct {
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// Dir gets ca.pem (the root), client.pem and client.key (a client certificate from
	// it), and, with Statuses, issuer.pem and serials.txt.
	Dir string
	// Lifetime is that of the certificates issued.
	Lifetime time.Duration
	// ClientAuth requires a client certificate, as certmill's gateway does.
	ClientAuth bool
	// Plain serves HTTP without TLS, as OCSP responders do.
	Plain bool
	// Statuses is how many OCSP answers are made.
	Statuses int
}

// Server is the yardstick.
type Server struct {
	cfg      Config
	ca       *authority
	statuses *statuses
	listener net.Listener
	tls      *tls.Config
}

// authority is a self-signed CA in memory.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// Open makes the CA, the files and the listener; Close ends what Run does not.
func Open(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	var err error
	if s.ca, err = newAuthority(); err != nil {
		return nil, err
	}
	if s.statuses, err = newStatuses(ctx, s.ca, cfg.Statuses); err != nil {
		return nil, err
	}
	if err := s.writeFiles(); err != nil {
		return nil, err
	}
	if !cfg.Plain {
		if s.tls, err = s.ca.serverTLS(cfg.ClientAuth); err != nil {
			return nil, err
		}
	}
	s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	return s, err
}

// URL is the server's address.
func (s *Server) URL() string {
	if s.cfg.Plain {
		return "http://" + s.listener.Addr().String()
	}
	return "https://" + s.listener.Addr().String()
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: http.HandlerFunc(s.route), TLSConfig: s.tls,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1 alone
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = errors.Join(server.Shutdown(late), server.Close())
	})
	serve := func() error { return server.Serve(s.listener) }
	if s.tls != nil {
		serve = func() error { return server.ServeTLS(s.listener, "", "") }
	}
	err := serve()
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends a server that was not run.
func (s *Server) Close() error { return s.listener.Close() }

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v1/certificates" && r.Method == http.MethodPost:
		s.issue(w, r)
	default:
		s.statuses.serve(w, r)
	}
}

// maxCSR bounds a request body in bytes, as certmill does.
const maxCSR = 64 << 10

// issue is the whole yardstick.
func (s *Server) issue(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCSR))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	chain, err := s.ca.issue(body, s.cfg.Lifetime)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/pem-certificate-chain")
	_, _ = w.Write(chain) // a caller who is gone is nobody's failure
}

func (a *authority) issue(csr []byte, lifetime time.Duration) ([]byte, error) {
	block, _ := pem.Decode(csr)
	if block == nil {
		return nil, errors.New("not a CSR in PEM")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: req.Subject,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(lifetime),
		DNSNames: req.DNSNames, URIs: req.URIs, IPAddresses: req.IPAddresses, EmailAddresses: req.EmailAddresses,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, a.cert, req.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.pem...), nil
}

// newSerial returns 128 random bits with the top bit clear and the next set: positive,
// of 16 octets (RFC 5280 section 4.1.2.2).
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b[:]), nil
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "certmill loadtest floor"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		SubjectKeyId: id[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, err
}

// pair makes a certificate for the server or a client.
func (a *authority) pair(template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, nil, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().AddDate(0, 1, 0)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), err
}

func (a *authority) serverTLS(clientAuth bool) (*tls.Config, error) {
	certPEM, keyPEM, err := a.pair(&x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	if clientAuth {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		c.ClientCAs.AddCert(a.cert)
	}
	return c, nil
}

// writeFiles puts what clients need into Dir.
func (s *Server) writeFiles() error {
	certPEM, keyPEM, err := s.ca.pair(&x509.Certificate{
		Subject: pkix.Name{CommonName: "loadtest"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.pem": s.ca.pem, "client.pem": certPEM, "client.key": keyPEM}
	if s.cfg.Statuses > 0 {
		files["issuer.pem"], files["serials.txt"] = s.ca.pem, s.statuses.list()
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(s.cfg.Dir, name), data, 0o600); err != nil {
			return fmt.Errorf("writing what clients need: %w", err)
		}
	}
	return nil
}
