package staple_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/ocsptest"
	"github.com/certmill/certmill/ocsp/presign"
	"github.com/certmill/certmill/ocsp/staple"
)

// site is a certificate for localhost with the whole service behind it – ledger in
// memory, presigner, Redis, responder – and a folder for a proxy.
type site struct {
	t        *testing.T
	ca       *ocsptest.CA
	book     *ocsptest.Ledger
	serial   serial.Number
	dir      string
	port     string
	validity time.Duration

	nextUpdate time.Time // of the last staple that handshake has seen
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { must(t, l.Close()) }()
	return l.Addr().String()
}

// run starts a part that ends with the test.
func run(t *testing.T, part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

func newSite(t *testing.T, validity time.Duration) *site {
	t.Helper()
	s := &site{t: t, ca: ocsptest.NewCA(t, "Proxy CA"), book: ocsptest.NewLedger(), dir: t.TempDir(), validity: validity}
	must(t, os.Chmod(s.dir, 0o755)) // nginx's workers are nobody
	_, s.port, _ = net.SplitHostPort(freeAddress(t))
	issuer := s.book.AddIssuer(s.ca)
	key := ocsptest.Key(t, "p256")
	s.book.AddSigner(issuer, s.ca.Delegate(t, key, 96*time.Hour).Raw, "file:"+ocsptest.WriteKey(t, "ocsp.key", key))
	epoch := s.book.AddEpoch(issuer)
	redis := config.Redis{Addresses: []string{testenv.Redis(t)}}

	rc := ocsp.DefaultConfig()
	rc.Listen, rc.Redis, rc.MaxAge = freeAddress(t), redis, 0
	responder, err := ocsp.New(rc, ocsp.Deps{})
	must(t, err)
	run(t, responder.Run)
	notBefore := time.Now().Add(-time.Hour).Truncate(time.Second)
	cert, leafKey := s.ca.Leaf(t, epoch, notBefore, notBefore.Add(300*time.Hour), "http://"+rc.Listen+"/")
	s.serial, err = serial.FromBig(cert.SerialNumber)
	must(t, err)
	s.book.Issue(ledger.Status{Serial: s.serial, Issuer: issuer, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Revocation: ledger.RevocationOCSP})

	pc := presign.DefaultConfig()
	pc.Name, pc.Redis, pc.Validity = "proxies", redis, validity
	pc.SweepInterval, pc.RevocationPoll = min(validity/20, time.Second), 50*time.Millisecond
	presigner, err := presign.New(pc, presign.Deps{Ledger: s.book})
	must(t, err)
	run(t, presigner.Run)
	s.eventually("the responder is ready", 10*time.Second, func() bool { return responder.Ready() == nil })

	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	must(t, err)
	var chain bytes.Buffer
	for _, c := range []*x509.Certificate{cert, s.ca.Certificate} {
		must(t, pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	s.write("chain.pem", chain.Bytes())
	s.write("site.key", keyPEM)
	s.write("site.pem", append(chain.Bytes(), keyPEM...))
	s.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Certificate.Raw}))
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name string, text []byte) {
	s.t.Helper()
	must(s.t, os.WriteFile(s.path(name), text, 0o644))
}

// proxy starts a proxy and waits until it listens.
func (s *site) proxy(name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", name, out.String())
		}
	})
	s.eventually(name+" listens", 10*time.Second, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func (s *site) eventually(what string, limit time.Duration, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// curl is "good", "revoked" or "none", by what curl --cert-status says of the staple.
func (s *site) curl() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, testenv.Program(s.t, "curl", "curl"), "-sS", "--cacert", s.path("ca.pem"), "--cert-status", "https://localhost:"+s.port+"/").CombinedOutput()
	switch text := string(out); {
	case err == nil:
		return "good"
	case strings.Contains(text, "revocation reason"):
		return "revoked"
	case strings.Contains(text, "No OCSP response"):
		return "none"
	default:
		return text
	}
}

// openssl is the same by openssl s_client, which tells every staple.
func (s *site) openssl() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Program(s.t, "openssl", "openssl"), "s_client", "-connect", "localhost:"+s.port, "-status", "-CAfile", s.path("ca.pem"))
	out, err := cmd.CombinedOutput()
	switch text := string(out); {
	case strings.Contains(text, "Cert Status: good"):
		return "good"
	case strings.Contains(text, "Cert Status: revoked"):
		return "revoked"
	case strings.Contains(text, "no response sent"):
		return "none"
	default:
		return fmt.Sprint(err, text)
	}
}

// gnutls is whether gnutls-cli accepts the connection, which checks the staple.
func (s *site) gnutls() bool {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, testenv.Program(s.t, "gnutls-cli", "gnutls-bin"), "--x509cafile", s.path("ca.pem"), "-p", s.port, "localhost").Run() == nil
}

