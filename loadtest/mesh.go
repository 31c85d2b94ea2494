package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/mesh"
	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/target"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// meshOptions are the flags of `loadtest mesh`.
type meshOptions struct {
	options
	agents, csrs              int
	within, rest              time.Duration
	lifetime, meant           time.Duration
	tokenKey, issuer, audient string
	prefix                    string
}

const meshLong = `Play a service mesh that restarts. All agents ask for their first certificate within a few
seconds, and renew at half of its lifetime, by the rules of Istio's agent: half of the
lifetime ± 1 %, counted from notBefore; five tries of one CSR, 100 ms to 800 ms apart, on
the codes on which Istio repeats; then again with a new key, after 0.5 to 30 s.

Lifetimes are compressed (--lifetime for --stands-for); the restart and the retries are
not, so the mesh is that many times as busy as a real one.

Each agent is an identity of its own with a JSON Web Token that is signed here, so the
gateway must trust the key: auth.jwt with jwks_file. "make bench-mesh" sets all of it up.
Tokens and CSRs, each of a key of its own, are made before the clock starts. Agents share
--connections.

At the end the ledger is compared with what the agents obtained. The last line is
  agents=… served=… duplicate_renewals=… herd_peak_ratio_first=… herd_peak_ratio_last=…
where a herd's peak is the busiest second of a period over the rate of a mesh without one.
Exit code 8: somebody has no certificate, or some were made twice.`

func meshCommand() *cobra.Command {
	o := &meshOptions{}
	c := &cobra.Command{
		Use: "mesh", Short: "Restart a mesh of thousands of agents, and see whether the herd dissolves", Long: meshLong,
		Example: `  certmill loadtest mesh --dev .certmill --agents 20000 --profile mesh --token-key token.key --html mesh.html`,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return runMesh(c, o) },
	}
	f := c.Flags()
	f.IntVar(&o.agents, "agents", 20_000, "how many")
	f.DurationVar(&o.within, "within", 10*time.Second, "time after the restart in which all ask")
	f.DurationVarP(&o.rest, "duration", "d", 150*time.Second, "how long they renew after that")
	f.DurationVar(&o.lifetime, "lifetime", 100*time.Second, "the certificates' lifetime, compressed")
	f.DurationVar(&o.meant, "stands-for", 24*time.Hour, "the lifetime that it stands for")
	f.IntVar(&o.csrs, "csrs", 0, "CSRs made for each agent before the clock starts (default: enough for half of the lifetime taken off by jitter)")
	f.StringVarP(&o.target, "target", "t", "istio", "istio (CreateCertificate) or grpc (certmill's Issue)")
	f.StringVar(&o.dev, "dev", "", "folder of a \"certmill dev\" stack to take addresses and credentials from")
	f.StringVar(&o.server.URL, "url", "", "host:port of the gateway's gRPC API")
	f.StringVar(&o.server.CAFile, "ca", "", "roots for its certificate")
	f.StringVar(&o.server.ServerName, "server-name", "", "the name in it")
	f.StringVar(&o.server.CertFile, "cert", "", "client certificate of an operator or viewer, to count in the ledger")
	f.StringVar(&o.server.KeyFile, "key", "", "its private key")
	f.StringVar(&o.server.Profile, "profile", "mesh", "certificate profile (--target grpc)")
	f.StringVar(&o.prefix, "names", "spiffe://certmill.test/ns/mesh/sa/", "start of the agents' SPIFFE IDs, to which the token's subject is added")
	f.StringVar(&o.tokenKey, "token-key", "", "P-256 key (PEM, PKCS #8) that signs the agents' tokens, key id "+mesh.KeyID)
	f.StringVar(&o.issuer, "token-issuer", "https://mesh.certmill.test", "their issuer")
	f.StringVar(&o.audient, "token-audience", "certmill", "their audience")
	f.IntVar(&o.server.Connections, "connections", 64, "connections that the agents share")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "of one try; Istio's client has none, so more than the gateway's own")
	f.StringVar(&o.json, "json", "", "file for the outcome")
	f.StringVar(&o.html, "html", "", "file for the report with plots")
	_ = c.MarkFlagRequired("token-key")
	return c
}

