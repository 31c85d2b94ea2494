package meshtest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
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
lifetime: {default: 12s, max: 1h, min: 5s, backdate: 1s}
`

// workload is one whose certificates Istio's client gets.
type workload struct {
	id    string
	cert  tls.Certificate
	roots *x509.CertPool
	count int // of roots
}

func (w *workload) get(t *testing.T, s *service) {
	t.Helper()
	request, key := csr(t, w.id)
	chain, err := s.agent(t, s.grpc, s.token(t, "shop", "theirs", time.Hour)).CSRSign(request, 600)
	if err != nil {
		t.Fatal(err)
	}
	roots := certificates(t, chain[len(chain)-1])
	judge(t, chain, w.id, len(roots))
	if w.cert, err = tls.X509KeyPair([]byte(chain[0]+chain[1]), key); err != nil {
		t.Fatal(err)
	}
	w.roots, w.count = x509.NewCertPool(), len(roots)
	for _, root := range roots {
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

// under reports whether the chain leads to this root.
func under(t *testing.T, root *x509.Certificate, c tls.Certificate) bool {
	t.Helper()
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	options.Roots.AddCert(root)
	for _, der := range c.Certificate[1:] {
		above, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		options.Intermediates.AddCert(above)
	}
	_, err := c.Leaf.Verify(options)
	return err == nil
}

// nextRoot is what an operator writes to change the root: the issuing CA keeps its name.
const nextRoot = "root: {name: root-2, common_name: certmill root CA 2}\n"

// Two workloads of one mesh, one by Istio's own client and one by this project's, speak
// with each other by mTLS, renew, and live through the death of the gateway and a change
// of the root, made by the commands of docs/istio.md. Then one is revoked, and refused
// from then on. The service is this test's own: its root is another one afterwards.
func TestIstiosClientAndOursSpeakWithEachOther(t *testing.T) {
	s, _, err := start(shared.binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	must := func(args ...string) {
		t.Helper()
		if _, err := s.run(t, args...); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	shown := func(format string, args ...any) {
		t.Helper()
		t.Logf("%5.1fs  "+format, append([]any{time.Since(began).Seconds()}, args...)...)
	}
	g := s.gateway(t)
	const oursID, theirsID = "spiffe://cluster.local/ns/shop/sa/ours", "spiffe://cluster.local/ns/shop/sa/theirs"
	dir := t.TempDir()
	token, caFile, spec := filepath.Join(dir, "token"), filepath.Join(dir, "first.pem"), filepath.Join(dir, "next.yaml")
	rootPEM, err := os.ReadFile(s.data("root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	oldRoot := certificates(t, string(rootPEM))[0]
	// Nobody renews ours' caFile: it holds the old root until the end.
	err = errors.Join(os.WriteFile(token, []byte(s.token(t, "shop", "ours", time.Hour)), 0o600), os.WriteFile(caFile, rootPEM, 0o600), os.WriteFile(spec, []byte(nextRoot), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := client.Open(t.Context(), client.Config{Gateway: s.grpc, ServerName: "localhost", CAFile: caFile, TokenFile: token, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, client.Request{Profile: "fleet"})
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
		which := func(c tls.Certificate) string {
			if under(t, oldRoot, c) {
				return "old"
			}
			return "new"
		}
		shown("%s: both handshakes; ours is under the %s root and trusts %d, theirs is under the %s root and trusts %d", what,
			which(ours.Certificate().TLS), len(ours.Bundle().Roots), which(theirs.cert), theirs.count)
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
	g = s.gateway(t)
	until(t, "ours renews after the restart", func() bool { return ours.Certificate().Serial != second && ours.Err() == nil })
	theirs.get(t, s)
	speak("after the restart")
	if theirs.count != 1 || len(ours.Bundle().Roots) != 1 {
		t.Fatalf("before the change there are %d and %d roots", theirs.count, len(ours.Bundle().Roots))
	}

	// The new root is made and published; nothing is issued under it yet.
	must("ca", "init", "--config", s.data("config/signer-1.yaml"), "--spec", spec, "--out", dir)
	newPEM, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	newRoot := certificates(t, string(newPEM))[0]
	report, err := s.run(t, "ca", "rollover", "prepare", "--config", s.data("config/signer-1.yaml"), "--spec", spec, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var prepared struct{ Before int }
	if err := json.Unmarshal(report, &prepared); err != nil {
		t.Fatalf("certmill printed %s: %v", report, err)
	}
	closeOld := []string{"ca", "rollover", "close", "--config", s.data("config/signer-1.yaml"), "--generation", strconv.Itoa(prepared.Before)}
	until(t, "theirs is told both roots", func() bool { theirs.get(t, s); return theirs.count == 2 })
	until(t, "ours is told both roots", func() bool { return len(ours.Bundle().Roots) == 2 })
	if !under(t, oldRoot, theirs.cert) || !under(t, oldRoot, ours.Certificate().TLS) {
		t.Fatal("something is issued under the new root before it is activated")
	}
	speak("both roots published")
	lagging := *theirs // it renews in ten minutes only
	// What has files of roots gets both: here Istio's clients and the operator.
	if err := os.WriteFile(s.data("root.pem"), ours.Bundle().PEM(), 0o644); err != nil {
		t.Fatal(err)
	}

	must("ca", "rollover", "activate", "--config", s.data("config/signer-1.yaml"), "--spec", spec, "--published-for", "1s")
	until(t, "theirs is under the new root", func() bool { theirs.get(t, s); return under(t, newRoot, theirs.cert) })
	if err := errors.Join(meet(t, lagging.server(), theirs.client(theirsID)), meet(t, theirs.server(), lagging.client(theirsID))); err != nil {
		t.Fatalf("theirs under the old root and theirs under the new one: %v", err)
	}
	speak("theirs has changed")
	// The gateway's own certificate follows, and is believed by both.
	must("ca", "issue", "--config", s.data("config/signer-1.yaml"), "--profile", "gateway-tls", "--dns", "localhost", "--ip", "127.0.0.1",
		"--out", s.data("gateway.pem"), "--key-out", s.data("gateway.key"), "--force")
	g.kill()
	s.gateway(t)
	third := ours.Certificate().Serial
	until(t, "ours is under the new root, by a gateway under it", func() bool {
		return ours.Certificate().Serial != third && under(t, newRoot, ours.Certificate().TLS)
	})
	theirs.get(t, s)
	speak("ours and the gateway have changed")
	if err := errors.Join(meet(t, lagging.server(), ours.ClientTLS(client.AllowURI(theirsID))), meet(t, ours.ServerTLS(client.AllowURI(theirsID)), lagging.client(oursID))); err != nil {
		t.Fatalf("ours under the new root and theirs under the old one: %v", err)
	}
	shown("under the new root, ours speaks with one that is still under the old")

	if _, err := s.run(t, closeOld...); err == nil {
		t.Error("the old generation can be closed while certificates of it are in use")
	} else {
		shown("closing the old generation is refused: %v", err)
	}

	if err := os.Remove(token); err != nil { // the certificate is all that ours has
		t.Fatal(err)
	}
	until(t, "ours is refused", func() bool { // what it has renewed meanwhile is revoked too
		_, err := s.run(t, "revoke", ours.Certificate().Serial, "--reason", "superseded")
		if err != nil {
			t.Log(err)
		}
		return err == nil && errors.Is(ours.Err(), &client.Error{Kind: client.Unauthenticated, Rule: "revoked"})
	})
	shown("revoked, ours is refused: %v", ours.Err())
	last := ours.Certificate()
	until(t, "the revoked certificate ends", func() bool { return time.Now().After(last.Leaf().NotAfter) })
	err = meet(t, theirs.server(), ours.ClientTLS(client.AllowURI(theirsID)))
	if err == nil || ours.Certificate().Serial != last.Serial {
		t.Error("who was revoked is still let in")
	}
	shown("and has no way in any more: %v", err)

	// Whoever cannot wait for the last certificates under the old root says so.
	must(append(closeOld, "--force")...)
	until(t, "the old root leaves the answers", func() bool { theirs.get(t, s); return theirs.count == 1 })
	if !under(t, newRoot, theirs.cert) {
		t.Error("theirs is not under the new root")
	}
	shown("the old generation is closed; theirs is under the new root and trusts %d", theirs.count)
}
