package ocsp

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// site is a certificate for localhost with its key, as proxies read them.
type site struct {
	n             serial.Number
	cert, key, ca string
}

func (s *service) site(status Status) site {
	s.t.Helper()
	c, key := s.ca.Leaf(s.t, testEpoch, testNow.Add(-time.Hour), testNow.Add(90*24*time.Hour))
	n, err := serial.FromBig(c.SerialNumber)
	s.must(err)
	s.put(n, status)
	return site{
		// With the issuer: curl looks for it in the chain that was sent.
		n: n, cert: ocsptest.WriteCertificate(s.t, "site.pem", c, s.ca.Certificate), key: ocsptest.WriteKey(s.t, "site.key", key),
		ca: ocsptest.WriteCertificate(s.t, "ca.pem", s.ca.Certificate),
	}
}

// run starts a program that the test's end stops, and waits until it listens.
func run(t *testing.T, addr string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	noError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end
		if t.Failed() {
			t.Log(name, log)
		}
	})
	eventually(t, name+" listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	noError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// staple returns what openssl says of the staple in a handshake.
func staple(t *testing.T, addr, ca string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", "s_client", "-connect", addr, "-servername", "localhost", "-status", "-CAfile", ca)
	out, _ := cmd.CombinedOutput() // with no input it ends after the handshake
	switch text := string(out); {
	case strings.Contains(text, "OCSP response: no response sent"):
		return "none"
	case strings.Contains(text, "Cert Status: good"):
		return "good"
	case strings.Contains(text, "Cert Status: revoked"):
		return "revoked"
	default:
		return text
	}
}

// curl asks with --cert-status and returns its exit code: 91 is no valid staple.
func curl(t *testing.T, addr, ca string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	noError(t, err)
	cmd := exec.CommandContext(t.Context(), "curl", "-s", "-o", "/dev/null", "--resolve", "localhost:"+port+":127.0.0.1", "--cacert", ca, "--cert-status", "https://localhost:"+port+"/")
	_ = cmd.Run() // the code tells
	return cmd.ProcessState.ExitCode()
}

// nginx fetches by itself, by GET over HTTP/1.0, and verifies what it gets.
func TestNginxFetchesAndStaples(t *testing.T) {
	nginx := testenv.Program(t, "nginx", "nginx")
	testenv.Program(t, "curl", "curl")
	s := newService(t)
	r := s.start()
	good := s.site(testGood)
	dir, addr := t.TempDir(), freeAddr(t)
	conf := filepath.Join(dir, "nginx.conf")
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	noError(t, os.WriteFile(conf, fmt.Appendf(nil, `%s daemon off; master_process off; pid %s/pid; error_log stderr info;
events {}
http { access_log off; client_body_temp_path %s/b; proxy_temp_path %s/p; fastcgi_temp_path %s/f; uwsgi_temp_path %s/u; scgi_temp_path %s/s;
server { listen %s ssl; server_name localhost; ssl_certificate %s; ssl_certificate_key %s; ssl_session_tickets off;
  ssl_stapling on; ssl_stapling_verify on; ssl_trusted_certificate %s; ssl_stapling_responder %s/; return 200 "ok"; } }`,
		user, dir, dir, dir, dir, dir, dir, addr, good.cert, good.key, good.ca, r.url), 0o600))
	run(t, addr, nginx, "-c", conf, "-p", dir)
	eventually(t, "nginx staples", func() bool { return staple(t, addr, good.ca) == "good" })
	if code := curl(t, addr, good.ca); code != 0 {
		t.Errorf("curl --cert-status: exit code %d", code)
	}
}

// HAProxy 2.6 takes staples from a file and through its runtime socket, and staples
// what is revoked too.
func TestHAProxyTakesTheAnswerThroughItsSocket(t *testing.T) {
	haproxy := testenv.Program(t, "haproxy", "haproxy")
	testenv.Program(t, "curl", "curl")
	s := newService(t)
	r := s.start()
	good := s.site(testGood)
	dir, addr := t.TempDir(), freeAddr(t)
	bundle := filepath.Join(dir, "site.pem")
	var text []byte
	for _, part := range []string{good.cert, good.key} {
		b, err := os.ReadFile(part)
		noError(t, err)
		text = append(text, b...)
	}
	noError(t, os.WriteFile(bundle, text, 0o600))
	answerFor := func() []byte {
		_, body, err := exchange(t, strings.TrimPrefix(r.url, "http://"), post(r.request(good.n), "Connection: close"))
		noError(t, err)
		return body
	}
	noError(t, os.WriteFile(bundle+".ocsp", answerFor(), 0o600))
	socket, conf := filepath.Join(dir, "s"), filepath.Join(dir, "haproxy.cfg")
	noError(t, os.WriteFile(conf, fmt.Appendf(nil, `global
  stats socket %s level admin
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend f
  bind %s ssl crt %s
  http-request return status 200
`, socket, addr, bundle), 0o600))
	run(t, addr, haproxy, "-db", "-f", conf)
	if got, code := staple(t, addr, good.ca), curl(t, addr, good.ca); got != "good" || code != 0 {
		t.Errorf("from the file: %s, curl %d", got, code)
	}
	s.revoke(good.n)
	eventually(t, "revoked", func() bool { return r.ask(good.n) == "revoked" })
	c, err := net.Dial("unix", socket)
	noError(t, err)
	_, err = fmt.Fprintf(c, "set ssl ocsp-response %s\n", base64.StdEncoding.EncodeToString(answerFor()))
	noError(t, err)
	reply := make([]byte, 200)
	n, err := c.Read(reply)
	noError(t, err)
	noError(t, c.Close())
	if !strings.Contains(string(reply[:n]), "OCSP Response updated") {
		t.Fatalf("HAProxy says %q", reply[:n])
	}
	if got, code := staple(t, addr, good.ca), curl(t, addr, good.ca); got != "revoked" || code != 91 {
		t.Errorf("through the socket: %s, curl %d", got, code)
	}
}
