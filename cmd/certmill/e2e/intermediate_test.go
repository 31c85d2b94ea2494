package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// atHSM runs the binary as an operator does where the HSM is, and returns its standard
// output, or its complaint.
func (s *service) atHSM(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(s.dir, "softhsm2.conf"))
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.Stderr, err
	}
	return out, err
}

// TestAnIntermediateByTheCommandLine walks the road of docs/spiffe.md.
func TestAnIntermediateByTheCommandLine(t *testing.T) {
	s := dev(t)
	for mesh, files := range map[string][]string{
		"istio": {"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"},
		"spire": {"upstream-cert.pem", "upstream-key.pem", "bundle.pem"},
	} {
		t.Run(mesh, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			var request struct{ Request, Digest string }
			s.runJSON(t, &request, "ca", "intermediate", "request", "--mesh", mesh, "--out", dir)
			approve := []string{"ca", "intermediate", "approve", "--config", filepath.Join(s.dir, "config", "signer-1.yaml"), "--csr", request.Request,
				"--mesh", mesh, "--trust-domain", "cluster.local", "--dns-domain", "svc", "--out", dir, "-o", "json"}
			if out, err := s.atHSM(t, approve...); err == nil || !strings.Contains(string(out), request.Digest) {
				t.Errorf("without an approval: %v\n%s", err, out)
			}
			out, err := s.atHSM(t, append(approve, "--digest", request.Digest)...)
			if err != nil || !json.Valid(out) {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, name := range files {
				if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
			root, cert := filepath.Join(dir, files[len(files)-1]), filepath.Join(dir, files[0])
			if out, err := exec.Command("openssl", "verify", "-x509_strict", "-CAfile", root, cert).CombinedOutput(); err != nil {
				t.Errorf("openssl: %v\n%s", err, out)
			}
			// A second request would need a folder of its own: the key is not written over.
			if out, err := s.run(t, "ca", "intermediate", "request", "--mesh", mesh, "--out", dir); err == nil {
				t.Errorf("a key that is there was written over\n%s", out)
			}
		})
	}
}
