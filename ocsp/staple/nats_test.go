package staple_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	xocsp "golang.org/x/crypto/ocsp"
)

// nats-server with "ocsp {mode: always}" fetches by itself, by POST, staples from its
// first handshake on, asks again at half of the time left, and stops serving as soon as
// it learns that its certificate is revoked.
func TestNATSServerThatFetchesByItself(t *testing.T) {
	s := newSite(t, 8*time.Second)
	s.write("nats.conf", fmt.Appendf(nil, `
listen: "127.0.0.1:%s"
store_dir: %q
ocsp { mode: always }
tls { cert_file: %q, key_file: %q, ca_file: %q, handshake_first: true, timeout: 5 }
`, s.port, s.path("nats"), s.path("chain.pem"), s.path("site.key"), s.path("ca.pem")))
	options, err := server.ProcessConfigFile(s.path("nats.conf"))
	must(t, err)
	options.NoLog, options.NoSigs = true, true
	nats, err := server.NewServer(options)
	must(t, err)
	nats.Start()
	t.Cleanup(func() {
		nats.Shutdown()
		nats.WaitForShutdown()
	})
	if !nats.ReadyForConnections(10 * time.Second) {
		t.Fatal("nats-server does not come up")
	}
	if got := s.handshake(); got != "good" {
		t.Errorf("the first handshake: %s", got)
	}
	first := s.nextUpdate
	s.eventually("a new answer is stapled", s.validity, func() bool { return s.handshake() == "good" && s.nextUpdate.After(first) })
	revoked := time.Now()
	s.book.Revoke(s.serial, 1)
	s.eventually("it serves no more", s.validity, func() bool { return !nats.Running() })
	t.Logf("nats-server stopped %s after the revocation; validity %s", time.Since(revoked).Round(100*time.Millisecond), s.validity)
}

// handshake is a client of Go's that verifies chain and staple.
func (s *site) handshake() string {
	s.t.Helper()
	text, err := os.ReadFile(s.path("ca.pem"))
	must(s.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", "127.0.0.1:"+s.port, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	if err != nil {
		return err.Error()
	}
	defer func() { must(s.t, conn.Close()) }()
	state := conn.ConnectionState()
	if len(state.OCSPResponse) == 0 {
		return "none"
	}
	answer, err := xocsp.ParseResponseForCert(state.OCSPResponse, state.PeerCertificates[0], s.ca.Certificate)
	if err != nil {
		return err.Error()
	}
	s.nextUpdate = answer.NextUpdate
	switch {
	case !answer.NextUpdate.After(time.Now()):
		return "expired"
	case answer.Status == xocsp.Good:
		return "good"
	}
	return "revoked"
}
