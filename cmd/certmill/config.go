package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/docs"
)

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check configuration files; print the reference", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(configCheckCommand(), configReferenceCommand())
	return c
}

func configCheckCommand() *cobra.Command {
	var names []string
	for _, r := range roles.All() {
		names = append(names, r.Name)
	}
	c := &cobra.Command{
		Use:     "check --role ROLE --config FILE",
		Short:   "Say everything that is wrong with a role's configuration; opens nothing but the file",
		Example: "  certmill config check --role gateway --config gateway.yaml",
		Args:    cobra.NoArgs,
	}
	source := sourceFlags(c)
	role := c.Flags().String("role", "", strings.Join(names, ", "))
	_ = c.MarkFlagRequired("role")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, r := range roles.All() {
			if r.Name != *role {
				continue
			}
			if err := r.Check(*source); err != nil {
				return usageError{err}
			}
			return newPrinter(c).result(map[string]any{"role": r.Name, "ok": true}, func(w *writer) { w.line("the configuration of the %s is right", r.Name) })
		}
		return usage("--role %s is none of %s", *role, strings.Join(names, ", "))
	}
	return c
}

func configReferenceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reference", Short: "Print every key of every role with its default", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return newPrinter(c).result(map[string]string{"markdown": docs.Configuration}, func(w *writer) {
				_, w.err = fmt.Fprint(w.to, docs.Configuration)
			})
		},
	}
}
