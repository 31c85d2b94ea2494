package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
)

// modelHSM is SoftHSM behind a shim that takes the time of a hardware HSM: each signer
// has one of its own, of so many cores, each busy with a signature for so long. The
// latency is chosen so that sixteen signers leave CPU free: it is the signers' number
// that is measured, not the machine.
type modelHSM struct {
	cores   int
	latency time.Duration
}

var signerSteps = []int{1, 2, 4, 8, 16}

const (
	// settle follows a change before its rate is counted, held is how long it is.
	settle = 1500 * time.Millisecond
	held   = 5 * time.Second
	// queued is how many requests wait for each core of the largest step: every signer
	// finds work whenever it asks.
	queued = 6
)

// scale is what more signers bring.
type scale struct {
	HSMCores   int     `json:"hsm_cores"`
	HSMLatency float64 `json:"hsm_latency_ms"`
	Callers    int     `json:"callers"`
	Steps      []step  `json:"steps"`
	// Answered is what was answered in all, while signers came, went and died; Failed is
	// what was not.
	Answered int64 `json:"answered"`
	Failed   int64 `json:"failed"`
	// Added, Stopped and Killed are how many signers came and went meanwhile.
	Added   int `json:"signers_added"`
	Stopped int `json:"signers_stopped"`
	Killed  int `json:"signers_killed"`
	// Longest is the longest that a request took, in milliseconds.
	Longest float64 `json:"max_ms"`
}

// step is the rate with so many signers.
type step struct {
	Signers int     `json:"signers"`
	Rate    float64 `json:"per_second"`
	// Linear is the rate over that of the first step times the signers.
	Linear float64 `json:"linear"`
	// Machine is how many cores were busy, Roles by whom.
	Machine float64            `json:"machine_cores"`
	Roles   map[string]float64 `json:"roles_cores"`

	from, to observe.Sample
}

func (s *scale) print() {
	fmt.Printf("\nsigners, each with an HSM of its own (%d cores, %.0f ms a signature), %d callers\n", s.HSMCores, s.HSMLatency, s.Callers)
	for _, p := range s.Steps {
		fmt.Printf("  %2d: %6.0f/s  %.2f of linear  %.2f cores busy (gateway %.2f, signers %.2f, PostgreSQL %.2f)\n",
			p.Signers, p.Rate, p.Linear, p.Machine, p.Roles["gateway"], p.Roles["signer"], p.Roles["postgres"])
	}
	fmt.Printf("  meanwhile %d signers were added, %d stopped and %d killed: %d of %d requests failed, the longest took %.0f ms\n",
		s.Added, s.Stopped, s.Killed, s.Failed, s.Answered+s.Failed, s.Longest)
}

// measureScale goes on with the stack in dir, now with one signer and a modelled HSM,
// keeps it busy, and adds and takes away signers meanwhile.
func measureScale(ctx context.Context, o *options, dir string) (out *scale, err error) {
	shim, env, err := stack.ModelHSM(dir + "-hsm")
	if err != nil {
		return nil, err
	}
	// Callers that wait as long as it takes: what one signer is left with is ten seconds of
	// work, which the gateway would otherwise refuse.
	s, err := stack.Start(ctx, o.binary, dir, append(env, "CERTMILL_GATEWAY_LIMITS_MAX_WAIT=0s"), "--signers", "1")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	// From here on; while the CA was made the HSM was fast.
	if err := shim.Set(fmt.Sprintf("C_Sign cores %d %d", o.hsm.cores, o.hsm.latency.Milliseconds())); err != nil {
		return nil, err
	}
	watch := observe.New(observe.Config{Tree: s.PID()})
	defer watch.Close()
	crew := &crew{stack: s, started: watch.Follow}
	defer func() { err = errors.Join(err, crew.end()) }()
	out = &scale{HSMCores: o.hsm.cores, HSMLatency: float64(o.hsm.latency.Milliseconds()), Callers: queued * o.hsm.cores * signerSteps[len(signerSteps)-1]}
	load, err := startLoad(s, out.Callers)
	if err != nil {
		return nil, err
	}
	err = out.change(ctx, crew, watch)
	result, lerr := load.end()
	if err = errors.Join(err, lerr); err != nil {
		return nil, err
	}
	return out, out.take(result)
}

// change goes through the steps, then takes signers away again: some in order, one
// without a warning.
func (s *scale) change(ctx context.Context, crew *crew, watch *observe.Observer) error {
	for _, n := range signerSteps {
		if err := crew.grow(ctx, n-1); err != nil { // the stack has one itself
			return err
		}
		if err := pause(ctx, settle); err != nil {
			return err
		}
		from := watch.Sample(ctx)
		if err := pause(ctx, held); err != nil {
			return err
		}
		s.Steps = append(s.Steps, newStep(n, from, watch.Sample(ctx)))
	}
	s.Added = len(crew.members)
	if err := crew.kill(); err != nil {
		return err
	}
	s.Killed = 1
	s.Stopped = len(crew.members)
	if err := crew.end(); err != nil {
		return err
	}
	return pause(ctx, 2*time.Second)
}