// staple starts a stapler for the site.
func (s *site) staple(c staple.Certificate, change func(*staple.Config)) *staple.Stapler {
	s.t.Helper()
	cfg := staple.DefaultConfig()
	cfg.Certificates = []staple.Certificate{c}
	cfg.Interval, cfg.Retry, cfg.Look = time.Second, 100*time.Millisecond, 50*time.Millisecond
	change(&cfg)
	deps := staple.Deps{}
	if testing.Verbose() {
		deps.Log = slog.New(slog.NewTextHandler(s.t.Output(), nil))
	}
	st, err := staple.New(cfg, deps)
	must(s.t, err)
	run(s.t, st.Run)
	s.eventually("the first staple is there", 10*time.Second, func() bool { return st.Ready() == nil })
	return st
}

// nginx writes a configuration; stapling are its lines for that.
func (s *site) nginx(stapling string) []string {
	s.write("nginx.conf", fmt.Appendf(nil, `
daemon off; pid %[1]s/nginx.pid; error_log stderr warn;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
	server {
		listen 127.0.0.1:%[2]s ssl;
		ssl_certificate %[1]s/chain.pem; ssl_certificate_key %[1]s/site.key;
		ssl_trusted_certificate %[1]s/ca.pem;
		%[3]s
		return 200 ok;
	}
}`, s.dir, s.port, stapling))
	return []string{"-p", s.dir, "-c", s.path("nginx.conf"), "-e", "stderr"}
}

// nginx fetches by itself: not in its first handshake; and a revocation shows as no
// staple, once the last good answer has ended.
func TestNginxThatFetchesByItself(t *testing.T) {
	nginx := testenv.Program(t, "nginx", "nginx")
	s := newSite(t, 8*time.Second)
	s.proxy(nginx, s.nginx("ssl_stapling on; ssl_stapling_verify on;")...)
	if got := s.curl(); got != "none" {
		t.Errorf("the first handshake: %s", got)
	}
	s.eventually("curl sees good", 10*time.Second, func() bool { return s.curl() == "good" })
	revoked := time.Now()
	s.book.Revoke(s.serial, 1)
	s.eventually("nginx staples the good answer no more", s.validity+3*time.Second, func() bool { return s.curl() == "none" })
	t.Logf("no good staple %s after the revocation; validity %s", time.Since(revoked).Round(100*time.Millisecond), s.validity)
}

// nginx with a staple file staples from the first handshake on, revoked too, and
// learns of a revocation by a reload.
func TestNginxWithAStapleFile(t *testing.T) {
	nginx := testenv.Program(t, "nginx", "nginx")
	s := newSite(t, time.Hour)
	args := s.nginx("ssl_stapling on; ssl_stapling_file " + s.path("site.der") + ";")
	s.staple(staple.Certificate{Chain: s.path("chain.pem"), Staple: s.path("site.der")}, func(c *staple.Config) {
		c.Reload = append(append([]string{nginx}, args...), "-s", "reload")
	})
	s.proxy(nginx, args...)
	s.seesRevocation()
}

// HAProxy starts with the file beside its certificate and is handed every later staple.
func TestHAProxyWithTheRuntimeSocket(t *testing.T) {
	haproxy := testenv.Program(t, "haproxy", "haproxy")
	s := newSite(t, time.Hour)
	socket := s.path("admin.sock")
	st := s.staple(staple.Certificate{Chain: s.path("site.pem"), HAProxy: []string{socket}}, func(*staple.Config) {})
	s.write("haproxy.cfg", fmt.Appendf(nil, `
global
	stats socket %[1]s level admin
defaults
	mode http
	timeout client 5s
	timeout server 5s
	timeout connect 5s
frontend site
	bind 127.0.0.1:%[2]s ssl crt %[3]s
	http-request return status 200 content-type text/plain string ok
`, socket, s.port, s.path("site.pem")))
	s.proxy(haproxy, "-db", "-f", s.path("haproxy.cfg"))
	s.seesRevocation()
	if reports, ok := st.Check(); ok || reports[0].State != staple.Revoked {
		t.Errorf("--check says %+v", reports)
	}
}

// seesRevocation: good at once, and revoked for all clients soon after a revocation.
func (s *site) seesRevocation() {
	s.t.Helper()
	if curl, openssl, gnutls := s.curl(), s.openssl(), s.gnutls(); curl != "good" || openssl != "good" || !gnutls {
		s.t.Errorf("the first handshakes: curl %s, openssl %s, gnutls %v", curl, openssl, gnutls)
	}
	revoked := time.Now()
	s.book.Revoke(s.serial, 1)
	s.eventually("curl sees revoked", 8*time.Second, func() bool { return s.curl() == "revoked" })
	s.t.Logf("revoked is seen %s after the revocation", time.Since(revoked).Round(100*time.Millisecond))
	// The workers of before a reload go on for a moment.
	s.eventually("openssl and GnuTLS see revoked", 3*time.Second, func() bool { return s.openssl() == "revoked" && !s.gnutls() })
}
