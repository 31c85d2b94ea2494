package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/config"
)

// A stack is the whole service: three NATS nodes, PostgreSQL, Redis, and every role at
// least twice, each a process with an address of its own.
type stack struct {
	dir    *local.Dir
	binary string
	net    *network
	say    func(string, ...any)

	hsm   *local.SoftHSM
	token local.SoftHSMToken

	nodes    []*node
	byName   map[string]*node
	settings map[string]settings // of the roles, by node
	stopAll  context.CancelFunc
	database config.Ledger
}

// The nodes, in the order of their start.
var nodeNames = []string{
	"postgres", "redis", "nats-1", "nats-2", "nats-3", "maintenance",
	"responder-1", "responder-2", "presigner-1", "presigner-2",
	"signer-1", "signer-2", "signer-3", "gateway-1", "gateway-2",
}

// spare is the signer that only runs while the number of signers is changed.
const spare = "signer-3"

// ledgerSize is the file system of PostgreSQL, in bytes.
const ledgerSize = 400 << 20

func newStack(dir *local.Dir, binary string, net *network, say func(string, ...any)) *stack {
	s := &stack{dir: dir, binary: binary, net: net, say: say, byName: map[string]*node{}, settings: map[string]settings{}}
	for i, name := range nodeNames {
		n := &node{name: name, number: i + 1, ip: net.address(i + 1), change: make(chan struct{}), done: make(chan struct{}), held: name == spare}
		s.nodes = append(s.nodes, n)
		s.byName[name] = n
	}
	return s
}

// up starts everything, makes the CA, and returns when every role is ready.
func (s *stack) up(ctx context.Context) error {
	if err := s.net.open(ctx); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.net.add(ctx, n); err != nil {
			return err
		}
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopAll = stop
	for _, step := range []func(context.Context) error{s.prepareServers, s.writeSettings} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	for _, n := range s.nodes[:5] {
		go n.supervise(life, s.say)
	}
	if err := s.await(ctx, "the database", func() error { return s.byNameReady("postgres") }); err != nil {
		return err
	}
	if err := s.makeCA(ctx); err != nil {
		return err
	}
	for _, n := range s.nodes[5:] {
		go n.supervise(life, s.say)
	}
	return s.await(ctx, "every role", func() error { return s.ready(ctx) })
}

func (s *stack) byNameReady(name string) error {
	if s.byName[name].process() == nil {
		return errors.New(name + " has not started")
	}
	return nil
}

// ready returns nil when every role that is to run is ready.
func (s *stack) ready(ctx context.Context) error {
	for _, n := range s.nodes {
		n.mu.Lock()
		held := n.held
		n.mu.Unlock()
		if held {
			continue
		}
		if err := s.byNameReady(n.name); err != nil {
			return err
		}
		if err := n.ready(ctx); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

// await asks until there is no error, for 90 s at most.
func (s *stack) await(ctx context.Context, what string, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; the logs are in %s", what, err, s.dir.Path("log"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// down stops everything, the last started first.
func (s *stack) down() error {
	if s.stopAll == nil {
		return nil
	}
	s.stopAll()
	var errs []error
	for _, n := range slices.Backward(s.nodes) {
		select {
		case <-n.done:
			errs = append(errs, n.end())
		case <-time.After(time.Minute):
			// Never started.
		}
	}
	return errors.Join(errs...)
}

// makeCA migrates the ledger and makes the CA and our own certificates, with the
// commands that anybody would use.
func (s *stack) makeCA(ctx context.Context) error {
	signer := s.dir.Path("config", "signer-1.yaml")
	for _, args := range [][]string{
		{"ledger", "migrate", "--config", s.dir.Path("config", "maintenance.yaml")},
		{"ca", "init", "--config", signer, "--out", s.dir.Path()},
		{"ca", "issue", "--config", signer, "--profile", "gateway-tls", "--dns", "localhost", "--ip", s.byName["gateway-1"].ip, "--ip", s.byName["gateway-2"].ip,
			"--out", s.dir.Path("gateway.pem"), "--key-out", s.dir.Path("gateway.key")},
		{"ca", "issue", "--config", signer, "--profile", "operator", "--uri", callerURI, "--out", s.dir.Path("caller.pem"), "--key-out", s.dir.Path("caller.key")},
	} {
		if _, err := s.command(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// command runs our own binary and returns its standard output.
func (s *stack) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Env = s.environment("")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("certmill %s: %w\n%s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

func (s *stack) environment(node string) []string {
	env := append(os.Environ(), "SOFTHSM2_CONF="+s.hsm.ConfigFile)
	if n := s.byName[node]; n != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		env = append(env, n.extra...)
	}
	return env
}

// of returns the nodes of a role that are to run.
func (s *stack) of(role string) (found []*node) {
	for _, n := range s.nodes {
		if n.name == role || (strings.HasPrefix(n.name, role+"-") && n.name != spare) {
			found = append(found, n)
		}
	}
	return found
}

// role returns how a role's process is started.
func (s *stack) role(n *node, command ...string) func(context.Context) (*local.Process, error) {
	return func(context.Context) (*local.Process, error) {
		log, err := s.dir.Log(n.name)
		if err != nil {
			return nil, err
		}
		args := append(slices.Clone(command), "--config", s.dir.Path("config", n.name+".yaml"))
		return local.Start(local.Command{Name: n.name, Path: s.binary, Args: args, Env: s.environment(n.name), Log: log, OnDeath: syscall.SIGKILL, Namespace: n.namespace})
	}
}

// ballast is the file that fills the ledger's disk.
func (s *stack) ballast() string { return filepath.Join(s.dir.Path("pg"), "ballast") }
