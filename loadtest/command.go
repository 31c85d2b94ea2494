// Package loadtest measures certificate issuance and OCSP: `certmill loadtest`.
//
// Its parts: schedule says when requests are due, engine sends them and counts,
// material makes keys and CSRs beforehand, target speaks the protocols (over wire's
// HTTP client), check looks at the answers, observe at the service, floor is the
// yardstick, report is what is left behind. This package wires them into commands.
package loadtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/schedule"
	"github.com/certmill/certmill/loadtest/target"
)

const long = `Measure how fast certificates or OCSP answers come, and whether they are right.

By default the loop is open: requests are due by a schedule, and latency counts from
the moment a request was due, so a server that stalls cannot hide it. Keys and CSRs
are made before the clock starts. A share of the answers is checked in full.

Start with "certmill dev" in another terminal, then:
  certmill loadtest run --dev .certmill --rate 200
  certmill loadtest run --target floor --rate 200        what this machine could do at most
  certmill loadtest capacity --dev .certmill --objective "p99<25ms"

Exit codes beside those of every command: 8 the objective was not held · 9 an answer
was wrong.`

// Command returns `loadtest` with its subcommands, for the program to mount.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "loadtest",
		Short: "Measure issuance and OCSP, this service's or another's",
		Long:  long,
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(runCommand(), capacityCommand(), scaleCommand(), compareCommand(), meshCommand(), reportCommand(), fillCommand(), floorCommand(), targetsCommand())
	return c
}

// addLoad registers the flags that say how much load.
func addLoad(f *pflag.FlagSet, o *options) {
	f.StringVarP(&o.schedule, "rate", "r", "", "open loop: requests per second as independent clients send them, or a schedule (above)")
	f.IntVar(&o.callers, "callers", 0, "closed loop: so many callers, each with one request at a time")
	f.IntVar(&o.repeat, "repeat", 1, "runs, for \"loadtest compare\" 5 or more")
	f.DurationVar(&o.pause, "pause", 2*time.Second, "between the runs")
	f.StringVar(&o.objective, "objective", "", `what is to be held, for example "p99<25ms,errors<0.1%"; exit code 8 if it is not`)
	f.StringVar(&o.save, "save", "", "file for the certificates that are issued (PEM), for an OCSP run after it")
	f.IntVar(&o.saveMost, "save-most", 100_000, "how many at most")
}

func runCommand() *cobra.Command {
	o := &options{}
	c := &cobra.Command{
		Use:   "run",
		Short: "Put a target under load and report",
		Long:  "Put a target under load and report.\n\nSchedules for --rate:\n" + schedule.Help + "\n\nObjectives: " + report.ObjectiveHelp,
		Example: `  certmill loadtest run --dev .certmill --rate 500 --objective "p99<25ms,errors<0.1%" --html report.html
  certmill loadtest run --dev .certmill --rate ramp:from=100,to=3000,over=60s -d 70s
  certmill loadtest run --dev .certmill --callers 64 --target batch
  certmill loadtest run --target vault --url https://bao.test:8200 --token-file t --role leaf --rate 200`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return run(c, o) },
	}
	addLoad(c.Flags(), o)
	o.add(c.Flags())
	return c
}

func run(c *cobra.Command, o *options) error {
	if err := o.validate(); err != nil {
		return usage(err)
	}
	plan, err := o.plan()
	if err != nil {
		return usage(err)
	}
	objective, err := report.ParseObjective(o.objective)
	if err != nil {
		return usage(err)
	}
	planned := int64(0)
	if plan != nil {
		planned = int64(plan.Expected(o.duration)*1.01) + 1000
	}
	s, err := open(c.Context(), o, planned, newView(c.ErrOrStderr(), o.every))
	if err != nil {
		return err
	}
	r := s.result(plan)
	s.view.note("%s at %s: %s", r.Plan.Summary, r.Plan.URL, r.Plan.Keys)
	r.Runs, err = s.runs(c.Context(), load{plan: plan, callers: o.callers, duration: o.duration, warmup: o.warmup}, o.repeat, o.pause)
	cerr := s.close()
	if len(r.Runs) == 0 {
		return errors.Join(nothingMeasured(err), cerr)
	}
	r.Objective, r.Missed = objective.String(), missed(objective, r.Runs)
	return errors.Join(ended(deliver(c, o, r), err), cerr)
}

