// Package e2e tests the built binary as its users meet it: `certmill dev` runs with
// real servers and real roles, which these tests ask, kill and compare with the ledger.
package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/cmd/certmill/client"
	"github.com/certmill/certmill/internal/testenv"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// binary is the built certmill: CERTMILL_BIN, or one that TestMain builds.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if binary = os.Getenv("CERTMILL_BIN"); binary == "" {
			dir, err := os.MkdirTemp("", "certmill-e2e")
			if err != nil {
				panic(err)
			}
			defer os.RemoveAll(dir)
			binary = filepath.Join(dir, "certmill")
			build := exec.Command("go", "build", "-o", binary, "github.com/certmill/certmill/cmd/certmill")
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "building certmill: %v\n%s", err, out)
				return 1
			}
		}
		code := m.Run()
		for _, s := range []*service{shared.service, observed.service} {
			if s == nil {
				continue
			}
			if err := s.stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = max(code, 1)
			}
		}
		if observed.collector != nil {
			observed.collector.Stop()
		}
		return code
	}())
}

// service is one `certmill dev`.
type service struct {
	dir    string
	cmd    *exec.Cmd
	out    *lockedBuffer
	exited chan error
}

// lockedBuffer is written by the child and read by the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// shared is the service that the tests which leave it whole have in common.
var shared struct {
	once    sync.Once
	service *service
	err     error
}

func dev(t *testing.T) *service {
	t.Helper()
	requirePrograms(t)
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "certmill-dev")
		if err != nil {
			shared.err = err
			return
		}
		shared.service, shared.err = start(dir)
	})
	if shared.err != nil {
		t.Fatalf("certmill dev did not come up: %v", shared.err)
	}
	return shared.service
}

// requirePrograms skips where the servers are not installed, and fails there in CI.
func requirePrograms(t *testing.T) {
	t.Helper()
	for program, pkg := range map[string]string{"redis-server": "redis-server", "softhsm2-util": "softhsm2", "openssl": "openssl", "curl": "curl"} {
		testenv.Program(t, program, pkg)
	}
}

// writeFile writes a file of a test.
func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs `certmill dev` on dir, with env (NAME=value), and waits until it is up.
func start(dir string, env ...string) (*service, error) {
	s := &service{dir: dir, out: &lockedBuffer{}, exited: make(chan error, 1)}
	s.cmd = exec.Command(binary, "dev", "--dir", dir)
	s.cmd.Dir, s.cmd.Env = dir, append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	deadline := time.After(2 * time.Minute)
	for {
		if strings.Contains(s.out.String(), "Ctrl-C") {
			return s, nil
		}
		select {
		case err := <-s.exited:
			return nil, fmt.Errorf("it ended: %v\n%s", err, s.out)
		case <-deadline:
			return nil, fmt.Errorf("not up after two minutes (%v)\n%s", s.stop(), s.out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends it as Ctrl-C does, and fails when it does not end in order or leaves a
// process behind.
func (s *service) stop() error {
	_ = s.cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-s.exited:
		if err != nil {
			return fmt.Errorf("certmill dev: %v\n%s", err, s.out)
		}
	case <-time.After(90 * time.Second):
		_ = s.cmd.Process.Kill()
		return fmt.Errorf("certmill dev did not end within 90 s\n%s", s.out)
	}
	if left := processesOf(s.dir); len(left) > 0 {
		return fmt.Errorf("certmill dev left processes behind: %v", left)
	}
	return os.RemoveAll(s.dir)
}

// processesOf lists the command lines of processes that name dir.
func processesOf(dir string) (found []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// pid returns the process of a role.
func (s *service) pid(t *testing.T, role string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "run", role+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func (s *service) kill(t *testing.T, role string) {
	t.Helper()
	if err := syscall.Kill(s.pid(t, role), syscall.SIGKILL); err != nil {
		t.Errorf("killing %s: %v", role, err)
	}
}

// run runs the binary in the service's folder and returns what it printed.
func (s *service) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := s.command(t, args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// printed is run without what goes to stderr.
func (s *service) printed(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := s.command(t, args...).Output()
	return string(out), err
}

func (s *service) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "CERTMILL_CONTEXT="+filepath.Join(s.dir, "cli.yaml"))
	return cmd
}

// runJSON runs the binary with -o json and decodes what it printed.
func (s *service) runJSON(t *testing.T, into any, args ...string) {
	t.Helper()
	out, err := s.run(t, append(args, "-o", "json")...)
	if err != nil {
		t.Fatalf("certmill %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("certmill %s printed no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// gateway connects as the operator.
func (s *service) gateway(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Load(filepath.Join(s.dir, "cli.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Timeout = 60 * time.Second
	g, err := c.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// unique returns a request id and a name that no other run of a test has used: the
// service is shared, and what it has issued once it remembers.
func unique(what string) (requestID, name string) {
	requestID = fmt.Sprintf("%s-%d", what, time.Now().UnixNano())
	return requestID, requestID + ".test"
}

// newCSR makes a P-256 CSR for a DNS name.
func newCSR(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}, DNSNames: []string{name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// inLedger returns the serials of the certificates that the ledger has for a name.
func inLedger(t *testing.T, g *client.Client, name string) map[string]int {
	t.Helper()
	serials, token := map[string]int{}, ""
	for {
		page, err := g.ListCertificates(t.Context(), &certmillv1.ListCertificatesRequest{Name: name, PageSize: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Certificates {
			serials[c.Serial]++
		}
		if token = page.NextPageToken; token == "" {
			return serials
		}
	}
}
