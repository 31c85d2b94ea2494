// Package stack runs the whole service on this machine for a benchmark, as
// `certmill dev` does, and puts it under load by `certmill loadtest`: both are
// processes of their own, as they are for users.
package stack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
)

// startWithin bounds the start of a stack, the first use of its folder included.
const startWithin = 2 * time.Minute

// Stack is a running `certmill dev`.
type Stack struct {
	// Dir is its data directory, Binary the program that runs it.
	Dir, Binary string
	cmd         *exec.Cmd
	stderr      bytes.Buffer
	said        chan string
	env         []string
}

// TempDir makes a folder for stacks and what they leave, and returns what removes it.
func TempDir() (dir string, remove func() error, err error) {
	if dir, err = os.MkdirTemp("", "certmill-bench-"); err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	// PostgreSQL's own user must be able to pass through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return dir, remove, nil
}

// Start runs `certmill dev` on dir with further arguments and environment (NAME=value)
// and returns when everything is up. Stop ends it.
func Start(ctx context.Context, binary, dir string, env []string, args ...string) (*Stack, error) {
	s := &Stack{Dir: dir, Binary: binary, said: make(chan string, 1), env: append(os.Environ(), env...)}
	s.cmd = exec.Command(binary, append([]string{"dev", "--dir", dir, "--quiet"}, args...)...)
	s.cmd.Env, s.cmd.Stderr = s.env, &s.stderr
	// In a group of its own: Ctrl-C reaches it through us, once nobody needs it any more.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	up := make(chan struct{})
	go func() {
		var text strings.Builder
		var once sync.Once
		for lines := bufio.NewScanner(out); lines.Scan(); {
			fmt.Fprintln(&text, lines.Text())
			if strings.HasPrefix(lines.Text(), "certmill is up") {
				once.Do(func() { close(up) })
			}
		}
		s.said <- text.String()
	}()
	timer := time.NewTimer(startWithin)
	defer timer.Stop()
	select {
	case <-up:
		return s, nil
	case text := <-s.said:
		return nil, fmt.Errorf("certmill dev did not come up: %w\n%s%s", s.cmd.Wait(), text, s.stderr.String())
	case <-timer.C:
		err = fmt.Errorf("certmill dev was not up after %s", startWithin)
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(err, s.Stop())
}

// Stop ends the stack in order and waits for it.
func (s *Stack) Stop() error {
	_ = s.cmd.Process.Signal(os.Interrupt) // it may have ended
	text := <-s.said
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("certmill dev: %w\n%s%s", err, text, s.stderr.String())
	}
	return nil
}

// PID is the process of `certmill dev` itself; the roles and servers are below it.
func (s *Stack) PID() int { return s.cmd.Process.Pid }

// Command returns a command of this stack's program in this stack's environment.
func (s *Stack) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.Binary, args...)
	cmd.Env = s.env
	return cmd
}

// Certificates are the flags of Load that say what to ask for: what the shipped profile
// `short` makes, for 24 hours.
var Certificates = []string{"--profile", "short", "--lifetime", "24h", "--lifetime-less", "0.2"}

// AllAnswered refuses a run in which requests failed: its rate is that of something
// else.
func AllAnswered(r *report.Run) error {
	if r.Failed > 0 {
		return fmt.Errorf("%d of %d requests failed: %s: %s", r.Failed, r.Failed+r.OK, r.Errors[0].Kind, r.Errors[0].Example)
	}
	return nil
}

// Load is one run of `certmill loadtest run` on the stack.
func (s *Stack) Load(ctx context.Context, args ...string) (*report.Run, error) {
	return Load(ctx, s.Binary, append([]string{"--dev", s.Dir}, args...)...)
}

// Load is one run of `certmill loadtest run`. A run with a wrong answer, or without
// any, is an error.
func Load(ctx context.Context, binary string, args ...string) (*report.Run, error) {
	cmd := exec.CommandContext(ctx, binary, append([]string{"-o", "json", "loadtest", "run"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("loadtest %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	r, err := Result(out)
	if err != nil {
		return nil, err
	}
	return &r.Runs[0], nil
}

// Result reads what `certmill -o json loadtest run` prints.
func Result(data []byte) (*report.Result, error) {
	var r report.Result
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("reading what loadtest says: %w", err)
	}
	if len(r.Runs) == 0 || r.Runs[0].OK == 0 {
		return nil, errors.New("loadtest got no answer")
	}
	return &r, nil
}

// Operator returns the address of a process's operator's listener, for example that of
// gateway or signer-1.
func (s *Stack) Operator(process string) (string, error) {
	path := filepath.Join(s.Dir, "config", process+".yaml")
	f, err := observe.ReadRoleFile(path)
	if err != nil {
		return "", err
	}
	if f.Telemetry.Listen == "" {
		return "", fmt.Errorf("%s names no telemetry.listen", path)
	}
	return f.Telemetry.Listen, nil
}

// Memory is the resident memory of a process in bytes: now, and the most since its start.
type Memory struct{ Now, Peak int64 }

// Memory returns that of each role by the name of its process: gateway, signer-1, …
func (s *Stack) Memory() (map[string]Memory, error) {
	files, err := filepath.Glob(filepath.Join(s.Dir, "run", "*.pid"))
	if err != nil {
		return nil, err
	}
	out := map[string]Memory{}
	for _, file := range files {
		pid, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := memoryOf(strings.TrimSpace(string(pid)))
		if err != nil {
			return nil, err
		}
		out[strings.TrimSuffix(filepath.Base(file), ".pid")] = m
	}
	return out, nil
}

// memoryOf reads VmRSS and VmHWM of proc(5).
func memoryOf(pid string) (Memory, error) {
	var m Memory
	data, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		field := map[string]*int64{"VmRSS": &m.Now, "VmHWM": &m.Peak}[name]
		if field == nil {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, fmt.Errorf("reading the memory of process %s: %w", pid, err)
		}
		*field = kb << 10
	}
	if m.Now == 0 || m.Peak == 0 {
		return m, fmt.Errorf("process %s tells no memory", pid)
	}
	return m, nil
}
