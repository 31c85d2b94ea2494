package loadtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

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

The number of signers is set by a hook, a shell command that finds it in $SIGNERS and
returns when they are ready; or the command after "--" is started as many times as
needed, on top of none: it finds its number in $SIGNER ({n} in an argument is replaced
by it too), and all are ended at the end.`,
		Example: `  certmill loadtest scale --url https://ca.test:8443 … --hook 'kubectl scale deploy/signer --replicas=$SIGNERS && kubectl rollout status deploy/signer'
  certmill loadtest scale --dev .certmill --signers 1,2,4 -- certmill signer --config signer-{n}.yaml`,
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
	if err := errors.Join(find.prepare(o), sc.validate()); err != nil {
		return err
	}
	s, err := open(c.Context(), o, plannedTrials(o, find), newView(c.ErrOrStderr(), o.every))
	if err != nil {
		return err
	}
	r := s.result(nil)
	r.Plan.Loop, r.Plan.InFlight, r.Objective = "open", o.inFlight, find.objective.String()
	crew := &crew{args: sc.args}
	for _, n := range sc.signers {
		var step report.Step
		if step, err = s.step(c.Context(), find, sc, crew, n); err != nil {
			break
		}
		if len(r.Scale) == 0 {
			step.Linear = 1
		} else if first := r.Scale[0]; first.Capacity.Rate > 0 {
			step.Linear = step.Capacity.Rate / first.Capacity.Rate * float64(first.Signers) / float64(n)
		}
		r.Scale = append(r.Scale, step)
		s.view.note("%d signers: %.0f/s, %.2f of linear", n, step.Capacity.Rate, step.Linear)
	}
	err = errors.Join(err, crew.end(), s.close())
	if len(r.Scale) == 0 || err != nil && !interrupted(err) {
		return err
	}
	return deliver(c, o, r)
}

func (sc *scaling) validate() error {
	if (sc.hook == "") == (len(sc.args) == 0) {
		return errors.New("say how to change the number of signers: by --hook, or by a command after --")
	}
	for i, n := range sc.signers {
		if n < 1 || i > 0 && n <= sc.signers[i-1] {
			return errors.New("--signers are rising numbers from 1 on")
		}
	}
	return nil
}

// step sets the number of signers and finds the capacity.
func (s *session) step(ctx context.Context, find *search, sc *scaling, crew *crew, n int) (report.Step, error) {
	out := report.Step{Signers: n}
	if sc.hook != "" {
		cmd := exec.CommandContext(ctx, "sh", "-c", sc.hook)
		cmd.Env = append(os.Environ(), "SIGNERS="+strconv.Itoa(n))
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return out, fmt.Errorf("the hook for %d signers: %w", n, err)
		}
	} else if err := crew.grow(n); err != nil {
		return out, err
	}
	select {
	case <-time.After(sc.ready):
	case <-ctx.Done():
		return out, ctx.Err()
	}
	found, run, err := s.capacity(ctx, find)
	out.Capacity = *found
	if errors.Is(err, errWrong) {
		return out, &exitError{ExitWrong, fmt.Sprintf("%d WRONG ANSWERS with %d signers; the first: %s", run.Checks.Wrong, n, run.Checks.Examples[0].Why)}
	}
	return out, err
}

// crew is signer processes started here.
type crew struct {
	args    []string
	members []*exec.Cmd
}

func (c *crew) grow(to int) error {
	for n := len(c.members) + 1; n <= to; n++ {
		number := strconv.Itoa(n)
		args := make([]string, len(c.args))
		for i, a := range c.args {
			args[i] = strings.ReplaceAll(a, "{n}", number)
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "SIGNER="+number)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("starting signer %d: %w", n, err)
		}
		c.members = append(c.members, cmd)
	}
	return nil
}

// end ends all of them.
func (c *crew) end() error {
	var errs []error
	for _, m := range c.members {
		errs = append(errs, endChild(m))
	}
	return errors.Join(errs...)
}
