package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func renewEarlyCommand() *cobra.Command {
	request := &certmillv1.RenewEarlyRequest{}
	var before string
	c := &cobra.Command{
		Use:   "renew-early",
		Short: "Have certificates renewed before they would be",
		Long: `Have certificates renewed before they would be: those of an issuer, of some holders,
or both, that were issued until now. Their holders learn of it when they next ask for the
renewal of their certificates, which agents do about twenty times in a certificate's life,
and are spread evenly from now until --before. What has been renewed is left alone.

It is advice: agents that go by notAfter alone, such as Istio's, do not hear it.`,
		Example: `  certmill renew-early --issuer issuing --before 6h --reason "new issuing key"
  certmill renew-early --holder 'uri:spiffe://example.test/ns/shop/*' --before 2030-01-02T15:04:05Z
  certmill renew-early list`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			by, err := moment(before, time.Now())
			if err != nil {
				return err
			}
			request.RenewBy = timestamppb.New(by)
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				// Not repeated: a second try might make a second one.
				made, err := g.Operations.RenewEarly(ctx, request)
				if err != nil {
					return client.Problem(err)
				}
				return newPrinter(c).result(made, func(w *writer) { earlyRenewalText(w, made) })
			})
		},
	}
	f := c.Flags()
	f.StringVar(&request.Issuer, "issuer", "", "the issuer whose certificates are meant")
	f.StringVar(&request.Holder, "holder", "", "who holds them: a caller's id, or a name with its kind (uri:…, dns:…); a star at the end for any rest")
	f.StringVar(&before, "before", "", "when the last of them is to renew: a time (RFC 3339), or a duration from now")
	f.StringVar(&request.Reason, "reason", "", "told to the holders, and in the audit trail")
	_ = c.MarkFlagRequired("before")
	c.MarkFlagsOneRequired("issuer", "holder")
	addContextFlags(c)
	c.AddCommand(renewEarlyListCommand(), renewEarlyEndCommand())
	return c
}

// moment reads a time, or a duration from now.
func moment(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usage("--before %q: give a time such as 2030-01-02T15:04:05Z, or a duration such as 6h", text)
	}
	return t, nil
}

func renewEarlyListCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List what stands", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				var list *certmillv1.ListEarlyRenewalsResponse
				err := g.Retry(ctx, func(ctx context.Context) (err error) {
					list, err = g.Operations.ListEarlyRenewals(ctx, &certmillv1.ListEarlyRenewalsRequest{})
					return err
				})
				if err != nil {
					return err
				}
				return newPrinter(c).result(list, func(w *writer) {
					for _, e := range list.GetEarlyRenewals() {
						earlyRenewalText(w, e)
					}
				})
			})
		},
	}
	addContextFlags(c)
	return c
}

func renewEarlyEndCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "end <id>", Short: "Take one back: what has not renewed yet is advised as before", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				done, err := g.Operations.EndEarlyRenewal(ctx, &certmillv1.EndEarlyRenewalRequest{Id: args[0]})
				if err != nil {
					return client.Problem(err)
				}
				return newPrinter(c).result(done, func(w *writer) { w.line("early renewal %s has ended", args[0]) })
			})
		},
	}
	addContextFlags(c)
	return c
}

func earlyRenewalText(w *writer, e *certmillv1.EarlyRenewal) {
	whose := ""
	if e.GetIssuer() != "" {
		whose += ", issuer " + e.GetIssuer()
	}
	if e.GetHolder() != "" {
		whose += ", holder " + e.GetHolder()
	}
	w.line("%s  issued before %s%s: renew by %s  %s", e.GetId(), e.GetCreated().AsTime().UTC().Format(time.RFC3339), whose, when(e.GetRenewBy().AsTime()), e.GetReason())
}
