package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// requestFlags are what `issue` and `order submit` ask for.
type requestFlags struct {
	profile, csrFile, keyOut, keyType, out string
	// keyMade is where the new key lies until there is a certificate for it: with
	// --force beside the key that it is to replace, so that a refusal destroys none.
	keyMade                     string
	names                       requestNames
	lifetime                    lifetimeFlag
	requestID                   string
	owner, service, environment string
	force                       bool
	// command is what a person would repeat.
	command string
	// local: no gateway is asked.
	local bool
}

func (r *requestFlags) add(c *cobra.Command, command string) {
	r.command = command
	f := c.Flags()
	f.StringVar(&r.profile, "profile", "", "certificate profile (default: the gateway's)")
	f.StringVar(&r.csrFile, "csr", "", "bring a CSR, PEM or DER; - is standard input (default: make key and CSR)")
	f.StringVar(&r.names.commonName, "cn", "", "common name")
	f.StringSliceVar(&r.names.dns, "dns", nil, "DNS name; may be repeated")
	f.StringSliceVar(&r.names.ip, "ip", nil, "IP address; may be repeated")
	f.StringSliceVar(&r.names.uri, "uri", nil, "URI, for example spiffe://example.test/ns/a/sa/b; may be repeated")
	f.StringSliceVar(&r.names.email, "email", nil, "email address; may be repeated")
	f.StringVar(&r.keyType, "key-type", "ecdsa-p256", "ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096 or ed25519")
	f.StringVar(&r.keyOut, "key-out", "", "file for the new private key (default: <first name>.key)")
	f.StringVar(&r.out, "out", "", "file for the certificate and its chain; - is standard output (default: <first name>.pem)")
	f.Var(&r.lifetime, "lifetime", "how long the certificate is to live, for example 30d or 12h (default: the profile's)")
	f.StringVar(&r.requestID, "request-id", "", "idempotency key: the same key gets the same certificate (default: a new one)")
	f.StringVar(&r.owner, "owner", "", "who answers for the certificate")
	f.StringVar(&r.service, "service", "", "the workload that holds it")
	f.StringVar(&r.environment, "environment", "", `for example "production"`)
	f.BoolVar(&r.force, "force", false, "overwrite existing files")
	c.MarkFlagsMutuallyExclusive("csr", "key-out")
	for _, name := range []string{"dns", "ip", "uri", "email", "cn"} {
		c.MarkFlagsMutuallyExclusive("csr", name)
	}
}

func issueCommand() *cobra.Command {
	var r requestFlags
	c := &cobra.Command{
		Use:   "issue",
		Short: "Get a certificate; makes the key and the CSR too",
		Example: `  certmill issue --profile server --dns web.test
  certmill issue --csr my.csr --out my.pem
  openssl req … | certmill issue --csr - --out -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error { return issue(ctx, c, g, &r) })
		},
	}
	r.add(c, "issue")
	addContextFlags(c)
	return c
}

func issue(ctx context.Context, c *cobra.Command, g *client.Client, r *requestFlags) error {
	request, err := r.request(c)
	if err != nil {
		return err
	}
	var response *certmillv1.IssueResponse
	err = g.Retry(ctx, func(ctx context.Context) (err error) {
		response, err = g.Issue(ctx, request)
		return err
	})
	if err != nil {
		return r.failed(err, request.Csr)
	}
	return r.deliver(c, response.GetCertificate())
}

// request makes the message. A key that it makes is on disk before anybody is asked
// for a certificate: a certificate without its key is worth nothing.
func (r *requestFlags) request(c *cobra.Command) (*certmillv1.IssueRequest, error) {
	if r.requestID == "" {
		r.requestID = uuid.NewString()
	}
	request := &certmillv1.IssueRequest{
		Profile: r.profile, RequestId: r.requestID,
		Metadata: &certmillv1.Metadata{Owner: r.owner, Service: r.service, Environment: r.environment},
	}
	if r.lifetime.Duration != 0 {
		request.Lifetime = durationpb.New(r.lifetime.D())
	}
	var err error
	if r.csrFile != "" {
		if err := r.checkOut(); err != nil {
			return nil, err
		}
		request.Csr, err = readInput(c, r.csrFile)
		return request, err
	}
	base := r.names.first()
	if base == "" {
		return nil, usage("what name is the certificate for? Give --dns, --ip, --uri, --email or --cn, or a CSR by --csr")
	}
	if r.keyOut == "" {
		r.keyOut = base + ".key"
	}
	if r.out == "" {
		r.out = base + ".pem"
	}
	// Asked before the key is made, so that nothing is left lying about.
	if err := r.checkOut(); err != nil {
		return nil, err
	}
	key, csr, err := r.names.newKeyAndCSR(r.keyType)
	if err != nil {
		return nil, usageError{err}
	}
	request.Csr = csr
	r.keyMade = r.keyOut
	if r.force {
		r.keyMade += ".new"
	}
	return request, r.writeFile(r.keyMade, key, 0o600)
}

// keepKey puts the new key into its place.
func (r *requestFlags) keepKey() error {
	if r.keyMade == r.keyOut || r.keyMade == "" {
		return nil
	}
	return os.Rename(r.keyMade, r.keyOut)
}

// deliver writes the certificate where it was asked for and says what it is.
func (r *requestFlags) deliver(c *cobra.Command, cert *certmillv1.Certificate) error {
	if err := r.keepKey(); err != nil {
		return err
	}
	p := newPrinter(c)
	toStdout := r.out == "-" || (r.out == "" && !p.json)
	switch {
	case toStdout && !p.json:
		_, err := fmt.Fprint(c.OutOrStdout(), cert.GetPem())
		return err
	case !toStdout && r.out != "":
		if err := r.writeFile(r.out, []byte(cert.GetPem()), 0o644); err != nil {
			return err
		}
	}
	return p.result(cert, func(w *writer) {
		certificateText(w, cert)
		w.line("written to    %s", strings.Join(nonEmpty(r.out, r.keyOut), ", "))
	})
}

func nonEmpty(words ...string) []string {
	var kept []string
	for _, w := range words {
		if w != "" {
			kept = append(kept, w)
		}
	}
	return kept
}
