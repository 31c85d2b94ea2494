package client

import (
	"context"

	"github.com/certmill/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Client is a connection to a gateway. It is safe for concurrent use.
type Client struct {
	certmillv1.CertificateAuthorityClient
	Operations certmillv1.OperationsClient
	client     *client.Client
}

// Dial prepares a connection; the first call makes it.
func (c Context) Dial() (*Client, error) {
	made, err := client.New(client.Config{
		Gateway: c.Gateway, ServerName: c.ServerName, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile,
		TokenFile: c.TokenFile, Timeout: c.Timeout,
	})
	if err != nil {
		return nil, err
	}
	return &Client{CertificateAuthorityClient: made.Authority, Operations: made.Operations, client: made}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.client.Close() }

// Retry repeats call as client.Client.Retry does: it must be safe to repeat.
func (c *Client) Retry(ctx context.Context, call func(context.Context) error) error {
	return c.client.Retry(ctx, call)
}

// Problem turns the error of a call that is not repeated into its problem.
func Problem(err error) error { return client.Problem(err) }
