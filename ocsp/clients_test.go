package ocsp

import (
	"crypto/x509"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// leaf issues a certificate with a record.
func (s *service) leaf(name string, status Status) (path string, c *x509.Certificate) {
	s.t.Helper()
	c, _ = s.ca.Leaf(s.t, testEpoch, testNow.Add(-time.Hour), testNow.Add(90*24*time.Hour))
	n, err := serial.FromBig(c.SerialNumber)
	s.must(err)
	s.put(n, status)
	return ocsptest.WriteCertificate(s.t, name, c), c
}

func TestOpenSSL(t *testing.T) {
	openssl := testenv.Program(t, "openssl", "openssl")
	s := newService(t)
	r := s.start()
	ca := ocsptest.WriteCertificate(t, "ca.pem", s.ca.Certificate)
	good, _ := s.leaf("good.pem", testGood)
	bad, _ := s.leaf("bad.pem", revoked(testGood, 1))
	stranger, _ := s.ca.Leaf(t, testEpoch, testNow, testNow.Add(time.Hour))
	unknown := ocsptest.WriteCertificate(t, "unknown.pem", stranger)
	ask := func(args ...string) string {
		out, _ := exec.CommandContext(t.Context(), openssl, append([]string{"ocsp", "-issuer", ca, "-CAfile", ca, "-url", r.url}, args...)...).CombinedOutput()
		return string(out)
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"SHA-1", []string{"-no_nonce", "-cert", good}, []string{"Response verify OK", "good.pem: good", "Next Update"}},
		{"SHA-256", []string{"-no_nonce", "-sha256", "-cert", good}, []string{"Response verify OK", "good.pem: good"}},
		{"nonce", []string{"-cert", good}, []string{"WARNING: no nonce in response", "Response verify OK", "good.pem: good"}},
		{"revoked", []string{"-no_nonce", "-cert", bad}, []string{"Response verify OK", "bad.pem: revoked", "Reason: keyCompromise"}},
		{"revoked, SHA-256", []string{"-no_nonce", "-sha256", "-cert", bad}, []string{"Response verify OK", "bad.pem: revoked", "Reason: keyCompromise"}},
		{"unknown", []string{"-no_nonce", "-cert", unknown}, []string{"Responder Error: unauthorized (6)"}},
		{"two at once", []string{"-no_nonce", "-cert", good, "-cert", bad}, []string{"Response verify OK", "good.pem: good", "bad.pem: ERROR: No Status found."}},
	} {
		out := ask(c.args...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, out)
			}
		}
	}
	text := ask("-no_nonce", "-cert", good, "-resp_text")
	for _, want := range []string{"Responder Id: ", "OCSP No Check", "OCSP Signing"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestGnuTLS(t *testing.T) {
	ocsptool := testenv.Program(t, "ocsptool", "gnutls-bin")
	s := newService(t)
	r := s.start()
	ca := ocsptest.WriteCertificate(t, "ca.pem", s.ca.Certificate)
	good, _ := s.leaf("good.pem", testGood)
	bad, _ := s.leaf("bad.pem", revoked(testGood, 4))
	for path, want := range map[string][]string{
		good: {"Certificate Status: good", "Verifying OCSP Response: Success"},
		bad:  {"Certificate Status: revoked", "Revocation time: ", "Verifying OCSP Response: Success"},
	} {
		out, err := exec.CommandContext(t.Context(), ocsptool, "--ask="+r.url, "--load-cert", path, "--load-issuer", ca, "--load-trust", ca).CombinedOutput()
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("no %q (%v) in\n%s", w, err, out)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
