package deploytest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/deploy/secrets"
)

// Options are the choices for Start.
type Options struct {
	// Certmill is the binary of every role; NATS is that of nats-server.
	Certmill, NATS string
	// Without names services that are not started.
	Without []string
}

// Stack is the services at work. Its methods must not be called at once for the same
// service.
type Stack struct {
	t       testing.TB
	o       Options
	file    *File
	deploy  string // the repository's folder
	project string // where secrets, public and data lie
	dir     *local.Dir
	ledger  *local.PostgreSQL

	mu        sync.Mutex
	ports     map[string]string // service:port of compose to the port here
	processes map[string]*local.Process
	started   []string
}

// stopGrace is how long a service may take to end in order.
const stopGrace = 40 * time.Second

// Start makes the secrets, starts every service in order and waits until the roles are
// ready. All of it is stopped after the test. A missing program skips the test, and
// fails it with CI=true.
func Start(t testing.TB, o Options) *Stack {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	s := &Stack{t: t, o: o, deploy: filepath.Dir(filepath.Dir(here)), processes: map[string]*local.Process{}, ports: map[string]string{}}
	var err error
	// Not t.TempDir: PostgreSQL's user must be able to pass through.
	root, err := os.MkdirTemp("", "certmill-stack-")
	s.check(err)
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	s.dir, err = local.OpenDir(root)
	s.check(err)
	t.Cleanup(func() { _ = s.dir.Close() })
	s.project = s.dir.Path("project")
	s.file, err = Read(filepath.Join(s.deploy, "compose", "compose.yaml"))
	s.check(err)
	_, err = secrets.Make(s.Secrets(), nil, time.Now())
	s.check(err)
	t.Cleanup(s.stop)
	s.startLedger()
	var roles []string
	for _, name := range s.file.inOrder() {
		service := s.file.Services[name]
		if slices.Contains(o.Without, name) || s.replaced(name, service) {
			continue
		}
		s.prepare(name)
		if service.once() {
			s.runOnce(name)
			continue
		}
		for _, d := range service.DependsOn {
			if slices.Contains(roles, d) {
				s.WaitReady(d)
			}
		}
		s.Launch(name, o.Certmill)
		roles = append(roles, name)
	}
	for _, name := range roles {
		s.WaitReady(name)
	}
	return s
}

// replaced reports whether the service has no process of its own here.
func (s *Stack) replaced(name string, service *Service) bool {
	return strings.HasPrefix(service.Image, "cockroachdb/") || name == "prometheus" || name == "grafana"
}

// check skips or fails the test for err.
func (s *Stack) check(err error) {
	s.t.Helper()
	var missing *local.MissingError
	if errors.As(err, &missing) && os.Getenv("CI") != "true" {
		s.t.Skip(err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *Stack) startLedger() {
	s.t.Helper()
	config := filepath.Join(s.deploy, "config")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	s.ledger, err = local.StartPostgreSQL(ctx, s.dir, local.PostgreSQLOptions{Throwaway: true, Secure: &local.SecurePostgreSQL{
		Server: filepath.Join(s.Secrets(), "ledger"), Root: filepath.Join(s.Secrets(), "root"),
		Config: filepath.Join(config, "postgresql.conf"), HBA: filepath.Join(config, "pg_hba.conf"),
	}})
	s.check(err)
	s.check(s.ledger.CreateDatabase(ctx, "certmill"))
}

// Secrets returns the folder of secrets.
func (s *Stack) Secrets() string { return filepath.Join(s.project, "secrets") }

// Public returns the folder with what the ceremony publishes, and the operator's key.
func (s *Stack) Public() string { return filepath.Join(s.project, "public") }

// Folder returns the working directory of a service.
func (s *Stack) Folder(service string) string { return s.dir.Path(service) }

// LedgerURL returns the connection string of one of the ledger's users.
func (s *Stack) LedgerURL(user, part string) string {
	folder := filepath.Join(s.Secrets(), part)
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/certmill?sslmode=verify-full&sslrootcert=%s&sslcert=%s&sslkey=%s",
		user, s.ledger.Port(), filepath.Join(folder, "ca.pem"), filepath.Join(folder, "tls.pem"), filepath.Join(folder, "tls.key"))
}

// Address returns where a service listens that compose has at the given port.
func (s *Stack) Address(service string, port int) string {
	return "127.0.0.1:" + s.port(service, strconv.Itoa(port))
}

// port returns the port that stands for one of a service's; "" for no service.
func (s *Stack) port(service, port string) string {
	if s.file.Services[service] == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := service + ":" + port
	if s.ports[name] == "" {
		p, err := s.dir.Port(name, 0)
		s.check(err)
		s.ports[name] = strconv.Itoa(p)
	}
	return s.ports[name]
}

// prepare makes a service's working directory: a link for each mount.
func (s *Stack) prepare(name string) {
	s.t.Helper()
	mounts, err := s.file.Services[name].mounts(s.project, s.deploy)
	s.check(err)
	for target, source := range mounts {
		if _, err := os.Stat(source); err != nil {
			s.check(os.MkdirAll(source, 0o700))
		}
		if target == "data" {
			// A folder and no link, since Redis leaves it by "..".
			s.check(os.MkdirAll(filepath.Join(s.Folder(name), target), 0o700))
			continue
		}
		link := filepath.Join(s.Folder(name), target)
		s.check(errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(source, link)))
	}
}

