package loadtest

import (
	"context"
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

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/loadtest/report"
)

// scaling is how the number of signers is changed.
type scaling struct {
	signers []int
	hook    string
	args    []string // of a signer process
	ready   time.Duration
}

func scaleCommand() *cobra.Command {
	o, find, sc := &options{}, &search{}, &scaling{}
	c := &cobra.Command{
		Use:   "scale [-- SIGNER COMMAND …]",
		Short: "Repeat capacity with 1, 2, 4, … signers",
		Long: `Repeat capacity with 1, 2, 4, … signers and say how near to linear it grows.

The number of signers is set in one of three ways:
  --hook     a shell command that finds the number in $SIGNERS and returns when they
             are ready;
  -- COMMAND is started for each signer, as many times as needed: it finds its number
             in $SIGNER, which replaces {n} in its arguments too. It is to stay in the
             foreground: one that ends fails the step. All are ended at the end;
  --dev      alone: the signers of a ` + "`certmill dev --signers 1`" + ` stack count, and further
             ones are started with their configuration.`,
		Example: `  certmill loadtest scale --url https://ca.test:8443 … --hook 'kubectl scale deploy/signer --replicas=$SIGNERS && kubectl rollout status deploy/signer'
  certmill loadtest scale --dev .certmill --signers 1,2,4`,
		RunE: func(c *cobra.Command, args []string) error {
			sc.args = args
			return scale(c, o, find, sc)
		},
	}
	f := c.Flags()
	f.IntSliceVar(&sc.signers, "signers", []int{1, 2, 4, 8, 16}, "the steps")
	f.StringVar(&sc.hook, "hook", "", "shell command that sets the number of signers to $SIGNERS")
	f.DurationVar(&sc.ready, "signers-ready", 3*time.Second, "wait after each change")
	find.add(c, o)
	return c
}

func scale(c *cobra.Command, o *options, find *search, sc *scaling) error {
	if err := errors.Join(find.prepare(o), sc.validate(o.dev)); err != nil {
		return usage(err)
	}
	s, err := open(c.Context(), o, plannedTrials(o, find), newView(c.ErrOrStderr(), o.every))
	if err != nil {
		return err
	}
	r := s.result(nil)
	r.Plan.Loop, r.Plan.InFlight, r.Objective = "open", s.inFlight(), find.objective.String()
	crew := &crew{args: sc.args, started: s.observer.Follow}
	if sc.hook == "" && len(sc.args) == 0 {
		if err := crew.join(o); err != nil {
			return errors.Join(err, s.close())
		}
	}
	for _, n := range sc.signers {
		var step report.Step
		var run *report.Run
		step, run, err = s.step(c.Context(), find, sc, crew, n)
		if errors.Is(err, errWrong) {
			s.view.note("with %d signers an answer was wrong", n)
			r.Runs, err = []report.Run{*run}, nil // the verdict says it
			break
		}
		if err != nil {
			break
		}
		r.Scale = append(r.Scale, step)
		r.Scale[len(r.Scale)-1].Linear = linear(r.Scale)
		if step.Capacity.Rate == 0 {
			r.Missed = append(r.Missed, fmt.Sprintf("with %d signers: %s", n, strings.Join(step.Capacity.GaveWay, "; ")))
		}
		s.view.note("%d signers: %.0f/s", n, step.Capacity.Rate)
	}
	cerr := errors.Join(crew.end(), s.close())
	if len(r.Scale)+len(r.Runs) == 0 {
		return errors.Join(nothingMeasured(err), cerr)
	}
	return errors.Join(ended(deliver(c, o, r), err), cerr)
}

// linear is how near to linear the last step is to the first; 0: unknown, where one held
// at no rate or at any that was tried.
func linear(steps []report.Step) float64 {
	first, last := steps[0], steps[len(steps)-1]
	if first.Capacity.Rate == 0 || last.Capacity.Rate == 0 || first.Capacity.Ceiling || last.Capacity.Ceiling {
		return 0
	}
	return last.Capacity.Rate / first.Capacity.Rate * float64(first.Signers) / float64(last.Signers)
}

