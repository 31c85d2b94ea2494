package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/sysmon"
)

const (
	restartMin = 100 * time.Millisecond
	restartMax = 5 * time.Second
	// settled is how long a role must live for its next restart to be quick again.
	settled = 10 * time.Second
	// stopGrace is how long a role may take to end in order.
	stopGrace = 30 * time.Second
	// hopeless is how often a role may die before it is first ready.
	hopeless = 3
	// readyWithin bounds the wait for the roles at the start.
	readyWithin = 90 * time.Second
)

// child is a role in a process of its own.
type child struct {
	name string
	args []string
	// operator is the host:port of its operator's listener.
	operator string
	// ports are the names of the ports it listens on, held for it until its start.
	ports  []string
	deaths atomic.Int32

	log, pid string // files
	stop     chan struct{}
	done     chan struct{}
}

// startRoles starts every role under supervision, in the order of settings.
func (d *dev) startRoles(context.Context) error {
	if err := os.MkdirAll(d.dir.Path("run"), 0o700); err != nil {
		return err
	}
	for _, c := range d.roles {
		var err error
		if c.log, err = d.dir.Log(c.name); err != nil {
			return err
		}
		c.pid = d.dir.Path("run", c.name+".pid")
		process, err := d.launch(c)
		if err != nil {
			return err
		}
		c.stop, c.done = make(chan struct{}), make(chan struct{})
		go d.keep(c, process)
	}
	return nil
}

func (d *dev) launch(c *child) (*local.Process, error) {
	for _, name := range c.ports {
		d.dir.Release(name)
	}
	p, err := local.Start(local.Command{Name: c.name, Path: d.binary, Args: c.args, Env: d.environment(c.name), Log: c.log})
	if err != nil {
		return nil, err
	}
	// By rename: who reads the file sees a whole number at any time.
	err = os.WriteFile(c.pid+".new", []byte(strconv.Itoa(p.PID())+"\n"), 0o644)
	return p, errors.Join(err, os.Rename(c.pid+".new", c.pid))
}

// environment is what a role inherits. They share this machine: the scheduler of each is
// told that half of the cores are its own. Work that waits for a core of its own process
// costs less than threads of seven processes that look for work on two cores. Those
// through which each request comes may have all: the gateway, which is often the only one
// with work, and a signer, whose other work would wait for the whole time that a message's
// signatures take in C (a quiet sysmon takes no core away from it meanwhile).
func (d *dev) environment(role string) []string {
	env := append(os.Environ(), "SOFTHSM2_CONF="+d.hsm.ConfigFile)
	if d.quiet { // SoftHSM computes: nobody waits in C
		env = append(env, sysmon.Environment+"=1")
	}
	if role != "gateway" && !strings.HasPrefix(role, "signer-") && os.Getenv("GOMAXPROCS") == "" {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(share()))
	}
	return env
}

// share is how many cores one process of the stack is to use.
func share() int { return max(1, runtime.NumCPU()/2) }

// keep restarts a role that ends, waiting longer each time, until stop is closed;
// then it ends the role in order.
func (d *dev) keep(c *child, p *local.Process) {
	defer close(c.done)
	wait, since := restartMin, time.Now()
	for {
		if p != nil {
			select {
			case <-c.stop:
				if err := p.Stop(syscall.SIGTERM, stopGrace); err != nil {
					d.say("%v", err)
				}
				_ = os.Remove(c.pid)
				return
			case <-p.Done():
			}
			if time.Since(since) > settled {
				wait = restartMin
			}
			c.deaths.Add(1)
			d.say("%s ended (%s); starting it again in %s; its log: %s", c.name, p.Status(), wait, d.path("log", filepath.Base(c.log)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.stop:
			timer.Stop()
			_ = os.Remove(c.pid)
			return
		case <-timer.C:
		}
		wait, since = min(2*wait, restartMax), time.Now()
		var err error
		if p, err = d.launch(c); err != nil {
			d.say("%v", err)
		}
	}
}

// stopRoles ends the roles, the last started first: the gateway before the signers,
// so that what was accepted is still signed.
func (d *dev) stopRoles() {
	for _, c := range slices.Backward(d.roles) {
		if c.stop == nil {
			continue
		}
		close(c.stop)
		<-c.done
	}
}

// waitReady waits until every role's /readyz says so.
func (d *dev) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for _, c := range d.roles {
		for {
			err := ask(ctx, c.operator)
			if err == nil {
				break
			}
			if n := c.deaths.Load(); n >= hopeless {
				return fmt.Errorf("%s ended %d times; the end of its log %s:\n%s", c.name, n, d.path("log", filepath.Base(c.log)), lastLine(c.log))
			}
			if !pause(ctx, 50*time.Millisecond) {
				return fmt.Errorf("%s is not ready after %s: %w; its log: %s", c.name, readyWithin, err, d.path("log", filepath.Base(c.log)))
			}
		}
	}
	return nil
}

// lastLine returns the last line of a log that is not empty.
func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}

// ask returns nil when the role at an operator's listener is ready.
func ask(ctx context.Context, operator string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+operator+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := operators.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(string(body))
	}
	return err
}

// operators asks the roles' operator listeners.
var operators = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second}}
