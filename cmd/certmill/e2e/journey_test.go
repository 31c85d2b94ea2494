package e2e

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// TestDemoOnce runs what `make demo-once` runs and finds its steps in what it prints.
func TestDemoOnce(t *testing.T) {
	requirePrograms(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "dev", "--demo", "--once", "--dir", t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	rest := text
	for _, want := range []string{"openssl req", ": OK", ": good", "revoke", ": revoked"} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("%q does not come where it should in\n%s", want, text)
		}
		rest = after
	}
}

// TestSecondStartGoesOn stops a service with Ctrl-C and starts it on the same data.
func TestSecondStartGoesOn(t *testing.T) {
	requirePrograms(t)
	dir, err := os.MkdirTemp("", "certmill-again")
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	var first struct{ Serial string }
	s.runJSON(t, &first, "issue", "--profile", "server", "--dns", "again.test", "--out", filepath.Join(dir, "again.pem"), "--key-out", filepath.Join(dir, "again.key"))
	root, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-s.exited; err != nil {
		t.Fatalf("the first stop: %v\n%s", err, s.out)
	}
	if left := processesOf(dir); len(left) > 0 {
		t.Fatalf("the first stop left %v", left)
	}
	if s, err = start(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	if again, _ := os.ReadFile(filepath.Join(dir, "root.pem")); !bytes.Equal(root, again) {
		t.Error("the second start made another root")
	}
	out, err := s.run(t, "inspect", first.Serial)
	if err != nil || !strings.Contains(out, "again.test") {
		t.Errorf("certmill inspect %s: %v\n%s", first.Serial, err, out)
	}
}

// TestRevokedIsSeenByOpenSSL walks a certificate through its life with the tools that
// people have: openssl for the CSR, curl for REST, openssl for chain and OCSP.
func TestRevokedIsSeenByOpenSSL(t *testing.T) {
	s := dev(t)
	dir := t.TempDir()
	key, csr, leaf := filepath.Join(dir, "k.key"), filepath.Join(dir, "k.csr"), filepath.Join(dir, "k.pem")
	tool(t, "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", key, "-subj", "/", "-addext", "subjectAltName=DNS:journey.test", "-out", csr)
	gateway := s.setting(t, "gateway", "listen")
	tool(t, "curl", "-sS", "--fail-with-body", "--cacert", s.file("root.pem"), "--cert", s.file("operator.pem"), "--key", s.file("operator.key"),
		"--connect-to", "localhost:443:"+gateway, "--data-binary", "@"+csr, "-o", leaf, "https://localhost/v1/certificates?profile=server")
	issuing := filepath.Join(dir, "issuing.pem")
	text, err := os.ReadFile(leaf)
	if err != nil {
		t.Fatal(err)
	}
	_, chain, ok := strings.Cut(string(text), "-----END CERTIFICATE-----\n")
	if !ok {
		t.Fatalf("no chain after the certificate:\n%s", text)
	}
	writeFile(t, issuing, []byte(chain))
	if out := tool(t, "openssl", "verify", "-CAfile", s.file("root.pem"), "-untrusted", issuing, leaf); !strings.Contains(out, ": OK") {
		t.Errorf("openssl verify: %s", out)
	}
	status := func() string {
		return tool(t, "openssl", "ocsp", "-issuer", issuing, "-cert", leaf, "-no_nonce", "-CAfile", s.file("root.pem"), "-url", "http://"+s.setting(t, "responder", "listen")+"/")
	}
	// Not good until it has been pre-signed, which is a matter of milliseconds.
	eventually(t, 20*time.Second, func() error {
		if out := status(); !strings.Contains(out, ": good") {
			return fmt.Errorf("the status after issue: %s", out)
		}
		return nil
	})
	if out, err := s.run(t, "revoke", leaf, "--reason", "superseded"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	acknowledged := time.Now()
	eventually(t, 20*time.Second, func() error {
		out := status()
		if !strings.Contains(out, ": revoked") || !strings.Contains(out, "superseded") {
			return fmt.Errorf("the status %s after the revocation was acknowledged: %s", time.Since(acknowledged), out)
		}
		return nil
	})
	t.Logf("revoked was visible %s after the acknowledgement, openssl's start included", time.Since(acknowledged).Round(time.Millisecond))
}

// TestBadRequestsAreToldWhy sends what a person gets wrong and reads the answer.
func TestBadRequestsAreToldWhy(t *testing.T) {
	s := dev(t)
	base := []string{"-sS", "--cacert", s.file("root.pem"), "--connect-to", "localhost:443:" + s.setting(t, "gateway", "listen"), "-w", "\n%{http_code}"}
	operator := append(base[:len(base):len(base)], "--cert", s.file("operator.pem"), "--key", s.file("operator.key"))
	good := filepath.Join(t.TempDir(), "good.pem")
	writeFile(t, good, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: newCSR(t, "bad.test")}))
	const broken = "-----BEGIN CERTIFICATE REQUEST-----\nMAAA\n-----END CERTIFICATE REQUEST-----\n"
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"no credential":   {append(base[:len(base):len(base)], "--data-binary", "x", "https://localhost/v1/certificates"), []string{"urn:certmill:problem:unauthenticated", "401"}},
		"not a CSR":       {append(operator[:len(operator):len(operator)], "--data-binary", "hello", "https://localhost/v1/certificates?profile=server"), []string{`"field":"content-type"`, "415"}},
		"a broken CSR":    {append(operator[:len(operator):len(operator)], "--data-binary", broken, "https://localhost/v1/certificates?profile=server"), []string{`"field":"csr`, "400"}},
		"unknown profile": {append(operator[:len(operator):len(operator)], "--data-binary", "@"+good, "https://localhost/v1/certificates?profile=nope"), []string{"nope", "400"}},
		"no such path":    {append(operator[:len(operator):len(operator)], "https://localhost/v1/nothing"), []string{"urn:certmill:problem:not_found", "404"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := strings.ReplaceAll(tool(t, "curl", c.args...), `": "`, `":"`)
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in the answer %s", want, out)
				}
			}
		})
	}
}

