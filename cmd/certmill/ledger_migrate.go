package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ledger"
)

func migrateCommand() *cobra.Command {
	var plan, finish bool
	c := ledgerTool("migrate", "Bring the ledger's schema up to this program; safe while the service runs", func(c *cobra.Command, cfg roles.LedgerConfig) error {
		if plan {
			return showPlan(c, cfg, finish)
		}
		return migrate(c, cfg, finish)
	})
	c.Long = c.Short + `.

This program and the one before it both work on the schema before and after a step, so
migrate first and replace the programs after it. It also gives the ledger's users their
rights, where ` + "`certmill ledger users`" + ` has made them. --plan shows what would be run and
changes nothing.

Steps that take away what only the program before needs are left for --finish. Run it
when every program has been replaced and there is to be no way back; what is not finished
is with the next version's migration.`
	c.Flags().BoolVar(&plan, "plan", false, "show the pending steps with their SQL and run none")
	c.Flags().BoolVar(&finish, "finish", false, "run also the steps for when no older program runs any more")
	return c
}

// planReport is what `ledger migrate --plan` shows.
type planReport struct {
	Version int64         `json:"version"` // of the database
	Target  int64         `json:"target"`
	Pending []pendingStep `json:"pending"`
	// Waiting are the versions of the steps that only --finish runs.
	Waiting []int64 `json:"waiting"`
}

type pendingStep struct {
	Version int64  `json:"version"`
	File    string `json:"file"`
	SQL     string `json:"sql"`
}

func showPlan(c *cobra.Command, cfg roles.LedgerConfig, finish bool) error {
	steps, err := ledger.MigrationStatus(c.Context(), cfg.Ledger)
	if err != nil {
		return err
	}
	report := planReport{Pending: []pendingStep{}, Waiting: []int64{}}
	for _, s := range steps {
		if s.Finish && !finish {
			report.Waiting = append(report.Waiting, s.Version)
			continue
		}
		report.Target = max(report.Target, s.Version)
		if s.Applied.IsZero() {
			report.Pending = append(report.Pending, pendingStep{s.Version, s.File, upOf(s.SQL)})
		} else {
			report.Version = max(report.Version, s.Version)
		}
	}
	return newPrinter(c).result(report, func(w *writer) {
		defer func() {
			for _, v := range report.Waiting {
				w.line("step %d waits until no older program runs: `certmill ledger migrate --finish`", v)
			}
		}()
		if len(report.Pending) == 0 {
			w.line("nothing to do: the ledger's schema is at version %d", report.Version)
			return
		}
		w.line("the ledger's schema is at version %d; `certmill ledger migrate` would run:", report.Version)
		for _, s := range report.Pending {
			w.line("\n-- step %d, %s\n%s", s.Version, s.File, s.SQL)
		}
	})
}

// upOf returns the part of a migration that leads up, without goose's marks.
func upOf(sql string) string {
	up, _, _ := strings.Cut(sql, "-- +goose Down")
	var b strings.Builder
	for line := range strings.Lines(up) {
		if !strings.HasPrefix(line, "-- +goose") {
			b.WriteString(line)
		}
	}
	return strings.TrimSpace(b.String())
}

// migrateReport is what `ledger migrate` says.
type migrateReport struct {
	Version int64   `json:"version"`
	Waiting []int64 `json:"waiting"` // as in planReport
}

func migrate(c *cobra.Command, cfg roles.LedgerConfig, finish bool) error {
	run := ledger.Migrate
	if finish {
		run = ledger.FinishMigration
	}
	if err := run(c.Context(), cfg.Ledger); err != nil {
		return err
	}
	steps, err := ledger.MigrationStatus(c.Context(), cfg.Ledger)
	if err != nil {
		return err
	}
	report := migrateReport{Waiting: []int64{}}
	for _, s := range steps {
		if s.Finish {
			report.Waiting = append(report.Waiting, s.Version)
		} else {
			report.Version = max(report.Version, s.Version)
		}
	}
	return newPrinter(c).result(report, func(w *writer) {
		w.line("the ledger's schema is at version %d", report.Version)
		for _, v := range report.Waiting {
			w.line("step %d waits until no older program runs: `certmill ledger migrate --finish`", v)
		}
	})
}

func ledgerUsers(c *cobra.Command, cfg roles.LedgerConfig) error {
	made, err := ledger.CreateUsers(c.Context(), cfg.Ledger)
	if err != nil {
		return err
	}
	if made == nil {
		made = []string{}
	}
	return newPrinter(c).result(map[string][]string{"made": made}, func(w *writer) {
		for _, user := range made {
			w.line("made the user %s", user)
		}
		w.line("%s owns the database: go on with `certmill ledger migrate` as that user", ledger.OwnerUser)
	})
}
