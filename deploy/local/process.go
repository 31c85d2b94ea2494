package local

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Command describes a child process.
type Command struct {
	Name string // for messages
	Path string
	Args []string // without the program's name
	// Env is the whole environment; nil means a minimal one with PATH, HOME and a C locale.
	Env []string
	// Dir is the working directory; "" means ours, or / for another user.
	Dir string
	// Log is the file to which standard output and error are appended. "" means our own
	// standard error; standard output is thrown away then.
	Log string
	// OnDeath is the signal that the child gets when this process dies (Linux); zero
	// means SIGTERM.
	OnDeath syscall.Signal
	// Credential is the user to run as; nil means our own.
	Credential *syscall.Credential
	// Namespace is the file of a network namespace to run in (Linux); "" means our own.
	Namespace string
}

// Process is a child process. Its methods are safe for concurrent use.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; written before done is closed
}

// Start starts a child in a process group of its own, so that Ctrl-C on the terminal
// reaches it only through us, in our order.
func Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Stderr = os.Stderr
	if c.Log != "" {
		log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	cmd.Env = c.Env
	cmd.Dir = "/"
	if c.Dir != "" || c.Credential == nil {
		cmd.Dir = c.Dir
	}
	if cmd.Env == nil {
		cmd.Env = minimalEnv()
	}
	if c.OnDeath == 0 {
		c.OnDeath = syscall.SIGTERM
	}
	cmd.SysProcAttr = attributes(c.OnDeath, c.Credential)
	p := &Process{name: c.Name, log: c.Log, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(c.Namespace, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	return p, nil
}

// run owns the child from its start to its end. The parent-death signal is sent when
// the thread that forked ends, not the process, so the thread is held.
// A thread that has gone into a namespace is never given back: it ends with this
// goroutine.
func (p *Process) run(namespace string, started chan<- error) {
	runtime.LockOSThread()
	if namespace == "" {
		defer runtime.UnlockOSThread()
	} else if err := enter(namespace); err != nil {
		started <- err
		return
	}
	defer childSlack()()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	p.err = p.cmd.Wait()
	close(p.done)
}

func minimalEnv() []string {
	env := []string{"LC_ALL=C.UTF-8"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and has been waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status says how the child ended, for example "signal: killed"; "" while it runs.
func (p *Process) Status() string {
	select {
	case <-p.done:
	default:
		return ""
	}
	if p.err != nil {
		return p.err.Error()
	}
	return "exit status 0"
}

// Err says how the child ended, with the end of its log if it has one; nil while it runs.
func (p *Process) Err() error {
	status := p.Status()
	if status == "" {
		return nil
	}
	if p.log == "" {
		return fmt.Errorf("%s ended (%s)", p.name, status)
	}
	return fmt.Errorf("%s ended (%s); the end of %s:\n%s", p.name, status, p.log, logTail(p.log))
}

// Signal sends a signal to the child; it is no error that the child has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Stop sends sig and waits; after grace the whole process group is killed. It
// returns when the child has been waited for.
func (p *Process) Stop(sig syscall.Signal, grace time.Duration) error {
	if err := p.Signal(sig); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	return p.kill(grace)
}

// kill kills the process group, waits for the child, and says so unless it had ended.
func (p *Process) kill(grace time.Duration) error {
	inTime := p.Status() != ""
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.done
	if inTime {
		return nil
	}
	return fmt.Errorf("%s did not stop within %s and was killed", p.name, grace)
}

// StopGroup is Stop for the child's whole process group, such as a shell with what it has
// started: the shell may end before that does, which has as long as the shell.
func (p *Process) StopGroup(sig syscall.Signal, grace time.Duration) error {
	group := -p.PID()
	if err := syscall.Kill(group, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	for end := time.Now().Add(grace); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if errors.Is(syscall.Kill(group, 0), syscall.ESRCH) { // all have ended, and the child was waited for
			<-p.done
			return nil
		}
	}
	return p.kill(grace) // whoever is left
}