// TestTheNextStepsReachTheStackAndNameWhatIsThere follows what `certmill dev` says at its
// end, in the folder that it was started in and without a context in the environment.
func TestTheNextStepsReachTheStackAndNameWhatIsThere(t *testing.T) {
	s := dev(t)
	text := s.out.String()
	named := regexp.MustCompile(`written to +(\S+), (\S+)`).FindStringSubmatch(text)
	if named == nil {
		t.Fatalf("it names no file of the first certificate:\n%s", text)
	}
	for _, name := range named[1:] {
		if _, err := os.Stat(name); err != nil {
			t.Errorf("it named a file: %v", err)
		}
	}
	_, steps, _ := strings.Cut(text, "Try next")
	t.Cleanup(func() { _, _ = os.Remove(s.file("web.test.pem")), os.Remove(s.file("web.test.key")) })
	n := 0
	for _, line := range strings.Split(steps, "\n") {
		// status has an exit code of its own; the others end with 0.
		if !regexp.MustCompile(`^  \S+ (issue|inspect|revoke|console) `).MatchString(line) {
			continue
		}
		n++
		cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
		cmd.Dir = s.dir
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "CERTMILL_") {
				cmd.Env = append(cmd.Env, v)
			}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if n != 4 {
		t.Errorf("%d steps were found in\n%s", n, steps)
	}
}