// environment returns a service's environment on loopback.
func (s *Stack) environment(name string) []string {
	path := filepath.Dir(s.o.Certmill) + ":" + os.Getenv("PATH")
	env := []string{"PATH=" + path, "HOME=" + s.Folder(name), "LC_ALL=C.UTF-8"}
	for key, value := range s.file.Services[name].Environment {
		switch key {
		case "PGHOST":
			value = "127.0.0.1"
		case "PGPORT":
			value = strconv.Itoa(s.ledger.Port())
		default:
			value = translate(value, name, s.port)
		}
		env = append(env, key+"="+value)
	}
	return env
}

// command returns the program of a service and its arguments.
func (s *Stack) command(name, certmill string) (string, []string) {
	s.t.Helper()
	service := s.file.Services[name]
	args := slices.Clone(service.Command)
	if len(service.Entrypoint) > 0 {
		// Compose writes $$ for a dollar of the shell's.
		script := strings.ReplaceAll(args[0], "$$", "$")
		return service.Entrypoint[0], append(slices.Clone(service.Entrypoint[1:]), script)
	}
	switch {
	case strings.HasPrefix(service.Image, "certmill"):
		return certmill, args
	case strings.HasPrefix(service.Image, "nats:"):
		return s.o.NATS, args
	case strings.HasPrefix(service.Image, "redis:"):
		server, err := local.Find("redis-server")
		s.check(err)
		for i := 1; i+1 < len(args); i++ { // --replicaof host port
			if p := s.port(args[i], args[i+1]); p != "" {
				args[i], args[i+1] = "127.0.0.1", p
			}
		}
		return server, append(args[1:], "--bind", "127.0.0.1", "--tls-port", s.port(name, "6379"))
	}
	s.t.Fatalf("there is no program here for the image %s of %s", service.Image, name)
	return "", nil
}

// Launch starts a service, the roles with the given certmill.
func (s *Stack) Launch(name, certmill string) {
	s.t.Helper()
	env := s.environment(name)
	path, args := s.command(name, certmill)
	log, err := s.dir.Log(name)
	s.check(err)
	s.release(name)
	p, err := local.Start(local.Command{Name: name, Path: path, Args: args, Env: env, Dir: s.Folder(name), Log: log})
	s.check(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes[name] = p
	if !slices.Contains(s.started, name) {
		s.started = append(s.started, name)
	}
}

// release gives a service's ports to it.
func (s *Stack) release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for port := range s.ports {
		if strings.HasPrefix(port, name+":") {
			s.dir.Release(port)
		}
	}
}

// runOnce runs a service that ends.
func (s *Stack) runOnce(name string) {
	s.t.Helper()
	path, args := s.command(name, s.o.Certmill)
	if out, err := s.output(name, path, args); err != nil {
		s.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Run runs certmill with a service's files and environment, and returns what it says.
func (s *Stack) Run(service string, args ...string) (string, error) {
	return s.output(service, s.o.Certmill, args)
}

func (s *Stack) output(name, path string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = s.Folder(name), s.environment(name), 5*time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Client returns the flags with which certmill's commands reach a gateway as the
// operator that the ceremony has made.
func (s *Stack) Client(gateway string) []string {
	in := func(name string) string { return filepath.Join(s.Public(), name) }
	return []string{"--gateway", s.Address(gateway, 8444), "--ca", in("root.pem"), "--cert", in("operator.pem"), "--key", in("operator.key")}
}

// Process returns a service's process.
func (s *Stack) Process(name string) *local.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[name]
}

// Replace ends a service in order and starts it with another certmill.
func (s *Stack) Replace(name, certmill string) error {
	if err := s.Process(name).Stop(syscall.SIGTERM, stopGrace); err != nil {
		return err
	}
	s.Launch(name, certmill)
	s.WaitReady(name)
	return nil
}

// Restart ends services in order, all at once, starts them again and waits until they
// are ready.
func (s *Stack) Restart(names ...string) error {
	ended := make([]error, len(names))
	var ending sync.WaitGroup
	for i, name := range names {
		ending.Go(func() { ended[i] = s.Process(name).Stop(syscall.SIGTERM, stopGrace) })
	}
	ending.Wait()
	for _, name := range names {
		s.Launch(name, s.o.Certmill)
	}
	for _, name := range names {
		s.WaitReady(name)
	}
	return errors.Join(ended...)
}

// readyWithin bounds the wait for one service.
const readyWithin = 60 * time.Second

// WaitReady waits until a role says that it is ready; servers have no such word, and
// the roles wait for them.
func (s *Stack) WaitReady(name string) {
	s.t.Helper()
	if !strings.HasPrefix(s.file.Services[name].Image, "certmill") {
		return
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://" + s.Address(name, 9090) + "/readyz"
	last := "no answer"
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := s.Process(name).Err(); err != nil {
			s.t.Fatal(err)
		}
		response, err := client.Get(url)
		if err != nil {
			continue
		}
		last = response.Status
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return
		}
	}
	for _, other := range s.started {
		if p := s.Process(other); p != nil && p.Err() != nil {
			s.t.Error(p.Err())
		}
	}
	s.t.Fatalf("%s is not ready after %s (%s); its log:\n%s", name, readyWithin, last, s.Log(name))
}

// Log returns the end of a service's log.
func (s *Stack) Log(name string) string {
	data, err := os.ReadFile(s.dir.Path("log", name+".log"))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-3000):])
}

// stop ends everything, what was started last first.
func (s *Stack) stop() {
	for _, name := range slices.Backward(s.started) {
		p := s.Process(name)
		if p.Status() != "" {
			continue
		}
		if err := p.Stop(syscall.SIGTERM, stopGrace); err != nil {
			s.t.Error(err)
		}
	}
	if s.ledger != nil {
		if err := s.ledger.Stop(); err != nil {
			s.t.Error(err)
		}
	}
}
