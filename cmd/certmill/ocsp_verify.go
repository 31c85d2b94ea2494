package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/ocsp/presign"
)

// maxListed bounds the differences that are listed; all are counted.
const maxListed = 1000

// verifyReport is what `ocsp verify` shows.
type verifyReport struct {
	Certificates int          `json:"certificates"`
	Records      int          `json:"records"`
	Differences  int          `json:"differences"`
	Listed       []difference `json:"listed"`
}

type difference struct {
	Serial string `json:"serial"`
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

func ocspVerifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "verify", Short: "Compare the ledger with the answers in Redis, and print what differs", Args: cobra.NoArgs,
		Long: "Compare the ledger with the OCSP answers in Redis, signatures included, and print\n" +
			"what differs. It changes nothing: the presigners mend differences at their next\n" +
			"sweep. The exit code is 1 where something differs.",
		Example: "  certmill ocsp verify --config .certmill/config/presigner.yaml",
	}
	source := sourceFlags(c)
	grace := c.Flags().Duration("grace", 5*time.Second, "pass over what is younger, since its answer may be on the way; 0 passes over nothing")
	c.RunE = func(c *cobra.Command, _ []string) error {
		report := verifyReport{Listed: []difference{}}
		sum, err := roles.VerifyOCSP(c.Context(), *source, *grace, func(d presign.Difference) {
			if len(report.Listed) < maxListed {
				report.Listed = append(report.Listed, difference{d.Serial.String(), d.Kind, d.Detail})
			}
		})
		if err != nil {
			return err
		}
		report.Certificates, report.Records, report.Differences = sum.Certificates, sum.Records, sum.Differences
		if err := newPrinter(c).result(report, report.text); err != nil || report.Differences == 0 {
			return err
		}
		return fmt.Errorf("%d differences; the presigners' next sweep mends them, and certmill_presign_mismatches_total counts what it finds", report.Differences)
	}
	return c
}

func (r verifyReport) text(w *writer) {
	for _, d := range r.Listed {
		w.line("%s  %s  %s", d.Serial, d.Kind, d.Detail)
	}
	if more := r.Differences - len(r.Listed); more > 0 {
		w.line("… and %d more", more)
	}
	w.line("%d certificates in the ledger, %d records in Redis, %d differences", r.Certificates, r.Records, r.Differences)
}
