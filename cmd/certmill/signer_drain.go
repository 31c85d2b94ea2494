package main

import (
	"context"
	"fmt"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ledger"
)

const drainLong = `It stops taking work, finishes what it holds and stays up; ` + "`certmill status`" + ` shows it as
draining, then as drained. It looks every issuer_refresh (5 s). CRLs and the certificates
of OCSP signers go on being made by it. It stays drained when it is started again, until
` + "`certmill signer undrain`" + `. NAME is the "name" of its configuration, else its host's; the
ledger is found as by the ` + "`certmill ledger`" + ` commands. The audit trail has it.`

func signerDrainCommand() *cobra.Command {
	return drainTool("drain NAME", "Have a signer take no more work", drainLong, (*ledger.Ledger).Drain)
}

func signerUndrainCommand() *cobra.Command {
	return drainTool("undrain NAME", "Let a drained signer work again", "It takes work again within its issuer_refresh (5 s).", (*ledger.Ledger).Undrain)
}

// drainTool makes a command that changes a signer's drain.
func drainTool(use, short, more string, change func(*ledger.Ledger, context.Context, string, string) error) *cobra.Command {
	c := ledgerTool(use, short, func(c *cobra.Command, cfg roles.LedgerConfig) error {
		return onLedger(c.Context(), cfg, func(book *ledger.Ledger) error {
			if err := change(book, c.Context(), c.Flags().Arg(0), localCaller()); err != nil {
				return err
			}
			return writeDrains(c, book)
		})
	})
	c.Args = cobra.ExactArgs(1)
	c.Long = short + ". " + more
	return c
}

func signerDrainsCommand() *cobra.Command {
	return ledgerTool("drains", "List the signers that are to take no work", func(c *cobra.Command, cfg roles.LedgerConfig) error {
		return onLedger(c.Context(), cfg, func(book *ledger.Ledger) error { return writeDrains(c, book) })
	})
}

func onLedger(ctx context.Context, cfg roles.LedgerConfig, work func(*ledger.Ledger) error) error {
	book, err := ledger.Open(ctx, cfg.Ledger, ledger.Deps{})
	if err != nil {
		return err
	}
	defer book.Close()
	return work(book)
}

// drainReport is one signer that is to take no work.
type drainReport struct {
	Signer string    `json:"signer"`
	Actor  string    `json:"actor"`
	Since  time.Time `json:"since"`
}

func writeDrains(c *cobra.Command, book *ledger.Ledger) error {
	drains, err := book.Drains(c.Context())
	if err != nil {
		return fmt.Errorf("reading the drains: %w", err)
	}
	report := []drainReport{}
	for _, d := range drains {
		report = append(report, drainReport{d.Signer, d.Actor, d.Since})
	}
	return newPrinter(c).result(report, func(w *writer) {
		if len(report) == 0 {
			w.line("no signer is drained")
		}
		for _, d := range report {
			w.line("%-20s drained since %s by %s", d.Signer, when(d.Since), d.Actor)
		}
	})
}

// localCaller is who works at this machine.
func localCaller() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return "local:" + u.Username
	}
	return "local:unknown"
}