func newStep(signers int, from, to observe.Sample) step {
	use := observe.Between(from, to)
	st := step{Signers: signers, Machine: use.Machine, Roles: map[string]float64{}, from: from, to: to}
	for _, r := range use.Roles {
		st.Roles[r.Name] = r.Cores
	}
	return st
}

// take reads the rates out of the result.
func (s *scale) take(r *report.Result) error {
	run := &r.Runs[0]
	s.Answered, s.Failed, s.Longest = run.OK, run.Failed, run.Latency.Max
	for i := range s.Steps {
		st := &s.Steps[i]
		var ok int64
		var seconds float64
		for _, p := range run.Series {
			if at := r.Started.Add(seconds64(p.At)); !at.Before(st.from.At) && !at.Add(seconds64(p.Seconds)).After(st.to.At) {
				ok += p.OK
				seconds += p.Seconds
			}
		}
		if seconds == 0 || ok == 0 {
			return fmt.Errorf("nothing was answered with %d signers", st.Signers)
		}
		st.Rate = float64(ok) / seconds
		st.Linear = st.Rate / s.Steps[0].Rate * float64(s.Steps[0].Signers) / float64(st.Signers)
	}
	return nil
}

func seconds64(v float64) time.Duration { return time.Duration(v * float64(time.Second)) }

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// load is a load test under way.
type load struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func startLoad(s *stack.Stack, callers int) (*load, error) {
	// It is interrupted when the steps are done; the length is a bound.
	args := append([]string{"-o", "json", "loadtest", "run", "--dev", s.Dir}, certificates("--callers", strconv.Itoa(callers))...)
	l := &load{cmd: s.Command(append(args, "-d", "5m", "--warmup", "1s", "--timeout", "30s", "--check", "0.01")...)}
	l.cmd.Stdout, l.cmd.Stderr = &l.stdout, &l.stderr
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return l, l.cmd.Start()
}

func (l *load) end() (*report.Result, error) {
	_ = l.cmd.Process.Signal(os.Interrupt) // it may have ended
	err := l.cmd.Wait()
	r, rerr := stack.Result(l.stdout.Bytes())
	if rerr == nil && r.Runs[0].Ended == report.Interrupted {
		err = nil // for others that is a failure
	}
	if err = errors.Join(err, rerr); err != nil {
		return nil, fmt.Errorf("loadtest: %w\n%s", err, l.stderr.String())
	}
	return r, nil
}

// crew is the signers beside the stack's own.
type crew struct {
	stack   *stack.Stack
	started func(pid int)
	members []*member
}

type member struct {
	cmd      *exec.Cmd
	operator string
	stderr   bytes.Buffer
}

// grow starts signers until there are n, one after the other, each when the one before
// it is ready: SoftHSM's folder is no place for eight processes that open it at once.
func (c *crew) grow(ctx context.Context, n int) error {
	for i := len(c.members); i < n; i++ {
		port, err := freePort()
		if err != nil {
			return err
		}
		m := &member{cmd: c.stack.Command("signer", "--config", filepath.Join(c.stack.Dir, "config", "signer-1.yaml")), operator: port}
		m.cmd.Env = append(m.cmd.Env, "CERTMILL_SIGNER_NAME=bench-"+strconv.Itoa(i+2), "CERTMILL_SIGNER_TELEMETRY_LISTEN="+port,
			"CERTMILL_SIGNER_TELEMETRY_LOG_LEVEL=warn", "SOFTHSM2_CONF="+filepath.Join(c.stack.Dir, "softhsm2.conf"))
		m.cmd.Stderr = &m.stderr
		m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := m.cmd.Start(); err != nil {
			return err
		}
		c.members = append(c.members, m)
		c.started(m.cmd.Process.Pid)
		if err := m.ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (m *member) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.operator+"/readyz", nil)
		if err != nil {
			return err
		}
		if answer, err := http.DefaultClient.Do(request); err == nil {
			if err := answer.Body.Close(); err == nil && answer.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("a signer is not ready: %w", err)
		}
	}
}

// kill ends the last member without a warning.
func (c *crew) kill() error {
	last := len(c.members) - 1
	m := c.members[last]
	c.members = c.members[:last]
	err := m.cmd.Process.Kill()
	_ = m.cmd.Wait() // it says that it was killed
	return err
}

// end asks all members to end and waits for them.
func (c *crew) end() error {
	var errs []error
	for _, m := range c.members {
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	}
	for _, m := range c.members {
		if err := m.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("signer: %w\n%s", err, m.stderr.String()))
		}
	}
	c.members = nil
	return errors.Join(errs...)
}
