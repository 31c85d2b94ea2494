package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ledger"
)

func ledgerCommand() *cobra.Command {
	c := &cobra.Command{Use: "ledger", Short: "The ledger's schema and upkeep", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(
		migrateCommand(),
		ledgerTool("users", "Make the ledger's users and give the owner the database; once, as its administrator", ledgerUsers),
		ledgerTool("status", "Show the ledger's schema, issuers and signer epochs", ledgerStatus),
		maintainCommand(),
		reconcileCommand(),
		restoredCommand(),
	)
	return c
}

// ledgerSource is sourceFlags for a command that works on the ledger alone.
func ledgerSource(c *cobra.Command) *roles.Source {
	s := sourceFlags(c)
	c.Flags().Lookup("config").Usage = "configuration file (YAML) of the role ledger, with no section of another role; config/maintenance.yaml of \"certmill dev\""
	return s
}

// ledgerTool makes a command that works on the ledger alone. --url stands in for a
// configuration file.
func ledgerTool(use, short string, run func(*cobra.Command, roles.LedgerConfig) error) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	source := ledgerSource(c)
	url := c.Flags().String("url", "", "connection string of the database, as ledger.url")
	passwordFile := c.Flags().String("password-file", "", "file with its password, as ledger.password_file")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *url != "" {
			source.Set = append(source.Set, "ledger.url="+*url)
		}
		if *passwordFile != "" {
			source.Set = append(source.Set, "ledger.password_file="+*passwordFile)
		}
		cfg, err := roles.LoadLedger(*source)
		if err != nil {
			return usageError{err}
		}
		return run(c, cfg)
	}
	return c
}

// ledgerReport is what `ledger status` shows.
type ledgerReport struct {
	Migrations []migrationReport `json:"migrations"`
	Issuers    []issuerReport    `json:"issuers"`
	Epochs     []epochReport     `json:"epochs"`
}

type migrationReport struct {
	Version int64      `json:"version"`
	File    string     `json:"file"`
	Applied *time.Time `json:"applied"` // nil while pending
	// Finish says that the step waits until no older program runs (ledger migrate --finish).
	Finish bool `json:"finish"`
}

type issuerReport struct {
	ID    int32  `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
	Key   string `json:"key"`
}

type epochReport struct {
	ID         uint32    `json:"id"`
	Signer     string    `json:"signer"`
	Issuer     int32     `json:"issuer"`
	Token      string    `json:"token"`
	Started    time.Time `json:"started"`
	Signatures int64     `json:"signatures"`
	Final      bool      `json:"final"`
}

// issuerState says what an issuer is for. A root issues by ceremony alone, and was never
// active.
func issuerState(i ledger.Issuer) string {
	if len(i.Chain) == 0 {
		return "trust anchor"
	}
	return i.State
}

func ledgerStatus(c *cobra.Command, cfg roles.LedgerConfig) error {
	report, err := readLedger(c.Context(), cfg)
	if err != nil {
		return err
	}
	return newPrinter(c).result(report, func(w *writer) {
		for _, m := range report.Migrations {
			state := "PENDING: run `certmill ledger migrate`"
			switch {
			case m.Applied != nil:
				state = "applied " + when(*m.Applied)
			case m.Finish:
				state = "waits until no older program runs: `certmill ledger migrate --finish`"
			}
			w.line("schema %d  %s  %s", m.Version, m.File, state)
		}
		for _, i := range report.Issuers {
			w.line("issuer %d  %s  %s  %s", i.ID, i.Name, i.State, i.Key)
		}
		for _, e := range report.Epochs {
			state := "running or died"
			if e.Final {
				state = "ended"
			}
			w.line("epoch %d  signer %s, issuer %d, token %s, since %s: %d signatures, %s", e.ID, e.Signer, e.Issuer, e.Token, when(e.Started), e.Signatures, state)
		}
	})
}

func readLedger(ctx context.Context, cfg roles.LedgerConfig) (ledgerReport, error) {
	report := ledgerReport{Migrations: []migrationReport{}, Issuers: []issuerReport{}, Epochs: []epochReport{}}
	steps, err := ledger.MigrationStatus(ctx, cfg.Ledger)
	if err != nil {
		return report, err
	}
	pending := false
	for _, s := range steps {
		m := migrationReport{Version: s.Version, File: s.File, Finish: s.Finish}
		if s.Applied.IsZero() {
			pending = pending || !s.Finish
		} else {
			m.Applied = &s.Applied
		}
		report.Migrations = append(report.Migrations, m)
	}
	if pending {
		return report, nil // what is below may not exist yet
	}
	book, err := ledger.Open(ctx, cfg.Ledger, ledger.Deps{})
	if err != nil {
		return report, err
	}
	defer book.Close()
	issuers, err := book.Issuers(ctx)
	if err != nil {
		return report, err
	}
	for _, i := range issuers {
		report.Issuers = append(report.Issuers, issuerReport{i.ID, i.Name, issuerState(i), i.KeyURI})
	}
	epochs, err := book.Epochs(ctx)
	for _, e := range epochs {
		report.Epochs = append(report.Epochs, epochReport{e.ID, e.Signer, e.Issuer, e.Token, e.Started, e.Signatures, e.Final})
	}
	return report, err
}

func maintainCommand() *cobra.Command {
	var every bool
	c := ledgerTool("maintain", "Make partitions ahead, drop expired ones, delete what is settled; run it at least daily", func(c *cobra.Command, cfg roles.LedgerConfig) error {
		if every {
			return roles.Maintain(c.Context(), cfg)
		}
		book, err := ledger.Open(c.Context(), cfg.Ledger, ledger.Deps{})
		if err != nil {
			return err
		}
		defer book.Close()
		done, err := book.Maintain(c.Context())
		if err != nil {
			return err
		}
		return newPrinter(c).result(done, func(w *writer) { w.line("%+v", done) })
	})
	c.Flags().BoolVar(&every, "every", false, "stay, and do it every maintain_interval")
	return c
}
