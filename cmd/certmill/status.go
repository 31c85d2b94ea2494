package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/client"
	"github.com/certmill/certmill/internal/presence"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// The exit codes of `status` beside the general ones.
const (
	exitDegraded = 10
	exitDown     = 11
)

// levelError makes an exit code of a service that is not well; the screen has said why.
type levelError struct{ level string }

func (e levelError) Error() string { return "the service is " + e.level }

// ExitCode is 10 for a service that is degraded and 11 for one that is down.
func (e levelError) ExitCode() int {
	if e.level == "down" {
		return exitDown
	}
	return exitDegraded
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the whole service on one screen",
		Long: `Show the whole service on one screen: processes and versions, the queue, tokens and
their breakers, the ledger, OCSP, CRLs, issuers, and what an operator should look at.
It needs the role viewer.

Exit codes: 0 all is well · 10 degraded: look at it today · 11 down: look at it now ·
otherwise as always (7: no gateway answers).`,
		Example: `  certmill status
  certmill status -o json | jq -r '.findings[].detail'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withGateway(c, func(ctx context.Context, g *client.Client) error {
				var m *certmillv1.ServiceStatus
				err := g.Retry(ctx, func(ctx context.Context) (err error) {
					m, err = g.Operations.GetStatus(ctx, &certmillv1.GetStatusRequest{})
					return err
				})
				if err != nil {
					return err
				}
				if err := newPrinter(c).result(m, func(w *writer) { writeStatus(w, m) }); err != nil {
					return err
				}
				if m.GetLevel() != "ok" {
					return levelError{m.GetLevel()}
				}
				return nil
			})
		},
	}
	addContextFlags(c)
	return c
}

// writeStatus writes the screen.
func writeStatus(w *writer, m *certmillv1.ServiceStatus) {
	w.line("certmill is %s at %s", m.GetLevel(), m.GetTime().AsTime().UTC().Format(time.RFC3339))
	for _, f := range m.GetFindings() {
		w.line("  %-8s  %-7s  %s", f.GetLevel(), f.GetPart(), f.GetDetail())
	}
	w.line("")
	a := m.GetIssuance()
	w.line("issuance   %.1f/s, p50 %s, p99 %s, failed %d, refused %d in the last %.0f s",
		presence.Rate(a), latency(a, .5), latency(a, .99), a.GetFailed(), a.GetRefused(), a.GetSeconds())
	if q := m.GetQueue(); q != nil {
		w.line("queue      %d of %d messages, %s, oldest %s", q.GetMessages(), q.GetMaxMessages(), bytesText(q.GetBytes()), seconds(q.GetOldestSeconds()))
	}
	if l := m.GetLedger(); l.GetReady() {
		w.line("ledger     ready, answers in %s", seconds(l.GetSeconds()))
	} else {
		w.line("ledger     DOWN: %s", l.GetReason())
	}
	if c := m.GetCrls(); c.GetCrls() > 0 {
		w.line("CRLs       %d with %d entries, the first to expire %s", c.GetCrls(), c.GetEntries(), when(c.GetNearestNextUpdate().AsTime()))
	}
	for _, r := range m.GetRoles() {
		if o := r.GetOcsp(); o != nil && r.GetRole() == presence.Presigner {
			w.line("OCSP       %s: %s", r.GetName(), ocspText(o))
		}
	}
	w.line("")
	for _, i := range m.GetIssuers() {
		w.line("issuer     %-20s %-8s %d signers, until %s%s", fmt.Sprintf("%s (%d)", i.GetName(), i.GetGeneration()), i.GetState(), i.GetSigners(), when(i.GetNotAfter().AsTime()), sharesText(i.GetUses()))
	}
	w.line("")
	writeRoles(w, m.GetRoles())
}

// sharesText says what part of a profile an issuer has, where it has not all of it.
func sharesText(uses []*certmillv1.IssuerUse) string {
	text := ""
	for _, u := range uses {
		if u.GetShare() < 1 {
			text += fmt.Sprintf(", %.0f%% of %s", 100*u.GetShare(), u.GetProfile())
		}
	}
	return text
}

// writeRoles writes a line for each process, and below a signer its tokens.
func writeRoles(w *writer, roles []*certmillv1.RoleStatus) {
	w.line("%-11s %-20s %-10s %-8s %s", "ROLE", "NAME", "STATE", "UP", "VERSION")
	for _, r := range roles {
		up := span(r.GetReported().AsTime().Sub(r.GetStarted().AsTime()).Round(time.Second))
		w.line("%-11s %-20s %-10s %-8s %s", r.GetRole(), short(r.GetName(), 20), r.GetState(), up, r.GetVersion())
		for _, t := range r.GetTokens() {
			w.line("  token     %-20s %-10s %d of %d sessions busy, %d signatures, back %d times%s", short(t.GetName(), 20), t.GetCondition(),
				t.GetBusy(), t.GetSessions(), t.GetSignatures(), t.GetRecoveries(), because(t.GetReason()))
		}
	}
}

func ocspText(o *certmillv1.OCSPStatus) string {
	parts := []string{fmt.Sprintf("%d answers", o.GetRecords())}
	if t := o.GetOldestProduced(); t != nil {
		parts = append(parts, "the oldest "+span(time.Since(t.AsTime()).Round(time.Second))+" old")
	}
	if t := o.GetSwept(); t != nil {
		parts = append(parts, "compared with the ledger "+span(time.Since(t.AsTime()).Round(time.Second))+" ago")
	} else {
		parts = append(parts, "not compared with the ledger yet")
	}
	return strings.Join(append(parts, fmt.Sprintf("%d due, %d overdue", o.GetBacklog(), o.GetOverdue())), ", ")
}

func latency(a *certmillv1.Activity, q float64) string {
	d := presence.Quantile(a, q)
	if d == 0 {
		return "-"
	}
	return "≤" + d.String()
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
