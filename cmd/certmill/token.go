package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Enrollment tokens: a first certificate for who has none", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(tokenCreateCommand(), tokenListCommand(), tokenDeleteCommand())
	return c
}

func tokenCreateCommand() *cobra.Command {
	request := &certmillv1.CreateEnrollmentTokenRequest{}
	var lifetime lifetimeFlag
	c := &cobra.Command{
		Use: "create", Short: "Make a token; its secret is shown once",
		Example: `  certmill token create --profile server --name '*.web.test' --uses 10 --lifetime 24h`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if lifetime.Duration != 0 {
				request.Lifetime = durationpb.New(lifetime.D())
			}
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				// Not repeated: a second try might make a second token.
				made, err := g.Operations.CreateEnrollmentToken(ctx, request)
				if err != nil {
					return client.Problem(err)
				}
				return newPrinter(c).result(made, func(w *writer) {
					tokenText(w, made.GetToken())
					w.line("secret: %s", made.GetSecret())
					w.line("It is not shown again. Put it into a file (mode 0600) and use: certmill issue --token-file FILE …")
				})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&request.Profile, "profile", "", "the only profile that it may use")
	f.StringSliceVar(&request.Names, "name", nil, `a name that it may ask for, "*.web.test" for one label; may be repeated`)
	f.Int32Var(&request.Uses, "uses", 1, "how many certificates it may obtain")
	f.Var(&lifetime, "lifetime", "how long it lives (default 1h, at most 30 days)")
	f.StringVar(&request.Owner, "owner", "", "goes into the metadata of what it obtains")
	_ = c.MarkFlagRequired("profile")
	_ = c.MarkFlagRequired("name")
	addContextFlags(c)
	return c
}

func tokenListCommand() *cobra.Command {
	request := &certmillv1.ListEnrollmentTokensRequest{}
	c := &cobra.Command{
		Use: "list", Short: "List tokens, without their secrets", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				var page *certmillv1.ListEnrollmentTokensResponse
				err := g.Retry(ctx, func(ctx context.Context) (err error) {
					page, err = g.Operations.ListEnrollmentTokens(ctx, request)
					return err
				})
				if err != nil {
					return err
				}
				return newPrinter(c).result(page, func(w *writer) {
					for _, t := range page.GetTokens() {
						tokenText(w, t)
					}
					if page.GetNextPageToken() != "" {
						w.line("there is more: --page %s", page.GetNextPageToken())
					}
				})
			})
		},
	}
	c.Flags().Int32Var(&request.PageSize, "limit", 100, "how many at most")
	c.Flags().StringVar(&request.PageToken, "page", "", "go on from here")
	addContextFlags(c)
	return c
}

func tokenDeleteCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "delete <token id>", Short: "End a token at once", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				done, err := g.Operations.DeleteEnrollmentToken(ctx, &certmillv1.DeleteEnrollmentTokenRequest{Id: args[0]})
				if err != nil {
					return client.Problem(err)
				}
				return newPrinter(c).result(done, func(w *writer) { w.line("token %s has ended", args[0]) })
			})
		},
	}
	addContextFlags(c)
	return c
}

func tokenText(w *writer, t *certmillv1.EnrollmentToken) {
	w.line("%s  profile %s, names %s, used %d of %d, until %s", t.GetId(), t.GetProfile(),
		strings.Join(t.GetNames(), ","), t.GetUsed(), t.GetUses(), when(t.GetExpires().AsTime()))
}
