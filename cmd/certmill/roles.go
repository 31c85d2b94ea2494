package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
)

// sourceFlags adds the flags that say where a role's configuration comes from.
func sourceFlags(c *cobra.Command) *roles.Source {
	s := &roles.Source{}
	c.Flags().StringVarP(&s.File, "config", "c", "", "configuration file (YAML)")
	c.Flags().StringArrayVar(&s.Set, "set", nil, "key=value over the file and the environment; may be repeated")
	return s
}

func roleCommand(use, short string, run func(context.Context, roles.Source) error) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		Long: short + ".\n\nIts keys are in `certmill config reference`; `certmill config check` finds mistakes.",
	}
	source := sourceFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error { return run(c.Context(), *source) }
	return c
}

func gatewayCommand() *cobra.Command {
	return roleCommand("gateway", "Serve the public API", roles.Gateway)
}

func signerCommand() *cobra.Command {
	c := roleCommand("signer", "Sign what is queued, with the HSM", roles.Signer)
	c.AddCommand(signerDrainCommand(), signerUndrainCommand(), signerDrainsCommand())
	return c
}

func ocspCommand() *cobra.Command {
	c := &cobra.Command{Use: "ocsp", Short: "OCSP: sign answers ahead, and serve them", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(
		roleCommand("responder", "Serve OCSP answers from Redis", roles.Responder),
		roleCommand("presigner", "Sign OCSP answers ahead and at once on revocation", roles.Presigner),
		ocspVerifyCommand(),
	)
	return c
}
