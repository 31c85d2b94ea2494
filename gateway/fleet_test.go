package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/client"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
	istioauth "github.com/certmill/certmill/proto/istio/v1/auth"
	"github.com/certmill/certmill/signer"
)

// sidecar is a workload that speaks Istio's contract: it sends a CSR, shows what the
// answer begins with, and trusts the last element of it.
type sidecar struct {
	*world
	name  string
	cert  tls.Certificate
	roots *x509.CertPool
	count int // of roots
}

// renew gets a certificate, trying again as Istio's agent does.
func (s *sidecar) renew(t *testing.T) {
	t.Helper()
	key := newKey(t)
	var chain []string
	eventually(t, "the sidecar gets a certificate", func() bool {
		ctx, cancel := context.WithTimeout(as(t.Context(), s.idp.token(t, s.name)), 5*time.Second)
		defer cancel()
		out, err := istioauth.NewIstioCertificateServiceClient(s.dial(t)).CreateCertificate(ctx, &istioauth.IstioCertificateRequest{
			Csr: string(armour(customCSR(t, key, &x509.CertificateRequest{}))), ValidityDuration: 60,
		})
		chain = out.GetCertChain()
		return err == nil
	})
	s.cert = tls.Certificate{PrivateKey: key}
	for _, element := range chain[:len(chain)-1] {
		s.cert.Certificate = append(s.cert.Certificate, parseChain(t, []byte(element))[0].Raw)
	}
	s.cert.Leaf = parseChain(t, []byte(chain[0]))[0]
	s.roots = x509.NewCertPool()
	roots := parseChain(t, []byte(chain[len(chain)-1]))
	for _, root := range roots {
		s.roots.AddCert(root)
	}
	s.count = len(roots)
}

func (s *sidecar) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{s.cert}, ClientCAs: s.roots, ClientAuth: tls.RequireAndVerifyClientCert}
}

// client verifies a server by its SPIFFE ID, as Envoy does.
func (s *sidecar) client(id string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{s.cert}, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			options := x509.VerifyOptions{Roots: s.roots, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				options.Intermediates.AddCert(c)
			}
			if _, err := cs.PeerCertificates[0].Verify(options); err != nil {
				return err
			}
			return client.AllowURI(id)(cs.PeerCertificates[0])
		},
	}
}

// meet makes an mTLS handshake and returns what either side says against it.
func meet(t *testing.T, server, dialer *tls.Config) error {
	t.Helper()
	listener := must(tls.Listen("tcp", "127.0.0.1:0", server))(t)
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err = conn.(*tls.Conn).Handshake(); err == nil {
			_, err = conn.Write([]byte("x"))
		}
		done <- err
	}()
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: dialer}).DialContext(t.Context(), "tcp", listener.Addr().String())
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = conn.Read(make([]byte, 1)) // a server's refusal comes after the client's handshake
		_ = conn.Close()
	} else {
		_ = listener.Close()
	}
	return errors.Join(<-done, err)
}