func runMesh(c *cobra.Command, o *meshOptions) error {
	if o.agents < 1 || o.within < time.Second || o.rest < time.Second || o.lifetime < 2*time.Second || o.meant < o.lifetime {
		return usage(errors.New("--agents is at least 1, --within and --duration a second, --lifetime two seconds and not more than --stands-for"))
	}
	if o.target != "istio" && o.target != "grpc" {
		return usage(errors.New("--target is istio or grpc"))
	}
	if _, err := o.fillFromDev(); err != nil {
		return err
	}
	v := newView(c.ErrOrStderr(), time.Second)
	m, err := o.makeMaterial(c.Context(), v)
	if err != nil {
		return err
	}
	// The agents call by their tokens alone: an operator's certificate beside it would say
	// that they have one already.
	kind, err := target.Find(o.target)
	if err != nil {
		return err
	}
	asAgents := o.server
	asAgents.CertFile, asAgents.KeyFile, asAgents.Lifetime = "", "", o.lifetime
	t, err := kind.Open(asAgents)
	if err != nil {
		return err
	}
	defer t.Close()
	if w, ok := t.(target.Warmer); ok {
		if err := w.Warm(c.Context()); err != nil {
			return fmt.Errorf("connecting to %s: %w", o.server.URL, err)
		}
	}
	v.note("%d agents ask within %s; then they renew for %s: %s stand for %s, %.0f times as fast", o.agents, o.within, o.rest, o.lifetime, o.meant, o.factor())
	out, err := mesh.Run(c.Context(), mesh.Config{
		Agents: o.agents, Within: o.within, For: o.rest, TryTimeout: o.timeout, Target: t, Material: m,
		Watch: func(elapsed time.Duration, r mesh.Rates) {
			if s := int(elapsed / time.Second); s <= int(o.within/time.Second)+2 || s%5 == 0 {
				v.note("%4ds  wanted %5d/s  tries %5d/s  served %5d/s  refused %5d/s", s, r.First+r.Renewals, r.Tries, r.Served, r.Refused)
			}
		},
	})
	if err != nil {
		return err
	}
	if err := o.count(c.Context(), out); err != nil {
		return err
	}
	return o.deliver(c, out)
}

func (o *meshOptions) factor() float64 { return o.meant.Seconds() / o.lifetime.Seconds() }

func (o *meshOptions) makeMaterial(ctx context.Context, v *view) (*mesh.Material, error) {
	key, err := mesh.ReadTokenKey(o.tokenKey)
	if err != nil {
		return nil, fmt.Errorf("--token-key: %w", err)
	}
	run, err := material.RunID()
	if err != nil {
		return nil, err
	}
	each := o.csrs
	if each == 0 { // the shortest life that a profile's jitter allows is half
		each = int((o.within+o.rest)/(o.lifetime/4)) + 2
	}
	began := time.Now()
	m, err := mesh.Make(ctx, o.agents, each, mesh.Identities{
		Prefix: o.prefix, Run: run, Issuer: o.issuer, Audience: o.audient, Key: key, Lifetime: o.within + o.rest + time.Hour,
	}, func(done, of int) { v.progress("making tokens and CSRs", done, of) })
	if err == nil {
		v.note("%d tokens and %d CSRs, %d MB, made in %s", o.agents, o.agents*each, m.Bytes()>>20, time.Since(began).Round(100*time.Millisecond))
	}
	return m, err
}

// count asks the ledger, where there is a credential to ask with.
func (o *meshOptions) count(ctx context.Context, out *mesh.Outcome) error {
	if o.server.CertFile == "" {
		return nil
	}
	t, err := o.server.TLS()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(o.server.URL, grpc.WithTransportCredentials(credentials.NewTLS(t)), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	return out.Count(ctx, certmillv1.NewCertificateAuthorityClient(conn))
}

func (o *meshOptions) deliver(c *cobra.Command, out *mesh.Outcome) error {
	if o.json != "" {
		data, err := json.MarshalIndent(out, "", " ")
		if err == nil {
			err = os.WriteFile(filepath.Clean(o.json), append(data, '\n'), 0o644)
		}
		if err != nil {
			return fmt.Errorf("--json: %w", err)
		}
	}
	page := o.page(out)
	if o.html != "" {
		if err := page.WriteHTML(o.html); err != nil {
			return fmt.Errorf("--html: %w", err)
		}
	}
	if wantsJSON(c) {
		if err := json.NewEncoder(c.OutOrStdout()).Encode(out); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(c.OutOrStdout(), "wanted   %s\nrefused  %s\n", report.Spark(page.Wanted, 80), report.Spark(page.Refused, 80))
		if err := out.Write(c.OutOrStdout()); err != nil {
			return err
		}
	}
	if why := out.Failed(); len(why) > 0 {
		return &exitError{ExitObjective, strings.Join(why, "; ")}
	}
	return nil
}

func (o *meshOptions) page(out *mesh.Outcome) *report.Mesh {
	p := &report.Mesh{
		Title:   fmt.Sprintf("A mesh of %d agents restarts", o.agents),
		Summary: fmt.Sprintf("%s at %s · all ask within %s, then renew at half of their lifetime for %s · %s stand for %s, compressed %.0f times", o.target, o.server.URL, o.within, o.rest, o.lifetime, o.meant, o.factor()),
		Started: out.Started, Failed: out.Failed(), Mean: out.Mean, Period: out.Period, Herd: out.Herd,
		Tiles: [][2]string{
			{fmt.Sprint(out.Served), fmt.Sprintf("of %d agents hold a certificate", out.Agents)},
			{fmt.Sprint(out.Duplicates), "certificates made twice"},
			{fmt.Sprint(out.Certificates), "certificates in all"},
			{fmt.Sprintf("%.0f ms", out.Wait.P99), "p99 from wanting one to having it"},
			{fmt.Sprintf("%.1f ms", out.Refusal.P50), "median time to a refusal"},
		},
	}
	for _, s := range out.Seconds {
		p.Wanted, p.Tries = append(p.Wanted, s.First+s.Renewals), append(p.Tries, s.Tries)
		p.Served, p.Refused = append(p.Served, s.Served), append(p.Refused, s.Refused)
	}
	return p
}
