package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ledger"
)

const reconcileLong = `Compare, for every signer epoch, the signatures made with the rows committed.

A signer counts each signature and writes the counts into the ledger every
epoch_report_interval and at its end. What it signed and did not commit is listed by
its serial: no such certificate has left the signer, and none is ever "good".

The states of an account:
  closed   the epoch has ended, and every signature has a row, is listed, or is a CRL's
  running  its signer has reported lately
  died     its signer was killed: the next signer with the same state_dir closes it
  broken   the epoch has ended and the numbers do not agree: look at once

It reads the serial of every certificate, about a second for a million. Exit code 1
when an account is broken, or died and was not closed.`

// accountReport is an epoch in what `ledger reconcile` shows.
type accountReport struct {
	Epoch      uint32              `json:"epoch"`
	Signer     string              `json:"signer"`
	Issuer     int32               `json:"issuer"`
	Token      string              `json:"token"`
	Started    time.Time           `json:"started"`
	State      ledger.AccountState `json:"state"`
	Signatures int64               `json:"signatures"`
	Committed  int64               `json:"committed"`
	Rows       int64               `json:"rows"`
	RowsLeft   bool                `json:"rows_left"`
	CRLs       int64               `json:"crls"`
	Strays     []strayReport       `json:"strays"`
}

type strayReport struct {
	Serial   string             `json:"serial"`
	Reason   ledger.StrayReason `json:"reason"`
	Recorded time.Time          `json:"recorded"`
}

var errAccounts = errors.New("not every account is closed; the lines that say died or broken are the ones")

func reconcileCommand() *cobra.Command {
	var all bool
	var silence time.Duration
	c := ledgerTool("reconcile", "Compare signatures made with certificates committed, epoch by epoch", func(c *cobra.Command, cfg roles.LedgerConfig) error {
		book, err := ledger.Open(c.Context(), cfg.Ledger, ledger.Deps{})
		if err != nil {
			return err
		}
		defer book.Close()
		accounts, err := book.Accounts(c.Context())
		if err != nil {
			return err
		}
		return showAccounts(c, accounts, silence, all)
	})
	c.Long = reconcileLong
	c.Flags().BoolVar(&all, "all", false, "show accounts that are closed and have nothing listed, too")
	c.Flags().DurationVar(&silence, "silence", 2*time.Minute, "how long a signer may not have reported and still count as running")
	return c
}

func showAccounts(c *cobra.Command, accounts []ledger.Account, silence time.Duration, all bool) error {
	now := time.Now()
	count := map[ledger.AccountState]int{}
	var signatures, strays int64
	reports := make([]accountReport, len(accounts))
	for i, a := range accounts {
		r := accountReport{
			Epoch: a.ID, Signer: a.Signer, Issuer: a.Issuer, Token: a.Token, Started: a.Started, State: a.State(now, silence),
			Signatures: a.Signatures, Committed: a.Committed, Rows: a.Rows, RowsLeft: a.RowsLeft, CRLs: a.CRLs, Strays: []strayReport{},
		}
		for _, s := range a.Strays {
			r.Strays = append(r.Strays, strayReport{s.Serial.String(), s.Reason, s.Recorded})
		}
		reports[i] = r
		count[r.State]++
		signatures += a.Signatures
		strays += int64(len(a.Strays))
	}
	err := newPrinter(c).result(reports, func(w *writer) {
		for _, r := range reports {
			if r.State == ledger.AccountClosed && len(r.Strays) == 0 && !all {
				continue
			}
			rows := "rows"
			if r.RowsLeft {
				rows = "rows left, others have expired"
			}
			w.line("epoch %d  %s  signer %s, issuer %d, since %s: %d signatures, %d %s, %d of CRLs, %d without a row",
				r.Epoch, r.State, r.Signer, r.Issuer, when(r.Started), r.Signatures, r.Rows, rows, r.CRLs, len(r.Strays))
			for _, s := range r.Strays {
				w.line("  %s  %s  %s", s.Serial, s.Reason, when(s.Recorded))
			}
		}
		w.line("%d epochs: %d closed, %d running, %d died, %d broken; %d signatures, %d without a row", len(reports),
			count[ledger.AccountClosed], count[ledger.AccountRunning], count[ledger.AccountDied], count[ledger.AccountBroken], signatures, strays)
	})
	if err == nil && count[ledger.AccountDied]+count[ledger.AccountBroken] > 0 {
		err = errAccounts
	}
	return err
}
