package main

import (
	"os/user"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ledger"
)

const restoredLong = `Make a ledger that was restored from a backup fit to be used again: a step of
deploy/runbooks/restore.sh, which says the others.

Certificates that were issued after the backup are not in it. Their serials name the
epochs in which they were made; this command leaves a gap in the epochs, so that none
of those is given again, and prints it: whatever has an epoch in the gap was issued in
the hole. No responder calls it good. CRL numbers go on behind the same gap.

Run it once, after the restore and before a signer starts.`

func restoredCommand() *cobra.Command {
	var gap uint32
	c := ledgerTool("restored", "After a restore from a backup: give no epoch or CRL number again", func(c *cobra.Command, cfg roles.LedgerConfig) error {
		book, err := ledger.Open(c.Context(), cfg.Ledger, ledger.Deps{})
		if err != nil {
			return err
		}
		defer book.Close()
		actor := "local"
		if u, err := user.Current(); err == nil {
			actor = "local:" + u.Username
		}
		done, err := book.Restored(c.Context(), actor, gap)
		if err != nil {
			return err
		}
		return newPrinter(c).result(map[string]any{"first_lost_epoch": done.FirstLost, "last_lost_epoch": done.LastLost, "crls": done.CRLs}, func(w *writer) {
			w.line("epochs %d to %d belong to the hole; %d CRL numbers advanced", done.FirstLost, done.LastLost, done.CRLs)
		})
	})
	c.Long = restoredLong
	c.Flags().Uint32Var(&gap, "gap", 10_000, "how many epochs and CRL numbers to leave out; more than were given since the backup")
	return c
}
