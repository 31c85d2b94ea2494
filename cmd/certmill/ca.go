//go:build cgo

package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer"
	"github.com/certmill/certmill/signer/ceremony"
	"github.com/certmill/certmill/signer/hsm"
)

func caCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ca", Short: "Set up and show the CA; needs the HSM", Args: cobra.NoArgs,
		Long: `Set up and show the CA. These commands take a signer's configuration: its first token
holds the keys, its ledger the certificates.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(caIntermediateCommand(), caInitCommand(), caRolloverCommand(), caRenewCommand(), caShowCommand(), caIssueCommand(), caVerifyTranscriptCommand())
	return c
}

// desk is what a ca command works at: the token and the ledger.
type desk struct {
	cfg   signer.Config
	book  *ledger.Ledger
	token *hsm.Token // nil unless asked for
}

// atDesk opens the ledger and, withToken, the first token, for work.
func atDesk(ctx context.Context, s roles.Source, withToken bool, work func(*desk) error) (err error) {
	d := &desk{}
	whole, err := roles.LoadSigner(s)
	if err != nil {
		return usageError{err}
	}
	d.cfg = whole.Config
	d.cfg.Ledger.MaxConnections = 2
	if d.book, err = ledger.Open(ctx, d.cfg.Ledger, ledger.Deps{}); err != nil {
		return err
	}
	defer d.book.Close()
	if withToken {
		token := d.cfg.Tokens[0]
		token.Sessions = 1
		if d.token, err = hsm.Open(ctx, token, hsm.Deps{}); err != nil {
			return err
		}
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, d.token.Close(closing))
		}()
	}
	return work(d)
}

// loadSpec reads what CA to make: defaults, then a file.
func loadSpec(file string) (ceremony.Spec, error) {
	spec, err := config.Load(ceremony.DefaultSpec(), config.Source{Role: "ca", File: file, Environ: os.Environ(), Elements: ceremony.Elements()})
	if err != nil {
		return spec, usageError{err}
	}
	return spec, nil
}

func caInitCommand() *cobra.Command {
	var specFile, out string
	var r recording
	c := &cobra.Command{
		Use: "init", Short: "Make what is missing of the CA: root, issuing CAs, OCSP signers, cross-certificates, CRL; safe to repeat", Args: cobra.NoArgs,
		Example: `  certmill ca init -c signer.yaml --spec ca.yaml --dry-run
  certmill ca init -c signer.yaml --spec ca.yaml --out . --transcript ceremony.json --witness "Ada Lovelace"
  certmill ca verify-transcript ceremony.json --root root.pem`,
	}
	source := sourceFlags(c)
	c.Flags().StringVar(&specFile, "spec", "", "file that says what CA to make (default: P-384 root, P-256 issuing CA)")
	c.Flags().StringVar(&out, "out", "", "folder for root.pem, issuing.pem, and a file for each further CA, cross-certificate and CRL")
	r.add(c)
	c.Flags().BoolVar(&r.dryRun, "dry-run", false, "say what would be made, and change nothing")
	c.RunE = func(c *cobra.Command, _ []string) error {
		spec, err := loadSpec(specFile)
		if err != nil {
			return err
		}
		if err := r.validate(); err != nil {
			return err
		}
		return atDesk(c.Context(), *source, true, func(d *desk) error {
			if r.dryRun {
				return d.plan(c, spec)
			}
			made, err := ceremony.Init(c.Context(), spec, d.token, d.book, ceremony.Deps{})
			if err != nil {
				return err
			}
			if out != "" {
				if err := writeCA(out, made); err != nil {
					return err
				}
			}
			if err := r.write(c.Context(), made); err != nil {
				return err
			}
			report := reportMade(made)
			return newPrinter(c).result(report, func(w *writer) { caText(w, report) })
		})
	}
	return c
}

func caRenewCommand() *cobra.Command {
	var specFile string
	c := &cobra.Command{
		Use: "renew-ocsp", Short: "Renew the OCSP signers' certificates where they are due", Args: cobra.NoArgs,
		Long: `Renew the OCSP signers' certificates where they are due. Signers do so by themselves
