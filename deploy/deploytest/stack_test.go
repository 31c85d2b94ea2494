package deploytest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// long skips what `make test` has no time for; `make deploy-check` runs it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("CERTMILL_DEPLOY_LONG") == "" {
		t.Skip("CERTMILL_DEPLOY_LONG is not set: `make deploy-check` runs this")
	}
}

// binaries are what the tests run: CERTMILL_BIN or one that is built, and nats-server.
var binaries Options

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "certmill-deploytest")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binaries = Options{Certmill: os.Getenv("CERTMILL_BIN"), NATS: filepath.Join(dir, "nats-server")}
		build := map[string]string{binaries.NATS: "github.com/nats-io/nats-server/v2"}
		if binaries.Certmill == "" {
			binaries.Certmill = filepath.Join(dir, "certmill")
			build[binaries.Certmill] = "github.com/certmill/certmill/cmd/certmill"
		}
		for out, pkg := range build {
			if text, err := exec.Command("go", "build", "-o", out, pkg).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "building %s: %v\n%s", pkg, err, text)
				return 1
			}
		}
		return m.Run()
	}())
}

// TestTheComposeStackServesWithTLSAndAUserForEachRole starts the configuration files that
// compose mounts, gets a certificate through them, revokes it, and tries every user
// beyond its rights.
func TestTheComposeStackServesWithTLSAndAUserForEachRole(t *testing.T) {
	s := Start(t, binaries)
	t.Run("a certificate is issued, good, and revoked", func(t *testing.T) { oneLife(t, s) })
	t.Run("everybody is in the status", func(t *testing.T) { everybodyIsThere(t, s) })
	t.Run("NATS", func(t *testing.T) { natsRights(t, s) })
	t.Run("Redis", func(t *testing.T) { redisRights(t, s) })
	t.Run("ledger", func(t *testing.T) { ledgerRights(t, s) })
	t.Run("old and new", func(t *testing.T) { oldAndNew(t, s) })
	t.Run("dashboards", func(t *testing.T) { dashboards(t, s) })
	t.Run("rotation", func(t *testing.T) { rotation(t, s) })
	t.Run("no role lacks a right", func(t *testing.T) { noRoleLacksARight(t, s) })
	t.Run("no secret is in an argument", func(t *testing.T) { noSecretInArguments(t, s) })
}

// everybodyIsThere finds every role's processes in the status, the responder among them
// that reads a replica.
func everybodyIsThere(t *testing.T, s *Stack) {
	want := map[string]int{"gateway": 2, "signer": 2, "presigner": 1, "responder": 2}
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		// Its exit code speaks of the service; this is about who is in it.
		out, _ := s.Run("gateway-1", append([]string{"status", "-o", "json"}, s.Client("gateway-1")...)...)
		var status struct {
			Roles []struct{ Role, State string }
		}
		last = out
		if json.Unmarshal([]byte(out), &status) != nil {
			continue
		}
		ready := map[string]int{}
		for _, r := range status.Roles {
			if r.State == "ready" && want[r.Role] > 0 {
				ready[r.Role]++
			}
		}
		if maps.Equal(ready, want) {
			return
		}
	}
	t.Errorf("not all of %v are ready in the status:\n%s", want, last)
}

// oneLife follows one certificate from its CSR to its revocation at both responders.
func oneLife(t *testing.T, s *Stack) {
	run := func(args ...string) string {
		t.Helper()
		out, err := s.Run("gateway-1", append(args, s.Client("gateway-1")...)...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
		return out
	}
	run("issue", "--profile", "server", "--dns", "web.test", "--out", "web.pem", "--key-out", "web.key")
	leaf := readCertificate(t, filepath.Join(s.Folder("gateway-1"), "web.pem"))
	issuer := readCertificate(t, filepath.Join(s.Public(), "issuing.pem"))
	root := x509.NewCertPool()
	root.AddCert(readCertificate(t, filepath.Join(s.Public(), "root.pem")))
	between := x509.NewCertPool()
	between.AddCert(issuer)
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "web.test", Roots: root, Intermediates: between}); err != nil {
		t.Error(err)
	}
	for _, responder := range []string{"responder-1", "responder-2"} {
		waitStatus(t, s, responder, leaf, issuer, ocsp.Good)
	}
	run("revoke", "web.pem", "--reason", "superseded")
	for _, responder := range []string{"responder-1", "responder-2"} {
		waitStatus(t, s, responder, leaf, issuer, ocsp.Revoked)
	}
}

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s holds no certificate", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// waitStatus asks a responder until it says what is wanted.
func waitStatus(t *testing.T, s *Stack, responder string, leaf, issuer *x509.Certificate, want int) {
	t.Helper()
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var status int
		if status, last = askOCSP(s.Address(responder, 8080), request, issuer); last == nil && status == want {
			return
		} else if last == nil {
			last = fmt.Errorf("status %d", status)
		}
	}
	t.Fatalf("%s does not say %d: %v\n%s", responder, want, last, s.Log(responder))
}

func askOCSP(address string, request []byte, issuer *x509.Certificate) (int, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	response, err := client.Post("http://"+address+"/", "application/ocsp-request", bytes.NewReader(request))
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	der, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return 0, err
	}
	answer, err := ocsp.ParseResponse(der, issuer)
	if err != nil {
		return 0, err
	}
	return answer.Status, nil
}
