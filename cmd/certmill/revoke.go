package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// reasons are the revocation reasons by their names in RFC 5280 section 5.3.1.
// certificateHold and removeFromCRL are not offered: a revocation is final.
var reasons = []struct {
	name   string
	reason certmillv1.RevocationReason
}{
	{"unspecified", certmillv1.RevocationReason_REVOCATION_REASON_UNSPECIFIED},
	{"keyCompromise", certmillv1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE},
	{"cACompromise", certmillv1.RevocationReason_REVOCATION_REASON_CA_COMPROMISE},
	{"affiliationChanged", certmillv1.RevocationReason_REVOCATION_REASON_AFFILIATION_CHANGED},
	{"superseded", certmillv1.RevocationReason_REVOCATION_REASON_SUPERSEDED},
	{"cessationOfOperation", certmillv1.RevocationReason_REVOCATION_REASON_CESSATION_OF_OPERATION},
	{"privilegeWithdrawn", certmillv1.RevocationReason_REVOCATION_REASON_PRIVILEGE_WITHDRAWN},
	{"aACompromise", certmillv1.RevocationReason_REVOCATION_REASON_AA_COMPROMISE},
}

func reasonNames() []string {
	var names []string
	for _, r := range reasons {
		names = append(names, r.name)
	}
	return names
}

func reasonName(reason certmillv1.RevocationReason) string {
	for _, r := range reasons {
		if r.reason == reason {
			return r.name
		}
	}
	return reason.String()
}

// parseReason takes RFC 5280's names in any case, with or without dashes.
func parseReason(name string) (certmillv1.RevocationReason, error) {
	plain := strings.NewReplacer("-", "", "_", "").Replace(name)
	for _, r := range reasons {
		if strings.EqualFold(plain, r.name) {
			return r.reason, nil
		}
	}
	return 0, usage("--reason %s is none of %s", name, strings.Join(reasonNames(), ", "))
}

func revokeCommand() *cobra.Command {
	var reason, comment string
	c := &cobra.Command{
		Use:   "revoke <certificate file | serial>",
		Short: "Revoke a certificate, for good",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			why, err := parseReason(reason)
			if err != nil {
				return err
			}
			in, err := readSubject(c, args[0])
			if err != nil {
				return err
			}
			if in.request != nil || in.foreign != nil {
				return usage("%s is no certificate of certmill", args[0])
			}
			request := &certmillv1.RevokeRequest{Serial: in.serial.String(), Reason: why, Comment: comment}
			var done *certmillv1.Revocation
			err = withGateway(c, func(ctx context.Context, g *client.Client) error {
				return g.Retry(ctx, func(ctx context.Context) (err error) {
					done, err = g.Revoke(ctx, request)
					return err
				})
			})
			if err != nil {
				return err
			}
			return newPrinter(c).result(done, func(w *writer) {
				w.line("revoked %s: %s, by %s, %s", done.GetSerial(), reasonName(done.GetReason()), done.GetRevokedBy(), when(done.GetRevokedAt().AsTime()))
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "unspecified", strings.Join(reasonNames(), ", "))
	c.Flags().StringVar(&comment, "comment", "", "for the audit trail")
	_ = c.RegisterFlagCompletionFunc("reason", cobra.FixedCompletions(reasonNames(), cobra.ShellCompDirectiveNoFileComp))
	addContextFlags(c)
	return c
}