// TestACorrectedCommandAtTheDeskIsNotInItsOwnWay has `ca issue` fail before anything is
// asked of the CA.
func TestACorrectedCommandAtTheDeskIsNotInItsOwnWay(t *testing.T) {
	s := dev(t)
	dir := t.TempDir()
	issue := func(profile string) (string, error) {
		cmd := s.command(t, "ca", "issue", "--config", s.file("config/signer-1.yaml"), "--profile", profile, "--dns", "localhost", "--ip", "127.0.0.1")
		cmd.Dir, cmd.Env = dir, append(cmd.Env, "SOFTHSM2_CONF="+s.file("softhsm2.conf"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for profile, want := range map[string]int{"": 2, "nosuch": 3} {
		out, err := issue(profile)
		if exitCode(err) != want || strings.Contains(out, "gateway up") || strings.Contains(out, "is kept") {
			t.Errorf("profile %q: %v\n%s", profile, err, out)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("profile %q: %v is left, %v", profile, left, err)
		}
	}
	if out, err := issue("gateway-tls"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestEveryRoleIsRestartedAfterKill kills every role; each is ready again by itself.
func TestEveryRoleIsRestartedAfterKill(t *testing.T) {
	s := dev(t)
	for _, role := range []string{"gateway", "signer-1", "signer-2", "presigner", "responder"} {
		old := s.pid(t, role)
		s.kill(t, role)
		eventually(t, 30*time.Second, func() error {
			if s.pid(t, role) == old {
				return fmt.Errorf("%s still has the pid of the dead one", role)
			}
			return s.ready(t, role)
		})
	}
	if out, err := s.run(t, "issue", "--profile", "server", "--dns", "after.test", "--out", "-", "--key-out", filepath.Join(t.TempDir(), "k")); err != nil {
		t.Errorf("after all roles were killed: %v\n%s", err, out)
	}
}

// served finds the names of a role's own metrics among what it serves.
var served = regexp.MustCompile(`(?m)^# TYPE (certmill_\S+) `)

// TestEveryRoleTellsOfItself reads the metrics of every role, looks for each metric in
// their reference, and for each role in the status of the service.
func TestEveryRoleTellsOfItself(t *testing.T) {
	s := dev(t)
	reference, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for role, prefix := range map[string]string{"gateway": "certmill_gateway_", "signer-1": "certmill_signer_", "presigner": "certmill_presign_", "responder": "certmill_ocsp_", "maintenance": "certmill_ledger_"} {
		body := s.operator(t, role, "/metrics")
		if !strings.Contains(body, "\n"+prefix) {
			t.Errorf("%s has no metric %s…", role, prefix)
		}
		for _, m := range served.FindAllStringSubmatch(body, -1) {
			if !strings.Contains(string(reference), "| `"+m[1]+"` |") {
				t.Errorf("the %s serves %s, which docs/metrics.md does not have: roles.Metrics must register it", role, m[1])
			}
		}
	}
	eventually(t, 30*time.Second, func() error {
		out, _ := s.command(t, "status", "-o", "json").Output() // 10 and 11 come with a status
		m := &certmillv1.ServiceStatus{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(out, m); err != nil {
			return err
		}
		tokens := map[string]int{}
		for _, r := range m.Roles {
			if r.State == "ready" {
				tokens[r.Role] += len(r.Tokens)
			}
		}
		for _, role := range []string{"gateway", "maintenance", "presigner", "responder", "signer"} {
			n, ok := tokens[role]
			if !ok {
				return fmt.Errorf("no %s is ready: %v", role, m.Roles)
			}
			if (role == "signer" || role == "presigner") != (n > 0) {
				return fmt.Errorf("the %s shows %d tokens", role, n)
			}
		}
		return nil
	})
}

// tool runs a program and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// eventually polls until check passes.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *service) file(name string) string { return filepath.Join(s.dir, name) }

// setting reads a value of a role's configuration.
func (s *service) setting(t *testing.T, role string, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "config", role+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := yaml.Unmarshal(data, &value); err != nil {
		t.Fatal(err)
	}
	for _, key := range path {
		m, _ := value.(map[string]any)
		value = m[key]
	}
	text, ok := value.(string)
	if !ok {
		t.Fatalf("%s has no %v", role, path)
	}
	return text
}

func (s *service) get(t *testing.T, role, path string) (int, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.setting(t, role, "telemetry", "listen")+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

func (s *service) operator(t *testing.T, role, path string) string {
	t.Helper()
	code, body, err := s.get(t, role, path)
	if err != nil || code != http.StatusOK {
		t.Fatalf("%s %s: %d %v", role, path, code, err)
	}
	return body
}

func (s *service) ready(t *testing.T, role string) error {
	t.Helper()
	code, body, err := s.get(t, role, "/readyz")
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("%s is not ready: %d %s", role, code, body)
	}
	return nil
}
