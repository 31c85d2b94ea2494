// Command certmill is the whole service in one binary: every role, the tools of
// operators, and `dev`, which runs all of it on one machine. This folder only wires.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/internal/hardening"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/sysmon"
	"github.com/certmill/certmill/internal/telemetry"
	"github.com/certmill/certmill/loadtest"
	"github.com/certmill/certmill/loadtest/chaos"
)

// The exit codes; they are part of the interface (see long).
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInvalid     = 3
	exitRefused     = 4
	exitNotFound    = 5
	exitConflict    = 6
	exitUnavailable = 7
)

const long = `certmill issues X.509 certificates at the rate of a fleet, with keys in an HSM.

Start with "certmill dev": the whole service on this machine. Then "certmill issue".

Exit codes: 0 done · 1 failed · 2 wrong usage or configuration · 3 the request is not
valid · 4 no credential, or not allowed · 5 not found · 6 conflicts with an earlier
request · 7 overloaded or not available, the same command may be repeated · 10 and 11
what "certmill status" has found.`

func main() {
	// Ctrl-C asks for an orderly end; a second one ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := hardening.NoCore(); err != nil { // what we start inherits it
		fmt.Fprintln(os.Stderr, "certmill:", err)
	}
	if err := sysmon.FromEnvironment(); err != nil { // it goes on as it would without
		fmt.Fprintln(os.Stderr, "certmill:", err)
	}
	os.Exit(run(ctx, os.Args[1:]))
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	begun := false
	onRun(root, func(c *cobra.Command) error {
		begun = true
		if form, _ := c.Flags().GetString("output"); form != "text" && form != "json" {
			return usage("-o %s: text or json", form)
		}
		return nil
	})
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if !begun {
		// Whatever cobra refuses before a command runs is wrong usage.
		err = usage("%w; see `%s --help`", err, command.CommandPath())
	}
	if !errors.As(err, new(levelError)) { // whose screen has said it all
		newPrinter(command).failure(err)
	}
	return exitCode(err)
}

// onRun has before called in front of every command below c.
func onRun(c *cobra.Command, before func(*cobra.Command) error) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := before(c); err != nil {
				return err
			}
			return run(c, args)
		}
	}
	for _, below := range c.Commands() {
		onRun(below, before)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "certmill",
		Short:         "A certificate authority for fleets",
		Long:          long,
		Version:       telemetry.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.PersistentFlags().StringP("output", "o", "text", "text or json")
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Start here:"},
		&cobra.Group{ID: "certificates", Title: "Certificates:"},
		&cobra.Group{ID: "roles", Title: "Roles of the service:"},
		&cobra.Group{ID: "operate", Title: "Operate:"},
	)
	for group, commands := range map[string][]*cobra.Command{
		"start":        {devCommand(), loadtest.Command()},
		"certificates": {issueCommand(), inspectCommand(), revokeCommand(), listCommand(), orderCommand(), tokenCommand()},
		"roles":        {gatewayCommand(), signerCommand(), ocspCommand(), stapleCommand()},
		"operate":      {statusCommand(), topCommand(), consoleCommand(), caCommand(), renewEarlyCommand(), ledgerCommand(), auditCommand(), configCommand(), deployCommand(), versionCommand(), chaos.Command()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	return root
}

// usageError is a mistake in the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var u usageError
	if errors.As(err, &u) {
		return exitUsage
	}
	// loadtest has codes of its own; those of child processes are none of ours.
	var coded interface{ ExitCode() int }
	var child *exec.ExitError
	if errors.As(err, &coded) && !errors.As(err, &child) {
		return coded.ExitCode()
	}
	var p *problem.Error
	if !errors.As(err, &p) {
		return exitFailed
	}
	switch p.Kind {
	case problem.Invalid:
		return exitInvalid
	case problem.Unauthenticated, problem.Denied:
		return exitRefused
	case problem.NotFound:
		return exitNotFound
	case problem.Conflict:
		return exitConflict
	case problem.Overloaded, problem.Unavailable:
		return exitUnavailable
	default:
		return exitFailed
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which build this is", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			version, revision := telemetry.Build()
			return newPrinter(c).result(
				map[string]any{"version": version, "revision": revision, "pkcs11": hasPKCS11},
				func(w *writer) {
					w.line("certmill %s (revision %s)", version, revision)
					if !hasPKCS11 {
						w.line("built without cgo: gateway, responder and tools only")
					}
				})
		},
	}
}
