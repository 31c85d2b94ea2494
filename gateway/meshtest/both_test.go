package meshtest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/certmill/certmill/client"
)

// fleetProfile issues what lives for seconds, so that a test sees renewals.
const fleetProfile = `name: fleet
description: identities that live for seconds
issuer: issuing
kind: spiffe
spiffe:
  trust_domains: [cluster.local]
key_types: [ecdsa-p256]
lifetime: {default: 20s, max: 1h, min: 5s, backdate: 1s}
`

// workload is one whose certificates Istio's client gets.
type workload struct {
	id    string
	cert  tls.Certificate
	roots *x509.CertPool
}

func (w *workload) get(t *testing.T, s *service) {
	t.Helper()
	request, key := csr(t, w.id)
	chain, err := s.agent(t, s.grpc, s.token(t, "shop", "theirs", time.Hour)).CSRSign(request, 600)
	if err != nil {
		t.Fatal(err)
	}
	judge(t, chain, w.id, 1)
	if w.cert, err = tls.X509KeyPair([]byte(chain[0]+chain[1]), key); err != nil {
		t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	for _, root := range certificates(t, chain[len(chain)-1]) {
		w.roots.AddCert(root)
	}
}

// server demands a certificate of the mesh; client wants a peer of the name, as Envoy does.
func (w *workload) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{w.cert}, ClientCAs: w.roots, ClientAuth: tls.RequireAndVerifyClientCert}
}

func (w *workload) client(peer string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{w.cert}, InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
		options := x509.VerifyOptions{Roots: w.roots, Intermediates: x509.NewCertPool()}
		for _, c := range cs.PeerCertificates[1:] {
			options.Intermediates.AddCert(c)
		}
		if _, err := cs.PeerCertificates[0].Verify(options); err != nil {
			return err
		}
		return client.AllowURI(peer)(cs.PeerCertificates[0])
	}}
}

// meet makes an mTLS handshake and returns what either side says against it.
func meet(t *testing.T, server, dialer *tls.Config) error {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = conn.Write([]byte("x")) // handshakes first
			_ = conn.Close()
		}
		done <- err
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", listener.Addr().String(), dialer)
	if err == nil {
		_, err = conn.Read(make([]byte, 1)) // a server's refusal comes after the client's handshake
		_ = conn.Close()
	} else {
		_ = listener.Close()
	}
	return errors.Join(err, <-done)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 90 s: %s", what)
}

// Two workloads of one mesh, one by Istio's own client and one by this project's, speak
// with each other by mTLS, renew, and live through the death of the gateway. Then one is
// revoked, and refused from then on. The change of a root under both is tried in
// gateway/fleet_test.go.
func TestIstiosClientAndOursSpeakWithEachOther(t *testing.T) {
	s := shared
	g := s.gateway(t)
	const oursID, theirsID = "spiffe://cluster.local/ns/shop/sa/ours", "spiffe://cluster.local/ns/shop/sa/theirs"
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(s.token(t, "shop", "ours", time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	ours, err := client.Open(t.Context(), client.Config{Gateway: s.grpc, ServerName: "localhost", CAFile: s.data("root.pem"), TokenFile: token}, client.Request{Profile: "fleet"})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs := &workload{id: theirsID}
	theirs.get(t, s)
	speak := func(what string) {
		t.Helper()
		if err := meet(t, ours.ServerTLS(client.AllowURI(theirsID)), theirs.client(oursID)); err != nil {
			t.Fatalf("%s: theirs to ours: %v", what, err)
		}
		if err := meet(t, theirs.server(), ours.ClientTLS(client.AllowURI(theirsID))); err != nil {
			t.Fatalf("%s: ours to theirs: %v", what, err)
		}
	}
	speak("at first")
	first := ours.Certificate().Serial
	until(t, "ours renews", func() bool { return ours.Certificate().Serial != first })
	theirs.get(t, s)
	speak("renewed")

	g.kill()
	speak("without a gateway")
	second := ours.Certificate().Serial
	until(t, "ours misses the gateway", func() bool { return ours.Err() != nil })
	s.gateway(t)
	until(t, "ours renews after the restart", func() bool { return ours.Certificate().Serial != second && ours.Err() == nil })
	theirs.get(t, s)
	speak("after the restart")

	if err := os.Remove(token); err != nil { // the certificate is all that ours has
		t.Fatal(err)
	}
	until(t, "ours is refused", func() bool { // what it has renewed meanwhile is revoked too
		revoke := exec.CommandContext(t.Context(), s.binary, "revoke", ours.Certificate().Serial, "--reason", "superseded")
		revoke.Env = append(os.Environ(), "CERTMILL_CONTEXT="+s.data("cli.yaml"))
		out, err := revoke.CombinedOutput()
		if err != nil {
			t.Logf("certmill revoke: %v\n%s", err, out)
		}
		return err == nil && errors.Is(ours.Err(), &client.Error{Kind: client.Unauthenticated, Rule: "revoked"})
	})
	last := ours.Certificate()
	until(t, "the revoked certificate ends", func() bool { return time.Now().After(last.Leaf().NotAfter) })
	if err := meet(t, theirs.server(), ours.ClientTLS(client.AllowURI(theirsID))); err == nil || ours.Certificate().Serial != last.Serial {
		t.Error("who was revoked is still let in")
	}
}
