package main

import (
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/deploy/secrets"
	"github.com/certmill/certmill/internal/config"
)

func deployCommand() *cobra.Command {
	c := &cobra.Command{Use: "deploy", Short: "Prepare a deployment of many machines", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(secretsCommand())
	return c
}

const secretsLong = `Make what the parts of a deployment prove themselves with: TLS certificates from an
internal CA, the ledger's client certificates, NATS users by nkey, Redis users, and the
queue's keys. Repeat it at any time: it makes what is missing and renews certificates
past two thirds of their life.

Each part has a folder with exactly what that part is given. The folder vault is what
they are made from: keep it off the servers. All files have mode 0600.`

func secretsCommand() *cobra.Command {
	var dir, spec string
	c := &cobra.Command{
		Use: "secrets", Short: "Make the secrets between the parts, or renew them", Long: secretsLong, Args: cobra.NoArgs,
		Example: "  certmill deploy secrets --dir secrets\n  certmill deploy secrets rotate prepare --dir secrets",
	}
	c.PersistentFlags().StringVar(&dir, "dir", "secrets", "the folder of secrets")
	c.PersistentFlags().StringVar(&spec, "spec", "", "file that names the servers' hosts; remembered in the folder (default: those of deploy/compose)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := loadSecretsSpec(spec)
		if err != nil {
			return err
		}
		report, err := secrets.Make(dir, s, time.Now())
		if err != nil {
			return err
		}
		return showSecrets(c, dir, report)
	}
	c.AddCommand(rotateCommand(&dir, &spec))
	return c
}

func rotateCommand(dir, spec *string) *cobra.Command {
	var steps []string
	for _, s := range secrets.Steps {
		steps = append(steps, string(s))
	}
	return &cobra.Command{
		Use: "rotate " + strings.Join(steps, "|"), Short: "Change every secret in three steps, without a stop",
		Long: `Change every secret in three steps: prepare (the new ones are accepted as well),
activate (the new ones are used), retire (the old ones are refused). After each step
bring the folders to their parts and restart or reload these one by one, in any order.`,
		Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs), ValidArgs: steps,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := loadSecretsSpec(*spec)
			if err != nil {
				return err
			}
			report, err := secrets.Rotate(*dir, s, secrets.Step(args[0]), time.Now())
			if err != nil {
				return err
			}
			return showSecrets(c, *dir, report)
		},
	}
}

// loadSecretsSpec returns nil where no file is given: then the folder remembers.
func loadSecretsSpec(file string) (*secrets.Spec, error) {
	if file == "" {
		return nil, nil
	}
	s, err := config.Load(secrets.DefaultSpec(), config.Source{Role: "secrets", File: file, Environ: os.Environ()})
	if err != nil {
		return nil, usageError{err}
	}
	return &s, nil
}

func showSecrets(c *cobra.Command, dir string, r secrets.Report) error {
	return newPrinter(c).result(r, func(w *writer) {
		if len(r.Written) == 0 {
			w.line("nothing to change in %s", dir)
		} else {
			w.line("wrote %d files below %s", len(r.Written), dir)
		}
		w.line("generation %d, %s; the first certificate ends %s, the internal CA %s", r.Generation, r.Phase, when(r.Expires), when(r.CAEnds))
		switch r.Phase {
		case secrets.Prepared:
			w.line("restart or reload every part, then: certmill deploy secrets rotate activate --dir %s", dir)
		case secrets.Activated:
			w.line("restart or reload every part, then: certmill deploy secrets rotate retire --dir %s", dir)
		}
	})
}
