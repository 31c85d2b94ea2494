// Package meshtest tries the gateway with the clients that meshes really use: Istio's
// CA client, unmodified, and go-spiffe. It is a module of its own, so that their
// dependencies stay out of the product's, and it runs the built binary: Istio's protobuf
// package and ours cannot live in one process.
package meshtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// service is one `certmill dev`, which the tests share, and a gateway of the tests' own
// beside it, which they start and stop.
type service struct {
	dir, binary string
	cmd         *exec.Cmd
	out         *output
	exited      chan error
	key         *ecdsa.PrivateKey // of the cluster's tokens
	// addresses of the tests' own gateway
	grpc, https, metrics string
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

var shared *service

func TestMain(m *testing.M) {
	code := func() int {
		s, skip, err := start(os.Getenv("CERTMILL_BIN"))
		switch {
		case skip != "" && os.Getenv("CI") != "true":
			fmt.Println("skipped:", skip)
			return 0
		case skip != "":
			err = fmt.Errorf("%s", skip)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		shared = s
		code := m.Run()
		if err := s.stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
		return code
	}()
	os.Exit(code)
}

// start brings up a service of this binary, which it builds where it is empty; skip says
// what is not installed.
func start(binary string) (s *service, skip string, err error) {
	for _, program := range []string{"redis-server", "softhsm2-util"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, program + " is missing: make test-deps", nil
		}
	}
	dir, err := os.MkdirTemp("", "certmill-mesh")
	if err != nil {
		return nil, "", err
	}
	s = &service{dir: dir, binary: binary, out: &output{}, exited: make(chan error, 1)}
	if s.binary == "" {
		s.binary = filepath.Join(dir, "certmill")
		build := exec.Command("go", "build", "-o", s.binary, "./cmd/certmill")
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			return nil, "", fmt.Errorf("building certmill: %w\n%s", err, out)
		}
	}
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, "", err
	}
	if err := s.publishKeys(); err != nil {
		return nil, "", err
	}
	profiles := filepath.Join(dir, "data", "profiles")
	if err := errors.Join(os.MkdirAll(profiles, 0o755), os.WriteFile(filepath.Join(profiles, "fleet.yaml"), []byte(fleetProfile), 0o644)); err != nil {
		return nil, "", err
	}
	for _, address := range []*string{&s.grpc, &s.https, &s.metrics} {
		if *address, err = freeAddress(); err != nil {
			return nil, "", err
		}
	}
	s.cmd = exec.Command(s.binary, "dev", "--dir", filepath.Join(dir, "data"))
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, s.out, s.out
	if err := s.cmd.Start(); err != nil {
		return nil, "", err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	return s, "", s.awaitUp()
}

func (s *service) awaitUp() error {
	deadline := time.After(4 * time.Minute)
	for {
		if strings.Contains(s.out.String(), "Ctrl-C") {
			return nil
		}
		select {
		case err := <-s.exited:
			return fmt.Errorf("certmill dev ended: %w\n%s", err, s.out)
		case <-deadline:
			_ = s.cmd.Process.Signal(os.Interrupt)
			return fmt.Errorf("certmill dev is not up after four minutes\n%s", s.out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *service) stop() error {
	_ = s.cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-s.exited:
		if err != nil {
			return fmt.Errorf("certmill dev: %w\n%s", err, s.out)
		}
	case <-time.After(90 * time.Second):
		_ = s.cmd.Process.Kill()
		return fmt.Errorf("certmill dev did not end within 90 s\n%s", s.out)
	}
	return os.RemoveAll(s.dir)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// data names a file of the service.
func (s *service) data(name string) string { return filepath.Join(s.dir, "data", name) }

// publishKeys writes the cluster's keys as its API server would.
func (s *service) publishKeys() error {
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: "k", Use: "sig", Algorithm: "ES256"}}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "jwks.json"), set, 0o600)
}

const clusterIssuer = "https://kubernetes.default.svc.cluster.local"

// token is that of a pod's service account, for lifetime.
func (s *service) token(t testing.TB, namespace, account string, lifetime time.Duration) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": clusterIssuer, "sub": "system:serviceaccount:" + namespace + ":" + account, "aud": []string{"istio-ca"},
		"iat": now.Unix() - 60, "exp": now.Add(lifetime).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "u"},
			"pod": map[string]any{"name": account + "-1", "uid": "p"},
		},
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// gateway is the tests' own gateway.
type gateway struct {
	cmd  *exec.Cmd
	out  *output
	done chan error
}

// gateway starts a gateway on the tests' ports; settings are KEY=value of its
// environment. It runs until it is killed or the test ends.
func (s *service) gateway(t testing.TB, settings ...string) *gateway {
	t.Helper()
	clusters := fmt.Sprintf(`[{name: c1, trust_domain: cluster.local, issuer: %q, jwks_file: %q, node_accounts: [istio-system/ztunnel]}]`,
		clusterIssuer, filepath.Join(s.dir, "jwks.json"))
	g := &gateway{cmd: exec.Command(s.binary, "gateway", "--config", s.data("config/gateway.yaml")), out: &output{}, done: make(chan error, 1)}
	g.cmd.Env = append(os.Environ(),
		"CERTMILL_GATEWAY_LISTEN="+s.https, "CERTMILL_GATEWAY_GRPC_LISTEN="+s.grpc, "CERTMILL_GATEWAY_TELEMETRY_LISTEN="+s.metrics,
		"CERTMILL_GATEWAY_AUTH_KUBERNETES="+clusters, "CERTMILL_GATEWAY_ISTIO_PROFILE=mesh", "CERTMILL_GATEWAY_CONSOLE_LISTEN=")
	g.cmd.Env = append(g.cmd.Env, settings...)
	g.cmd.Stdout, g.cmd.Stderr = g.out, g.out
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { g.done <- g.cmd.Wait() }()
	t.Cleanup(func() { g.kill() })
	s.awaitGateway(t, g)
	return g
}

// awaitGateway waits until the gateway's port is open.
func (s *service) awaitGateway(t testing.TB, g *gateway) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", s.grpc); err == nil {
			_ = c.Close()
			return
		}
		select {
		case err := <-g.done:
			g.done <- err
			t.Fatalf("the gateway ended: %v\n%s", err, g.out)
		default:
		}
	}
	t.Fatalf("the gateway does not listen\n%s", g.out)
}

// kill ends the gateway as a crash does, and waits for its end.
func (g *gateway) kill() {
	_ = g.cmd.Process.Signal(syscall.SIGKILL)
	err := <-g.done
	g.done <- err
}

// run runs one of the binary's commands as an operator of the service.
func (s *service) run(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Env = append(os.Environ(), "CERTMILL_CONTEXT="+s.data("cli.yaml"), "SOFTHSM2_CONF="+s.data("softhsm2.conf"))
	out, err := cmd.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		err = fmt.Errorf("certmill %s: %w\n%s", strings.Join(args, " "), err, failed.Stderr)
	}
	return out, err
}

// countOf asks the service how many certificates a name has.
func (s *service) countOf(t testing.TB, uri string) int {
	t.Helper()
	out, err := s.run(t, "list", "--name", "uri:"+uri, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Certificates []json.RawMessage `json:"certificates"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("certmill list printed %s: %v", out, err)
	}
	return len(list.Certificates)
}
