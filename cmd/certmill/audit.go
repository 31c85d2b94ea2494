package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/auditchain"
)

func auditCommand() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "The audit trail: is it as it was written?", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(auditVerifyCommand(), auditHeadsCommand(), auditExportCommand())
	return c
}

// verifyFlags are what `audit verify` asks for.
type verifyFlags struct {
	file, roots, witness string
	maxAge               time.Duration
}

func auditVerifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check every row of the audit trail and the signed heads over it; exit 1 if anything was changed",
		Long: `Check every row of the audit trail: each holds the hash of the one before, and heads of
this chain are signed by an issuer's key, in the HSM, at intervals. A row that was changed,
taken out, put in or moved is named, and so is an end that was cut off.

Whoever can write the database can also put issuers of their own into it: give --roots,
from a place that they cannot reach. Whoever can delete the signed heads with the end of
the trail is found by --max-age, and for certain by --witness: a head that you kept, a file
of --keep-head or the line "audit head signed" of a signer's log.`,
		Example: `  certmill audit verify --config ledger.yaml --roots root.pem --keep-head head.json
  certmill audit verify --config ledger.yaml --roots root.pem --witness head.json
  certmill audit export --config ledger.yaml --out audit.jsonl
  certmill audit verify --file audit.jsonl --roots root.pem      offline`,
		Args: cobra.NoArgs,
	}
	source := ledgerSource(c)
	url, passwordFile := ledgerFlags(c)
	c.Flags().StringVar(&f.file, "file", "", "an exported trail, in place of the ledger; - is standard input")
	c.Flags().StringVar(&f.roots, "roots", "", "roots that the issuers of the signed heads must come from (PEM)")
	c.Flags().DurationVar(&f.maxAge, "max-age", 2*time.Hour, "how old the newest signed head may be; 0 does not ask")
	c.Flags().StringVar(&f.witness, "witness", "", "file with a signed head that was kept: the trail must still hold it")
	keep := c.Flags().String("keep-head", "", "file to write the newest signed head to, as a witness for later")
	c.MarkFlagsMutuallyExclusive("file", "config")
	c.MarkFlagsMutuallyExclusive("file", "url")
	c.MarkFlagsMutuallyExclusive("file", "keep-head")
	c.RunE = func(c *cobra.Command, _ []string) error {
		o, err := f.options()
		if err != nil {
			return err
		}
		if f.file != "" {
			return auditReport(c, &f, func() (auditchain.Report, error) { return verifyFile(c, f.file, o) })
		}
		return withLedger(c, source, *url, *passwordFile, func(book *ledger.Ledger) error {
			err := auditReport(c, &f, func() (auditchain.Report, error) { return auditchain.Verify(c.Context(), book, o) })
			if err == nil && *keep != "" {
				err = keepHead(c.Context(), book, *keep)
			}
			return err
		})
	}
	return c
}

// maxHeads bounds `audit heads`.
const maxHeads = 10_000

func auditHeadsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "heads", Short: "List the newest signed heads of the audit trail: what an auditor keeps elsewhere",
		Long: `List the newest signed heads of the audit trail, the newest first. A head says that the
trail had so many rows, the last with this hash, at this time; an issuer's key in the HSM
has signed it. Kept where nobody who can write the database reaches it, one head proves
every row up to it: ` + "`audit verify --witness`" + `, with the ledger or with an export, offline.

It shows what stands in the ledger and checks nothing: that is for ` + "`audit verify`" + `.`,
		Example: `  certmill audit heads --config ledger.yaml
  certmill audit heads --config ledger.yaml -o json | jq '.[0]' > head.json
  certmill audit verify --file audit.jsonl --roots root.pem --witness head.json`,
		Args: cobra.NoArgs,
	}
	source := ledgerSource(c)
	url, passwordFile := ledgerFlags(c)
	limit := c.Flags().Int("limit", 20, "how many")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *limit < 1 || *limit > maxHeads {
			return usage("--limit must be 1 to %d, not %d", maxHeads, *limit)
		}
		return withLedger(c, source, *url, *passwordFile, func(book *ledger.Ledger) error {
			heads, err := book.NewestSignedHeads(c.Context(), *limit)
			if err != nil {
				return err
			}
			issuers, err := book.Issuers(c.Context())
			if err != nil {
				return err
			}
			return showHeads(c, heads, issuers)
		})
	}
	return c
}

func showHeads(c *cobra.Command, heads []ledger.SignedHead, issuers []ledger.Issuer) error {
	names := map[int32]string{}
	for _, i := range issuers {
		names[i.ID] = i.Name
	}
	files := make([]auditchain.HeadFile, len(heads))
	for i, h := range heads {
		files[i] = auditchain.NewHeadFile(h)
	}
	return newPrinter(c).result(files, func(w *writer) {
		if len(heads) == 0 {
			w.line("no head of the audit trail is signed yet")
			return
		}
		w.line("%8s  %-36s  %-20s  %s", "ROWS", "SIGNED", "BY", "HASH OF THE LAST ROW")
		for _, h := range heads {
			w.line("%8d  %-36s  %-20s  %x", h.Sequence, when(h.SignedAt), fmt.Sprintf("%s (%d)", names[h.Issuer], h.Issuer), h.Hash)
		}
	})
}

func auditExportCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "export", Short: "Write the audit trail with its signed heads to a file, for `audit verify --file` elsewhere",
		Args: cobra.NoArgs,
	}
	source := ledgerSource(c)
	url, passwordFile := ledgerFlags(c)
	out := c.Flags().String("out", "", "the file (one JSON object a line)")
	_ = c.MarkFlagRequired("out")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withLedger(c, source, *url, *passwordFile, func(book *ledger.Ledger) error {
			var report auditchain.Report
			err := replaceFile(*out, func(to io.Writer) (err error) {
				report, err = auditchain.Export(c.Context(), book, to)
				return err
			})
			if err != nil {
				return err
			}
			return newPrinter(c).result(report, func(w *writer) {
				w.line("%d rows and %d signed heads written to %s", report.Rows, report.Heads, *out)
			})
		})
	}
	return c
}

// ledgerFlags are the flags that stand in for a configuration file.
func ledgerFlags(c *cobra.Command) (url, passwordFile *string) {
	url = c.Flags().String("url", "", "connection string of the database, as ledger.url")
	return url, c.Flags().String("password-file", "", "file with its password, as ledger.password_file")
}

// withLedger runs work with the ledger that the flags name.
func withLedger(c *cobra.Command, source *roles.Source, url, passwordFile string, work func(*ledger.Ledger) error) error {
	if url != "" {
		source.Set = append(source.Set, "ledger.url="+url)
	}
	if passwordFile != "" {
		source.Set = append(source.Set, "ledger.password_file="+passwordFile)
	}
	cfg, err := roles.LoadLedger(*source)
	if err != nil {
		return usageError{err}
	}
	book, err := ledger.Open(c.Context(), cfg.Ledger, ledger.Deps{})
	if err != nil {
		return err
	}
	defer book.Close()
	return work(book)
}

func (f *verifyFlags) options() (auditchain.Options, error) {
	o := auditchain.Options{MaxAge: f.maxAge}
	if f.roots != "" {
		data, err := os.ReadFile(f.roots)
		if err != nil {
			return o, usageError{err}
		}
		o.Roots = x509.NewCertPool()
		if !o.Roots.AppendCertsFromPEM(data) {
			return o, usage("--roots %s holds no certificate in PEM", f.roots)
		}
	}
	if f.witness != "" {
		data, err := os.ReadFile(f.witness)
		if err != nil {
			return o, usageError{err}
		}
		var kept auditchain.HeadFile
		if err := json.Unmarshal(data, &kept); err != nil {
			return o, usage("--witness %s: %w", f.witness, err)
		}
		head, err := kept.Head()
		if err != nil {
			return o, usage("--witness %s: %w", f.witness, err)
		}
		o.Witness = &head
	}
	return o, nil
}

func verifyFile(c *cobra.Command, name string, o auditchain.Options) (auditchain.Report, error) {
	from := c.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return auditchain.Report{}, usageError{err}
		}
		defer f.Close()
		from = f
	}
	return auditchain.VerifyFile(from, o)
}

// auditReport tells what a check has found, or what is wrong.
func auditReport(c *cobra.Command, f *verifyFlags, check func() (auditchain.Report, error)) error {
	report, err := check()
	if err != nil {
		_, row := errors.AsType[*ledger.BrokenChainError](err)
		_, head := errors.AsType[*auditchain.HeadError](err)
		if row || head {
			err = fmt.Errorf("the audit trail is not as it was written: %w", err)
		}
		return err
	}
	return newPrinter(c).result(report, func(w *writer) {
		w.line("the audit trail is whole: %d rows", report.Rows)
		if report.Heads == 0 {
			w.line("no head of it is signed: this is no proof against who can write the database")
			return
		}
		w.line("%d signed heads fit; signed up to row %d, last %s", report.Heads, report.SignedRows, when(report.SignedAt))
		if f.roots == "" {
			w.line("the signers' certificates were taken from the trail's own source: give --roots to rely on them")
		}
	})
}

// keepHead writes the newest signed head to a file.
func keepHead(ctx context.Context, book *ledger.Ledger, name string) error {
	head, err := book.LastSignedHead(ctx)
	if err != nil {
		return err
	}
	if head.Signature == nil {
		return errors.New("--keep-head: there is no signed head yet")
	}
	return replaceFile(name, func(to io.Writer) error { return json.NewEncoder(to).Encode(auditchain.NewHeadFile(head)) })
}

// replaceFile writes a file whole or not at all, for its owner to read.
func replaceFile(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".certmill-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
