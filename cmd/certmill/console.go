package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func consoleCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "console",
		Short: "Print a link that signs you in to the console in a browser",
		Long: `Print a link that signs you in to the gateway's console, the web page for operators.
The link is good for one minute and for one use; the sign-in lasts as long as the
gateway's console.session says. It needs one of the roles viewer, operator and auditor,
and what you may do there is what your roles allow here.`,
		Example: `  xdg-open "$(certmill console)"`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				var m *certmillv1.OpenConsoleResponse
				err := g.Retry(ctx, func(ctx context.Context) (err error) {
					m, err = g.Operations.OpenConsole(ctx, &certmillv1.OpenConsoleRequest{})
					return err
				})
				if err != nil {
					return err
				}
				return newPrinter(c).result(m, func(w *writer) { w.line("%s", m.GetUrl()) })
			})
		},
	}
	addContextFlags(c)
	return c
}
