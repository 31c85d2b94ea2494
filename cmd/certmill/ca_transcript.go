//go:build cgo

package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/signer/ceremony"
)

// recording is what a ceremony's command is told about being rehearsed and written down.
type recording struct {
	dryRun     bool
	transcript string
	witnesses  []string
}

func (r *recording) add(c *cobra.Command) {
	c.Flags().StringVar(&r.transcript, "transcript", "", "new file for the ceremony's transcript, signed by its CA")
	c.Flags().StringArrayVar(&r.witnesses, "witness", nil, "name of somebody present, for the transcript; may be repeated")
}

func (r *recording) validate() error {
	if len(r.witnesses) > 0 && r.transcript == "" {
		return usage("--witness needs --transcript")
	}
	if r.dryRun && r.transcript != "" {
		return usage("--dry-run makes nothing to write a --transcript of")
	}
	return nil
}

// recorded is what a ceremony has done.
type recorded interface {
	Transcript(ctx context.Context, witnesses []string, deps ceremony.Deps) (*ceremony.Transcript, error)
}

// write writes the transcript where one is wanted. A file that is there is left alone.
func (r *recording) write(ctx context.Context, done recorded) error {
	if r.transcript == "" {
		return nil
	}
	t, err := done.Transcript(ctx, r.witnesses, ceremony.Deps{})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.transcript, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("what was asked for is done, its transcript was not written; give --transcript another name: %w", err)
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// plan shows what `ca init` would make.
func (d *desk) plan(c *cobra.Command, spec ceremony.Spec) error {
	plan, err := ceremony.Plan(c.Context(), spec, d.token, d.book, ceremony.Deps{})
	if err != nil {
		return err
	}
	return newPrinter(c).result(plan, func(w *writer) {
		for _, p := range plan {
			what := "stands already"
			switch {
			case p.Make && strings.HasPrefix(p.Name, "CRL of "):
				what = "would be made anew"
			case p.NewKey:
				what = "would be made, with a new key"
			case p.Make:
				what = "would be made, for a key that is there"
			}
			w.line("%-24s %s: %s", p.Name, what, p.Detail)
		}
		w.line("nothing was changed")
	})
}

func caVerifyTranscriptCommand() *cobra.Command {
	var rootFile string
	c := &cobra.Command{
		Use: "verify-transcript FILE", Short: "Check and show the transcript of a ceremony; needs neither HSM nor ledger", Args: cobra.ExactArgs(1),
		Long: `Check and show a transcript that a ca command has written with --transcript: that no step
was changed, left out or added since, that the root signed it (of the activation or closing
of a generation the issuing CA that issues from then on, which the root has certified), and
that its certificates and CRLs are that root's and come from one another. Take the root's
certificate from where you trust it, not from beside the transcript.`,
	}
	c.Flags().StringVar(&rootFile, "root", "", "the root's certificate (PEM)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if rootFile == "" {
			return usage("--root is needed: the root's certificate")
		}
		root, err := readCertificate(rootFile)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		var t ceremony.Transcript
		if err := json.Unmarshal(text, &t); err != nil {
			return fmt.Errorf("%s is no transcript: %w", args[0], err)
		}
		signer, err := t.Verify(root)
		if err != nil {
			return err
		}
		return newPrinter(c).result(t, func(w *writer) {
			for _, s := range t.Steps {
				w.line("%-12s %s", s.Kind, s.Detail)
				if what := append(s.Certificate, s.CRL...); len(what) > 0 {
					w.line("  SHA-256    %x", sha256.Sum256(what))
				}
			}
			w.line("signed by    %s", signer.Subject)
		})
	}
	return c
}

func readCertificate(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return x509.ParseCertificate(block.Bytes)
}
