package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/certmill/certmill/deploy/local"
)

const (
	// restartAfter is how long a supervisor takes to start what has died.
	restartAfter = 500 * time.Millisecond
	// stopGrace bounds the end in order of a node.
	stopGrace = 30 * time.Second
)

// A node is one process of the service with an address of its own. A supervisor starts
// it again when it dies, as systemd and Kubernetes do. Its methods are safe for
// concurrent use.
type node struct {
	name, ip  string
	number    int
	namespace string // "" in plain form
	operator  string // host:port of its operator's listener; "" where it has none
	start     func(context.Context) (*local.Process, error)

	mu     sync.Mutex
	proc   *local.Process
	held   bool          // not to be started
	change chan struct{} // closed and replaced with every change
	deaths int
	extra  []string // of its environment, for the next start
	done   chan struct{}
}

func (n *node) port() string { return "vc" + strconv.Itoa(n.number) }

func (n *node) process() *local.Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// supervise keeps the node running until ctx ends, then stops it in order.
func (n *node) supervise(ctx context.Context, log func(string, ...any)) {
	defer close(n.done)
	for ctx.Err() == nil {
		n.mu.Lock()
		held, change := n.held, n.change
		n.mu.Unlock()
		if held {
			select {
			case <-change:
			case <-ctx.Done():
			}
			continue
		}
		p, err := n.start(ctx)
		if err != nil {
			if ctx.Err() == nil {
				log("%s does not start: %v", n.name, err)
			}
		} else {
			n.mu.Lock()
			n.proc = p
			n.mu.Unlock()
			select {
			case <-p.Done():
				n.mu.Lock()
				n.deaths++
				n.mu.Unlock()
			case <-ctx.Done():
			}
		}
		select {
		case <-time.After(restartAfter):
		case <-ctx.Done():
		}
	}
}

// end stops the process, which supervise has given up.
func (n *node) end() error {
	<-n.done
	p := n.process()
	if p == nil || p.Status() != "" {
		return nil
	}
	signal := syscall.SIGTERM
	if n.name == "postgres" {
		signal = syscall.SIGINT
	}
	return p.Stop(signal, stopGrace)
}

func (n *node) set(held bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = held
	close(n.change)
	n.change = make(chan struct{})
}

// kill kills the process and holds it down until revive.
func (n *node) kill() error {
	n.set(true)
	p := n.process()
	if p == nil {
		return nil
	}
	// Its children too: those of PostgreSQL would go on for a moment.
	for _, pid := range family(p.PID()) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.Done()
	return nil
}

func (n *node) revive() { n.set(false) }

// freeze and thaw stop and continue the process with its children.
func (n *node) freeze() error { return n.all(syscall.SIGSTOP) }
func (n *node) thaw() error   { return n.all(syscall.SIGCONT) }

func (n *node) all(signal syscall.Signal) error {
	p := n.process()
	if p == nil {
		return nil
	}
	for _, pid := range family(p.PID()) {
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// stop ends the process in order and holds it down until revive.
func (n *node) stop() error {
	n.set(true)
	p := n.process()
	if p == nil {
		return nil
	}
	if err := p.Stop(syscall.SIGTERM, stopGrace); err != nil {
		return err
	}
	if s := p.Status(); s != "exit status 0" {
		return fmt.Errorf("%s ended with %s", n.name, s)
	}
	return nil
}

// family returns a process and its descendants.
func family(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// The name stands in parentheses and may hold anything.
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		child, err1 := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, err2 := strconv.Atoi(fields[1])
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], child)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// ready returns nil while the role says that it can work.
func (n *node) ready(ctx context.Context) error {
	if n.operator == "" {
		return nil
	}
	body, status, err := n.ask(ctx, "/readyz")
	if err == nil && status != http.StatusOK {
		err = errors.New(strings.TrimSpace(body))
	}
	return err
}

func (n *node) ask(ctx context.Context, path string) (body string, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.operator+path, nil)
	if err != nil {
		return "", 0, err
	}
	response, err := operators.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	return string(text), response.StatusCode, err
}

var operators = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
