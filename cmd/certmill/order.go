package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/cmd/certmill/client"
	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func orderCommand() *cobra.Command {
	c := &cobra.Command{Use: "order", Short: "Ask for a certificate now and fetch it later", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(orderSubmitCommand(), orderGetCommand())
	return c
}

func orderSubmitCommand() *cobra.Command {
	var r requestFlags
	c := &cobra.Command{
		Use: "submit", Short: "Place an order; it ends in one certificate or a stated error", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				request, err := r.request(c)
				if err != nil {
					return err
				}
				var order *certmillv1.Order
				err = g.Retry(ctx, func(ctx context.Context) (err error) {
					order, err = g.Submit(ctx, &certmillv1.SubmitRequest{Request: request})
					return err
				})
				if err != nil {
					return r.failed(err, request.Csr)
				}
				if err := r.keepKey(); err != nil {
					return err
				}
				return newPrinter(c).result(order, func(w *writer) {
					w.line("order %s is accepted", order.GetId())
					w.line("fetch it: certmill order get %s --out certificate.pem", order.GetId())
				})
			})
		},
	}
	r.add(c, "order submit")
	// The certificate comes with `order get`.
	_ = c.Flags().MarkHidden("out")
	addContextFlags(c)
	return c
}

func orderGetCommand() *cobra.Command {
	var r requestFlags
	var wait time.Duration
	c := &cobra.Command{
		Use: "get <order id>", Short: "Show an order; fetch its certificate", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var order *certmillv1.Order
			err := withGateway(c, func(ctx context.Context, g *client.Client) error {
				return g.Retry(ctx, func(ctx context.Context) (err error) {
					order, err = g.GetOrder(ctx, &certmillv1.GetOrderRequest{Id: args[0], Wait: durationpb.New(wait)})
					return err
				})
			})
			if err != nil {
				return err
			}
			switch order.GetState() {
			case certmillv1.Order_STATE_ISSUED:
				return r.deliver(c, order.GetCertificate())
			case certmillv1.Order_STATE_FAILED:
				return orderFailure(order.GetProblem())
			default:
				return newPrinter(c).result(order, func(w *writer) {
					w.line("pending since %s; wait for it with --wait 30s", when(order.GetCreated().AsTime()))
				})
			}
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "wait for the order's end, up to 30s")
	c.Flags().StringVar(&r.out, "out", "", "file for the certificate and its chain (default: standard output)")
	c.Flags().BoolVar(&r.force, "force", false, "overwrite an existing file")
	addContextFlags(c)
	return c
}

// orderFailure is the stated error of an order.
func orderFailure(p *certmillv1.Problem) error {
	kind := problem.Internal
	for _, k := range problem.Kinds {
		if k.Type() == p.GetType() {
			kind = k
		}
	}
	return &problem.Error{Kind: kind, Field: p.GetField(), Rule: p.GetRule(), Detail: p.GetDetail()}
}