func (sc *scaling) validate(dev string) error {
	if sc.hook != "" && len(sc.args) > 0 || sc.hook == "" && len(sc.args) == 0 && dev == "" {
		return errors.New("say how to change the number of signers: by --hook, or by a command after --, or by --dev alone")
	}
	for i, n := range sc.signers {
		if n < 1 || n > maxSigners || i > 0 && n <= sc.signers[i-1] {
			return fmt.Errorf("--signers are rising numbers from 1 to %d", maxSigners)
		}
	}
	return nil
}

// step sets the number of signers and finds the capacity; the run is as capacity's.
func (s *session) step(ctx context.Context, find *search, sc *scaling, crew *crew, n int) (report.Step, *report.Run, error) {
	out := report.Step{Signers: n}
	if sc.hook != "" {
		cmd := exec.CommandContext(ctx, "sh", "-c", sc.hook)
		cmd.Env = append(os.Environ(), "SIGNERS="+strconv.Itoa(n))
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); ctx.Err() != nil {
			return out, nil, ctx.Err()
		} else if err != nil {
			return out, nil, fmt.Errorf("the hook for %d signers: %w", n, err)
		}
	} else if err := crew.grow(n); err != nil {
		return out, nil, err
	}
	select {
	case <-time.After(sc.ready):
	case <-ctx.Done():
		return out, nil, ctx.Err()
	}
	if err := crew.alive(); err != nil {
		return out, nil, err
	}
	found, run, err := s.capacity(ctx, find)
	out.Capacity = *found
	if err == nil {
		err = crew.alive() // else it was measured with fewer
	}
	return out, run, err
}

// maxSigners bounds the processes that are started.
const maxSigners = 256

// crew is signer processes started here. They end with this one, even if it is killed
// (Linux); what a shell among them has started does not end then.
type crew struct {
	args []string
	env  []string
	// there is how many signers ran before.
	there   int
	members []*local.Process
	started func(pid int)
}

// join makes the crew one of further signers of a `certmill dev` stack: this program
// with the first signer's configuration, under names of their own and without an
// operator's listener.
func (c *crew) join(o *options) error {
	dir := o.dev
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for c.there < maxSigners && o.runs(fmt.Sprintf("signer-%d", c.there+1)) {
		c.there++
	}
	c.args = []string{self, "signer", "--config", filepath.Join(dir, "config", "signer-1.yaml")}
	c.env = []string{"CERTMILL_SIGNER_NAME=loadtest-{n}", "CERTMILL_SIGNER_TELEMETRY_LISTEN=", "CERTMILL_SIGNER_TELEMETRY_LOG_LEVEL=warn", "SOFTHSM2_CONF=" + filepath.Join(dir, "softhsm2.conf")}
	return nil
}

func (c *crew) grow(to int) error {
	if to < c.there {
		return fmt.Errorf("the stack runs %d signers already, and a step asks for %d: start it with `certmill dev --signers %d`", c.there, to, to)
	}
	for n := c.there + len(c.members) + 1; n <= to; n++ {
		number := strconv.Itoa(n)
		fill := func(text []string) []string {
			out := make([]string, len(text))
			for i, s := range text {
				out[i] = strings.ReplaceAll(s, "{n}", number)
			}
			return out
		}
		args := fill(c.args)
		p, err := local.Start(local.Command{
			Name: "signer " + number, Path: args[0], Args: args[1:], Env: append(append(os.Environ(), fill(c.env)...), "SIGNER="+number),
		})
		if err != nil {
			return err
		}
		c.members = append(c.members, p)
		c.started(p.PID())
	}
	return nil
}

// alive fails when one of them has ended.
func (c *crew) alive() error {
	for _, m := range c.members {
		if err := m.Err(); err != nil {
			return fmt.Errorf("%w; signers are to run until they are ended", err)
		}
	}
	return nil
}

// signerGrace is how long signers may take to end: certmill's own have 20 s for what they
// hold.
const signerGrace = 30 * time.Second

// end ends all of them.
func (c *crew) end() error {
	errs := make([]error, len(c.members))
	var ending sync.WaitGroup
	for i, m := range c.members {
		ending.Go(func() { errs[i] = m.StopGroup(syscall.SIGTERM, signerGrace) })
	}
	ending.Wait()
	return errors.Join(errs...)
}
