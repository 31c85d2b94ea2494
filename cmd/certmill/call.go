package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/client"
)

// contextFlags are the flags of every command that talks to a gateway, with the
// context keys that they stand for.
var contextFlags = []struct{ flag, key, help string }{
	{"gateway", "gateway", "host:port of the gateway's gRPC API"},
	{"server-name", "server_name", "the name in the gateway's certificate"},
	{"ca", "ca_file", "roots for the gateway's certificate (PEM)"},
	{"cert", "cert_file", "client certificate (PEM)"},
	{"key", "key_file", "its private key (PEM)"},
	{"token-file", "token_file", "file with a JWT or an enrollment token"},
	{"timeout", "timeout", "how long to try, retries included (default 15s)"},
}

func addContextFlags(c *cobra.Command) {
	f := c.Flags()
	f.String("context", "", "context file (default: CERTMILL_CONTEXT, ./.certmill/cli.yaml, ~/.config/certmill/cli.yaml)")
	for _, x := range contextFlags {
		f.String(x.flag, "", x.help)
	}
}

// clientContext reads the context that the flags of c ask for.
func clientContext(c *cobra.Command) (client.Context, error) {
	file, _ := c.Flags().GetString("context")
	var set []string
	for _, x := range contextFlags {
		if value, _ := c.Flags().GetString(x.flag); value != "" {
			set = append(set, x.key+"="+value)
		}
	}
	given, err := client.Load(client.Find(file), set)
	if err != nil {
		return client.Context{}, usageError{err}
	}
	return given, nil
}

// withGateway runs work with a connection to the gateway. A call that work makes
// through Retry is repeated, so it must be safe to repeat.
func withGateway(c *cobra.Command, work func(context.Context, *client.Client) error) error {
	given, err := clientContext(c)
	if err != nil {
		return err
	}
	connection, err := given.Dial()
	if err != nil {
		return usageError{err}
	}
	defer connection.Close()
	return work(c.Context(), connection)
}
