//go:build cgo

package main

import (
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/certmill/certmill/cmd/certmill/dev"
)

func devCommand() *cobra.Command {
	var o dev.Options
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run the whole service on this machine, with real parts",
		Long: `Run the whole service on this machine: PostgreSQL, Redis, NATS, SoftHSM, a gateway,
signers, a presigner and a responder, each role a process that may be killed and comes
back. All data lies in one folder. The first start makes a root and an issuing CA in
the token and issues a certificate; Ctrl-C stops everything; a second start goes on
with the same data. The queue alone is in memory: orders that wait in it are queued
again from the ledger.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Signers < 1 || o.Signers > 64 {
				return usage("--signers must be 1 to 64")
			}
			if o.Once && !o.Demo {
				return usage("--once goes with --demo")
			}
			o.Out = c.OutOrStdout()
			o.Terminal = term.IsTerminal(int(os.Stdout.Fd()))
			return dev.Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", ".certmill", "data directory")
	f.IntVar(&o.Signers, "signers", 2, "how many signer processes")
	f.StringVar(&o.LedgerURL, "ledger-url", os.Getenv("CERTMILL_DEV_LEDGER_URL"), "use this database in place of a PostgreSQL of our own (CockroachDB too)")
	f.StringVar(&o.LedgerPasswordFile, "ledger-password-file", "", "file with its password")
	f.BoolVar(&o.Demo, "demo", false, "show the main job once everything is up")
	f.BoolVar(&o.Once, "once", false, "with --demo: stop after it")
	f.BoolVar(&o.Quiet, "quiet", false, "no status line")
	return c
}
