package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func listCommand() *cobra.Command {
	request := &certmillv1.ListCertificatesRequest{}
	var within time.Duration
	var limit int32
	c := &cobra.Command{
		Use:   "list",
		Short: "Find certificates by name, owner, caller or expiry",
		Example: `  certmill list --name web.test
  certmill list --expires-within 72h`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if within > 0 {
				request.ExpiresBefore = timestamppb.New(time.Now().Add(within))
			}
			request.PageSize = min(limit, 1000)
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				return list(ctx, c, g, request, int(limit))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&request.Name, "name", "", `a subject alternative name, exactly: "web.test" or "uri:spiffe://…"`)
	f.StringVar(&request.Owner, "owner", "", "the owner in the metadata")
	f.StringVar(&request.Caller, "caller", "", "the id of who asked")
	f.DurationVar(&within, "expires-within", 0, "only what expires within this time")
	f.Int32Var(&limit, "limit", 100, "how many at most")
	f.StringVar(&request.PageToken, "page", "", "go on from here: the token that the last page printed")
	c.MarkFlagsMutuallyExclusive("name", "owner", "caller")
	addContextFlags(c)
	return c
}

// list takes pages until limit.
func list(ctx context.Context, c *cobra.Command, g *client.Client, request *certmillv1.ListCertificatesRequest, limit int) error {
	all := &certmillv1.ListCertificatesResponse{}
	for {
		var page *certmillv1.ListCertificatesResponse
		err := g.Retry(ctx, func(ctx context.Context) (err error) {
			page, err = g.ListCertificates(ctx, request)
			return err
		})
		if err != nil {
			return err
		}
		all.Certificates = append(all.Certificates, page.GetCertificates()...)
		all.NextPageToken = page.GetNextPageToken()
		left := limit - len(all.Certificates)
		if left <= 0 || all.NextPageToken == "" {
			break
		}
		request.PageToken, request.PageSize = all.NextPageToken, int32(min(left, 1000))
	}
	return newPrinter(c).result(all, func(w *writer) {
		for _, cert := range all.GetCertificates() {
			state := ""
			if cert.GetRevocation() != nil {
				state = "  REVOKED"
			}
			w.line("%s  %s  %s%s", cert.GetSerial(), cert.GetNotAfter().AsTime().UTC().Format(time.RFC3339), strings.Join(cert.GetNames(), ","), state)
		}
		if all.GetNextPageToken() != "" {
			w.line("there is more: --page %s", all.GetNextPageToken())
		}
	})
}