// deliver writes the result wherever it was asked for, and returns its verdict. What can
// be written is, whatever cannot.
func deliver(c *cobra.Command, o *options, r *report.Result) error {
	errs := []error{write(c, r)}
	if o.json != "" {
		if err := r.WriteFile(o.json); err != nil {
			errs = append(errs, fmt.Errorf("--json: %w", err))
		}
	}
	if o.html != "" {
		if err := r.WriteHTML(o.html); err != nil {
			errs = append(errs, fmt.Errorf("--html: %w", err))
		}
	}
	if v := verdict(r); v != nil {
		errs = append([]error{v}, errs...) // its exit code is the first that is found
	}
	return errors.Join(errs...)
}

// write writes the result for whoever has called: the table, or JSON.
func write(c *cobra.Command, r *report.Result) error {
	if wantsJSON(c) {
		return json.NewEncoder(c.OutOrStdout()).Encode(r)
	}
	return r.WriteTable(c.OutOrStdout())
}

// wantsJSON reads -o, the flag of the program that mounts these commands.
func wantsJSON(c *cobra.Command) bool {
	f := c.Flag("output")
	return f != nil && f.Value.String() == "json"
}

func compareCommand() *cobra.Command {
	var fail bool
	c := &cobra.Command{
		Use:   "compare A.json B.json",
		Short: "Say what differs between two results beyond noise",
		Long: `Say what differs between two results beyond noise. Each must hold several runs
(--repeat 5). Differences of means stand with their 95 % confidence interval (Welch),
corrected for the number of measures, so that comparing a thing with itself finds a
difference once in twenty times.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			a, err := report.ReadFile(args[0])
			if err != nil {
				return usage(err)
			}
			b, err := report.ReadFile(args[1])
			if err != nil {
				return usage(err)
			}
			cmp, err := report.Compare(a, b)
			if err != nil {
				return usage(err)
			}
			cmp.A, cmp.B = named(a, args[0]), named(b, args[1])
			if wantsJSON(c) {
				err = json.NewEncoder(c.OutOrStdout()).Encode(cmp)
			} else {
				err = cmp.Write(c.OutOrStdout())
			}
			if err == nil && fail && cmp.Any(report.Worse) {
				return &exitError{ExitObjective, "B is worse than A"}
			}
			return err
		},
	}
	c.Flags().BoolVar(&fail, "fail-on-worse", false, "exit code 8 when B is worse in any measure")
	return c
}

func named(r *report.Result, path string) string {
	if r.Label != "" {
		return r.Label + " (" + path + ")"
	}
	return path
}

func reportCommand() *cobra.Command {
	var html string
	c := &cobra.Command{
		Use:   "report RESULT.json",
		Short: "Write the report of a result again: the table, or HTML",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := report.ReadFile(args[0])
			if err != nil {
				return usage(err)
			}
			if html != "" {
				return r.WriteHTML(html)
			}
			return write(c, r)
		},
	}
	c.Flags().StringVar(&html, "html", "", "file for the report with plots")
	return c
}

func targetsCommand() *cobra.Command {
	type listed struct {
		Name    string `json:"name"`
		Summary string `json:"summary"`
		// Flags are those of its own.
		Flags []string `json:"flags"`
	}
	return &cobra.Command{
		Use:   "targets",
		Short: "List what can be put under load, and the flags of each target's own",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var all []listed
			for _, name := range target.Names() {
				k, err := target.Find(name)
				if err != nil {
					return err
				}
				all = append(all, listed{name, k.Summary, append([]string{}, k.Flags...)})
			}
			if wantsJSON(c) {
				return json.NewEncoder(c.OutOrStdout()).Encode(all)
			}
			t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, l := range all {
				fmt.Fprintf(t, "%s\t%s\n", l.Name, l.Summary)
				if len(l.Flags) > 0 {
					fmt.Fprintf(t, "\t  --%s\n", strings.Join(l.Flags, " --"))
				}
			}
			return t.Flush()
		},
	}
}
