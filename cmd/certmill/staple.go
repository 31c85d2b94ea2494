package main

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ocsp/staple"
)

func stapleCommand() *cobra.Command {
	var one staple.Certificate
	var reload string
	var once, check bool
	c := &cobra.Command{
		Use: "staple", Short: "Keep OCSP staples fresh for nginx, HAProxy, Envoy", Args: cobra.NoArgs,
		Long: `Keep OCSP staples fresh for proxies that do not fetch any or fetch badly. Each answer is
verified before it is written, and the last valid one stays while there is no better.

  certmill staple --chain site.pem --haproxy /run/haproxy/admin.sock
  certmill staple --chain site.pem --staple site.der --reload "nginx -s reload"
  certmill staple --chain site.pem --check        # exit 1 unless the staple is fresh

Several certificates go into a configuration file (key certificates); the other keys are
in ` + "`certmill config reference`" + `.`,
		Example: "  certmill staple --config staple.yaml",
	}
	source := sourceFlags(c)
	f := c.Flags()
	f.StringVar(&one.Chain, "chain", "", "certificate in PEM, with its issuer behind it")
	f.StringVar(&one.Issuer, "issuer", "", "file with the issuer's certificate, if it is not in --chain")
	f.StringVar(&one.Staple, "staple", "", "file to write, DER (default: --chain with .ocsp added)")
	f.StringVar(&one.Responder, "responder", "", "responder's URL (default: the certificate's)")
	f.StringArrayVar(&one.HAProxy, "haproxy", nil, "runtime socket of HAProxy; may be repeated")
	f.StringVar(&reload, "reload", "", "command to run after a file was written; split at spaces, no shell")
	f.BoolVar(&once, "once", false, "bring the staples up to date and end")
	f.BoolVar(&check, "check", false, "only look at the files; exit 1 unless all are fresh")
	c.MarkFlagsMutuallyExclusive("once", "check")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var certificates []staple.Certificate
		if one.Chain != "" {
			certificates = []staple.Certificate{one}
		} else if one.Issuer != "" || one.Staple != "" || one.Responder != "" || len(one.HAProxy) > 0 {
			return usage("--chain is missing")
		}
		cfg, err := roles.LoadStaple(*source, certificates)
		if err != nil {
			return usageError{err}
		}
		if reload != "" {
			cfg.Reload = strings.Fields(reload)
		}
		if !once && !check {
			return roles.Staple(c.Context(), cfg)
		}
		s, err := staple.New(cfg, staple.Deps{})
		if err != nil {
			return err
		}
		if once {
			err = s.Once(c.Context())
		}
		return errors.Join(err, reportStaples(newPrinter(c), s))
	}
	return c
}

func reportStaples(p printer, s *staple.Stapler) error {
	reports, ok := s.Check()
	err := p.result(reports, func(w *writer) {
		for _, r := range reports {
			until := ""
			if !r.NextUpdate.IsZero() {
				until = " until " + r.NextUpdate.Format(time.RFC3339)
			}
			if r.Problem != "" {
				until += ": " + r.Problem
			}
			w.line("%-8s %s%s", r.State, r.Staple, until)
		}
	})
	if err == nil && !ok {
		err = errors.New("not every staple is fresh")
	}
	return err
}