("ocsp_signers" in their configuration); this is for an installation that has switched
that off, and for the day on which no signer runs.`,
	}
	source := sourceFlags(c)
	c.Flags().StringVar(&specFile, "spec", "", "the file that \"ca init\" was given")
	c.RunE = func(c *cobra.Command, _ []string) error {
		spec, err := loadSpec(specFile)
		if err != nil {
			return err
		}
		return atDesk(c.Context(), *source, true, func(d *desk) error {
			var report []caReport
			for _, ca := range append([]ceremony.CASpec{spec.Issuing}, spec.More...) {
				one, err := spec.For(ca.Name)
				if err != nil {
					return err
				}
				delegate, err := ceremony.RenewOCSPSigner(c.Context(), one, d.token, d.book, ceremony.Deps{})
				if err != nil {
					return err
				}
				report = append(report, reportCA("ocsp signer of "+ca.Name, delegate.Certificate, delegate.Signer.KeyURI, delegate.Made))
			}
			return newPrinter(c).result(report, func(w *writer) { caText(w, report) })
		})
	}
	return c
}

func caShowCommand() *cobra.Command {
	c := &cobra.Command{Use: "show", Short: "Show the CA's certificates as the ledger has them", Args: cobra.NoArgs}
	source := sourceFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return atDesk(c.Context(), *source, false, func(d *desk) error {
			report, err := readCA(c.Context(), d.book)
			if err != nil {
				return err
			}
			return newPrinter(c).result(report, func(w *writer) { caText(w, report) })
		})
	}
	return c
}

func readCA(ctx context.Context, book *ledger.Ledger) ([]caReport, error) {
	issuers, err := book.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	signers, err := book.OCSPSigners(ctx)
	if err != nil {
		return nil, err
	}
	var report []caReport
	add := func(name, der, key string) error {
		cert, err := x509.ParseCertificate([]byte(der))
		if err != nil {
			return fmt.Errorf("the ledger's certificate of %s: %w", name, err)
		}
		report = append(report, reportCA(name, cert, key, false))
		return nil
	}
	for _, i := range issuers {
		if err := add(fmt.Sprintf("%s (%s, generation %d)", i.Name, issuerState(i), i.ID), string(i.DER), i.KeyURI); err != nil {
			return nil, err
		}
	}
	for _, s := range signers {
		if err := add(fmt.Sprintf("ocsp signer of generation %d", s.Issuer), string(s.DER), s.KeyURI); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// caReport is one certificate of the CA.
type caReport struct {
	Name     string    `json:"name"`
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"` // of a CRL its number
	NotAfter time.Time `json:"not_after"`
	Key      string    `json:"key"`
	Made     bool      `json:"made"` // by this command
	PEM      string    `json:"pem"`
}

func reportCA(name string, cert *x509.Certificate, key string, made bool) caReport {
	return caReport{
		Name: name, Subject: cert.Subject.String(), Serial: fmt.Sprintf("%x", cert.SerialNumber), NotAfter: cert.NotAfter.UTC(),
		Key: key, Made: made, PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})),
	}
}

func caText(w *writer, report []caReport) {
	for _, r := range report {
		state := ""
		if r.Made {
			state = "  (made now)"
		}
		w.line("%s%s", r.Name, state)
		w.line("  subject    %s", r.Subject)
		w.line("  serial     %s", r.Serial)
		w.line("  valid to   %s", when(r.NotAfter))
		w.line("  key        %s", r.Key)
	}
}

// reportMade lists what a ceremony has made or found.
func reportMade(made *ceremony.Result) []caReport {
	report := []caReport{reportCA("root", made.Root.Certificate, made.Root.Issuer.KeyURI, made.Root.Made)}
	for i, issuer := range made.Issuers() {
		of := ""
		if i > 0 {
			of = " " + issuer.CA.Issuer.Name
		}
		report = append(report,
			reportCA("issuing"+of, issuer.CA.Certificate, issuer.CA.Issuer.KeyURI, issuer.CA.Made),
			reportCA("ocsp signer"+of, issuer.OCSP.Certificate, issuer.OCSP.Signer.KeyURI, issuer.OCSP.Made))
	}
	for _, x := range made.Cross {
		report = append(report, reportCA("cross "+x.Name(), x.Certificate, x.Subject.Issuer.KeyURI, x.Made))
	}
	for _, l := range made.CRLs {
		report = append(report, caReport{
			Name: "CRL of " + l.CA.Issuer.Name, Subject: l.CA.Certificate.Subject.String(), Serial: l.List.Number.Text(16), NotAfter: l.List.NextUpdate.UTC(),
			Key: l.CA.Issuer.KeyURI, Made: true, PEM: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: l.List.Raw})),
		})
	}
	return report
}

// writeCA writes what relying parties and web servers need: certificates in PEM, CRLs in
// DER, as crl_url is to serve them (RFC 5280 section 4.2.1.13).
func writeCA(dir string, made *ceremony.Result) error {
	const kind = "CERTIFICATE"
	err := errors.Join(
		writePEM(filepath.Join(dir, "root.pem"), kind, made.Root.Certificate.Raw),
		writePEM(filepath.Join(dir, "issuing.pem"), kind, made.Issuing.Certificate.Raw))
	for _, i := range made.More {
		err = errors.Join(err, writePEM(filepath.Join(dir, i.CA.Issuer.Name+".pem"), kind, i.CA.Certificate.Raw))
	}
	for _, x := range made.Cross {
		err = errors.Join(err, writePEM(filepath.Join(dir, x.Name()+".pem"), kind, x.Certificate.Raw))
	}
	for _, l := range made.CRLs {
		name := l.CA.Issuer.Name + ".crl"
		if l.CA.Issuer.ID == made.Root.Issuer.ID {
			name = "root.crl"
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), l.List.Raw, 0o644))
	}
	return err
}
