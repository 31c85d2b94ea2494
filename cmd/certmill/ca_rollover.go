//go:build cgo

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/ceremony"
)

func caRolloverCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rollover", Short: "Replace the issuing CA's key while it is at work: prepare, activate, close", Args: cobra.NoArgs,
		Long: `Replace the issuing CA's key while it is at work, without a failed request.

  prepare   makes a new key, its certificate by the root and its OCSP signer. They are
            published, the new generation's CRLs are made, and it issues nothing. The root's
            key must be in the token. Where signers use several tokens, copy the new key to
            each of them now, by the HSM's means.
  activate  has the new generation issue. Signers follow within their issuer_refresh; one
            whose tokens lack the new key goes on with the old one and says it is not ready.
            The old generation issues nothing more; its CRLs and OCSP answers go on.
  close     ends the old generation when its last certificate has expired. Its key can be
            destroyed then.

` + "`certmill ca show`" + ` and ` + "`certmill status`" + ` show the generations. The audit trail has every step.`,
		Example: `  certmill ca rollover prepare -c signer.yaml --spec ca.yaml
  certmill ca rollover activate -c signer.yaml --spec ca.yaml
  certmill ca rollover close -c signer.yaml --generation 2`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(rolloverPrepareCommand(), rolloverActivateCommand(), rolloverCloseCommand())
	return c
}

// rolloverReport is what prepare and activate show.
type rolloverReport struct {
	Issuer     string     `json:"issuer"`
	Generation int32      `json:"generation"`
	State      string     `json:"state"`
	Before     int32      `json:"before"` // the generation that it follows
	Parts      []caReport `json:"parts"`
}

func (d *desk) rolled(c *cobra.Command, next *ceremony.Next) error {
	r := rolloverReport{Issuer: next.CA.Issuer.Name, Generation: next.CA.Issuer.ID, State: next.CA.Issuer.State, Before: next.Before.ID, Parts: []caReport{
		reportCA("issuing", next.CA.Certificate, next.CA.Issuer.KeyURI, next.CA.Made),
		reportCA("ocsp signer", next.OCSP.Certificate, next.OCSP.Signer.KeyURI, next.OCSP.Made),
	}}
	return newPrinter(c).result(r, func(w *writer) {
		w.line("generation %d of %s is %s; it follows generation %d", r.Generation, r.Issuer, r.State, r.Before)
		caText(w, r.Parts)
	})
}

func rolloverPrepareCommand() *cobra.Command {
	var specFile, issuer string
	var r recording
	c := &cobra.Command{Use: "prepare", Short: "Make and publish the next generation; it issues nothing yet; safe to repeat", Args: cobra.NoArgs}
	source := sourceFlags(c)
	c.Flags().StringVar(&specFile, "spec", "", "file that says what the CA is like, as for \"ca init\"")
	c.Flags().StringVar(&issuer, "issuer", "", "name of the issuing CA in it (default: that of issuing)")
	r.add(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		spec, err := rolloverSpec(specFile, issuer)
		if err != nil {
			return err
		}
		if err := r.validate(); err != nil {
			return err
		}
		return atDesk(c.Context(), *source, true, func(d *desk) error {
			next, err := ceremony.Prepare(c.Context(), spec, localCaller(), d.token, d.book, ceremony.Deps{})
			if err != nil {
				return err
			}
			if err := r.write(c.Context(), next); err != nil {
				return err
			}
			return d.rolled(c, next)
		})
	}
	return c
}

// rolloverSpec reads the spec and leaves in it the issuing CA that is rolled over.
func rolloverSpec(file, issuer string) (ceremony.Spec, error) {
	spec, err := loadSpec(file)
	if err != nil {
		return spec, err
	}
	if spec, err = spec.For(issuer); err != nil {
		return spec, usageError{err}
	}
	return spec, nil
}

func rolloverActivateCommand() *cobra.Command {
	var specFile, issuer string
	var r recording
	var published time.Duration
	c := &cobra.Command{Use: "activate", Short: "Have the prepared generation issue from now on", Args: cobra.NoArgs}
	source := sourceFlags(c)
	c.Flags().StringVar(&specFile, "spec", "", "the file that \"prepare\" was given")
	c.Flags().StringVar(&issuer, "issuer", "", "name of the issuing CA in it (default: that of issuing)")
	r.add(c)
	c.Flags().DurationVar(&published, "published-for", 10*time.Minute, "refuse a generation that was prepared less than this ago: gateways must know it and its CRLs must be there")
	c.RunE = func(c *cobra.Command, _ []string) error {
		spec, err := rolloverSpec(specFile, issuer)
		if err != nil {
			return err
		}
		if err := r.validate(); err != nil {
			return err
		}
		return atDesk(c.Context(), *source, true, func(d *desk) error {
			next, err := ceremony.Activate(c.Context(), spec, published, localCaller(), d.token, d.book, ceremony.Deps{})
			if err != nil {
				return err
			}
			if err := r.write(c.Context(), next); err != nil {
				return err
			}
			return d.rolled(c, next)
		})
	}
	return c
}

func rolloverCloseCommand() *cobra.Command {
	var generation int32
	var force bool
	var r recording
	c := &cobra.Command{
		Use: "close", Aliases: []string{"retire"}, Short: "End a retired generation whose certificates have all expired", Args: cobra.NoArgs,
		Long: `End a retired generation: it leaves the trust bundle, and its CRLs and the renewal of its
OCSP signer end. Refused while it has certificates that have not expired, unless --force is
given: those cannot be checked for revocation any more. There is no way back.`,
	}
	source := sourceFlags(c)
	c.Flags().Int32Var(&generation, "generation", 0, "the generation's number, from \"certmill ca show\"")
	c.Flags().BoolVar(&force, "force", false, "although certificates of it have not expired")
	r.add(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if generation <= 0 {
			return usage("--generation is needed: its number, from `certmill ca show`")
		}
		if err := r.validate(); err != nil {
			return err
		}
		// The transcript alone needs the token: the active generation signs it.
		return atDesk(c.Context(), *source, r.transcript != "", func(d *desk) error {
			if err := d.book.CloseIssuer(c.Context(), generation, localCaller(), force); err != nil {
				return err
			}
			if err := r.write(c.Context(), closing{generation, d}); err != nil {
				return err
			}
			i, err := generationOf(c.Context(), d.book, generation)
			if err != nil {
				return err
			}
			report := issuerReport{i.ID, i.Name, i.State, i.KeyURI}
			return newPrinter(c).result(report, func(w *writer) {
				w.line("generation %d of %s is %s; its key is %s", report.ID, report.Name, report.State, report.Key)
			})
		})
	}
	return c
}

func generationOf(ctx context.Context, book *ledger.Ledger, id int32) (ledger.Issuer, error) {
	issuers, err := book.Issuers(ctx)
	if err != nil {
		return ledger.Issuer{}, err
	}
	for _, i := range issuers {
		if i.ID == id {
			return i, nil
		}
	}
	return ledger.Issuer{}, fmt.Errorf("generation %d has gone from the ledger", id)
}

// closing is a generation that was closed.
type closing struct {
	generation int32
	desk       *desk
}

// Transcript implements recorded.
func (c closing) Transcript(ctx context.Context, witnesses []string, deps ceremony.Deps) (*ceremony.Transcript, error) {
	return ceremony.CloseTranscript(ctx, c.generation, witnesses, c.desk.token, c.desk.book, deps)
}