// Two workloads of one mesh, one by this project's client and one by Istio's contract,
// get certificates, speak with each other by mTLS, renew, and live through a restart of
// the gateway and a change of the root. Then one is revoked, and refused from then on.
// Certificates live for six seconds here, so that what they live through is a life.
func TestAMeshLivesThroughRestartAndRootChange(t *testing.T) {
	var cfg Config
	var deps Deps
	w := newWorld(t, func(c *Config, d *Deps) {
		c.Istio = Istio{Profile: "fleet"}
		cfg, deps = *c, *d
	})
	const oursID, theirsID = "spiffe://example.test/sa/ours", "spiffe://example.test/sa/theirs"
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	must0(t, os.WriteFile(token, []byte(w.idp.token(t, "ours")), 0o600))
	ours := must(client.Open(t.Context(), client.Config{
		Gateway: w.grpc, ServerName: "localhost", CAFile: w.pki.server.file(t), TokenFile: token,
	}, client.Request{Profile: "fleet"}))(t)
	defer ours.Close()
	theirs := &sidecar{world: w, name: "theirs"}
	theirs.renew(t)
	speak := func(what string) {
		t.Helper()
		if err := meet(t, ours.ServerTLS(client.AllowURI(theirsID)), theirs.client(oursID)); err != nil {
			t.Fatalf("%s: theirs to ours: %v", what, err)
		}
		if err := meet(t, theirs.server(), ours.ClientTLS(client.AllowURI(theirsID))); err != nil {
			t.Fatalf("%s: ours to theirs: %v", what, err)
		}
	}
	renewed := func(what string) {
		t.Helper()
		before := ours.Certificate().Serial
		eventually(t, what+": ours renews", func() bool { return ours.Certificate().Serial != before })
		theirs.renew(t)
		speak(what)
	}
	speak("at first")
	renewed("renewed")

	// The gateway is gone for a while, and with it the certificates' renewal.
	must0(t, w.stop())
	speak("without a gateway")
	cfg.Listen, cfg.GRPCListen = w.https, w.grpc
	deps.Registry = prometheus.NewRegistry()
	before := ours.Certificate().Serial
	eventually(t, "ours misses the gateway", func() bool { return ours.Err() != nil })
	w.gateway = must(New(cfg, deps))(t)
	w.run(t.Context())
	eventually(t, "ours has renewed after the restart", func() bool { return ours.Certificate().Serial != before && ours.Err() == nil })
	theirs.renew(t)
	speak("after the restart")

	// A new root: first it is trusted, then it is used.
	root := newAuthority(t, "certmill test root 2", nil)
	issuing := newAuthority(t, "certmill test issuing 2", root)
	row := ledger.Issuer{Name: "issuing", State: ledger.IssuerRetired, DER: issuing.cert.Raw, Chain: [][]byte{root.cert.Raw}, KeyURI: "pkcs11:object=issuing2"}
	row.ID = must(w.book.PutIssuer(t.Context(), row))(t)
	eventually(t, "ours trusts both roots", func() bool { return len(ours.Bundle().Roots) == 2 })
	theirs.renew(t)
	if theirs.count != 2 {
		t.Errorf("a sidecar is given %d roots", theirs.count)
	}
	speak("both roots are trusted")
	row.State = ledger.IssuerActive
	must(w.book.PutIssuer(t.Context(), row))(t)
	w.signer.replace(t, w.book, row, issuing.key)
	eventually(t, "ours is under the new root", func() bool { return under(ours.Certificate().Leaf(), issuing) })
	speak("one under each root")
	theirs.renew(t)
	if !under(theirs.cert.Leaf, issuing) {
		t.Error("the sidecar is still under the old root")
	}
	speak("both under the new root")

	// Ours is revoked. With the token gone it has nothing but the certificate.
	must0(t, os.Remove(token))
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
	eventually(t, "ours is refused", func() bool { // it may renew between the two: then that one is revoked
		_, err := ca.Revoke(as(t.Context(), w.idp.token(t, "operator")), &certmillv1.RevokeRequest{Serial: ours.Certificate().Serial, Reason: certmillv1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE})
		return err == nil && errors.Is(ours.Err(), &client.Error{Kind: client.Unauthenticated, Rule: "revoked"})
	})
	last := ours.Certificate()
	eventually(t, "the revoked certificate ends", func() bool { return time.Now().After(last.Leaf().NotAfter) })
	theirs.renew(t)
	if err := meet(t, theirs.server(), ours.ClientTLS(client.AllowURI(theirsID))); err == nil || ours.Certificate().Serial != last.Serial {
		t.Error("who was revoked is still let in")
	}
}

func under(leaf *x509.Certificate, a *authority) bool { return leaf.CheckSignatureFrom(a.cert) == nil }

// replace has the signer sign by another generation of its issuer.
func (s *softSigner) replace(t testing.TB, book *ledger.Ledger, row ledger.Issuer, key *ecdsa.PrivateKey) {
	t.Helper()
	profiles := must(profile.LoadDir("testdata/profiles"))(t)
	prep := must(signer.NewPreparer(signer.PreparerConfig{Issuer: row, Public: key.Public(), Profiles: profiles}))(t)
	epoch := must(book.StartEpoch(t.Context(), ledger.Epoch{Signer: "test", Issuer: row.ID, Token: "software 2"}))(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prep, s.key, s.epoch = prep, key, epoch
}
