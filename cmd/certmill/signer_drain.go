package main

import (
	"context"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

const drainLong = `It stops taking work, finishes what it holds and stays up; ` + "`certmill status`" + ` shows it as
draining, then as drained. It looks every issuer_refresh (5 s). CRLs and the certificates
of OCSP signers go on being made by it. It stays drained when it is started again, until
` + "`certmill signer undrain`" + `. NAME is the "name" of its configuration, else its host's; the
ledger is found as by the ` + "`certmill ledger`" + ` commands. The audit trail has it.`

func signerDrainCommand() *cobra.Command {
	return drainTool("drain NAME", "Have a signer take no more work", drainLong, func(c *cobra.Command, book *ledger.Ledger, name string) (string, error) {
		epochs, err := book.Epochs(c.Context())
		if err != nil {
			return "", fmt.Errorf("reading the signers: %w", err)
		}
		if err := knownSigner(name, epochs); err != nil {
			return "", err
		}
		return "", book.Drain(c.Context(), name, localCaller())
	})
}

func signerUndrainCommand() *cobra.Command {
	return drainTool("undrain NAME", "Let a drained signer work again", "It takes work again within its issuer_refresh (5 s).", func(c *cobra.Command, book *ledger.Ledger, name string) (string, error) {
		drains, err := book.Drains(c.Context())
		if err != nil {
			return "", fmt.Errorf("reading the drains: %w", err)
		}
		if !slices.ContainsFunc(drains, func(d ledger.Drain) bool { return d.Signer == name }) {
			return name + " was not drained; nothing was changed", nil
		}
		return name + " takes work again within its issuer_refresh (5 s)", book.Undrain(c.Context(), name, localCaller())
	})
}

// deskSigners sign by command alone: no drain stops them.
var deskSigners = []string{"ca-issue", "ceremony"}

// namesShown bounds the names in an error.
const namesShown = 20

// knownSigner fails for a name under which no signer has ever signed. epochs begin with
// the newest.
func knownSigner(name string, epochs []ledger.Epoch) error {
	var known []string
	for _, e := range epochs {
		if e.Signer == name && !slices.Contains(deskSigners, name) {
			return nil
		}
		if len(known) < namesShown && !slices.Contains(known, e.Signer) && !slices.Contains(deskSigners, e.Signer) {
			known = append(known, e.Signer)
		}
	}
	if len(known) == 0 {
		return problem.New(problem.NotFound, "the ledger knows no signer %q, nor any other: none has started yet", name)
	}
	slices.Sort(known)
	return problem.New(problem.NotFound, "the ledger knows no signer %q; those seen last are %s", name, strings.Join(known, ", "))
}

// drainTool makes a command that changes a signer's drain; change may return a line for
// a person.
func drainTool(use, short, more string, change func(*cobra.Command, *ledger.Ledger, string) (string, error)) *cobra.Command {
	c := ledgerTool(use, short, func(c *cobra.Command, cfg roles.LedgerConfig) error {
		return onLedger(c.Context(), cfg, func(book *ledger.Ledger) error {
			said, err := change(c, book, c.Flags().Arg(0))
			if err != nil {
				return err
			}
			return writeDrains(c, book, said)
		})
	})
	c.Args = cobra.ExactArgs(1)
	c.Long = short + ". " + more
	return c
}

func signerDrainsCommand() *cobra.Command {
	return ledgerTool("drains", "List the signers that are to take no work", func(c *cobra.Command, cfg roles.LedgerConfig) error {
		return onLedger(c.Context(), cfg, func(book *ledger.Ledger) error { return writeDrains(c, book, "") })
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

// writeDrains lists the drains, in text after what was said.
func writeDrains(c *cobra.Command, book *ledger.Ledger, said string) error {
	drains, err := book.Drains(c.Context())
	if err != nil {
		return fmt.Errorf("reading the drains: %w", err)
	}
	report := []drainReport{}
	for _, d := range drains {
		report = append(report, drainReport{d.Signer, d.Actor, d.Since})
	}
	return newPrinter(c).result(report, func(w *writer) {
		if said != "" {
			w.line("%s", said)
		}
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
