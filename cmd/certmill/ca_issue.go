//go:build cgo

package main

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
	"github.com/certmill/certmill/signer"
	"github.com/certmill/certmill/signer/hsm"
)

func caIssueCommand() *cobra.Command {
	var r requestFlags
	c := &cobra.Command{
		Use:   "issue",
		Short: "Issue on the signer's machine, without gateway and queue; the profile must allow the caller kind \"local\"",
		Long: `Issue on the signer's machine, without gateway and queue: for the first certificates of
an installation, such as the gateway's own. Profile, lint, ledger and audit trail are
those of every certificate. The profile must allow the caller kind "local".`,
		Args: cobra.NoArgs,
	}
	source := sourceFlags(c)
	r.add(c, "ca issue")
	r.local = true
	c.Flags().Lookup("profile").Usage = "certificate profile; needed, there is no gateway with a default"
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.profile == "" {
			return usage("--profile is needed here; there is no gateway with a default")
		}
		r.command += fromSource(source)
		return atDesk(c.Context(), *source, true, func(d *desk) error { return d.issue(c, &r) })
	}
	return c
}

func (d *desk) issue(c *cobra.Command, r *requestFlags) error {
	message, err := r.request(c)
	if err != nil {
		return err
	}
	cert, asked, err := d.certify(c.Context(), message)
	switch {
	case err != nil && !asked:
		r.discardKey()
		return err
	case err != nil:
		return r.failed(err, message.Csr)
	}
	return r.deliver(c, cert)
}

// fromSource writes the flags that name a configuration.
func fromSource(s *roles.Source) string {
	text := ""
	if s.File != "" {
		text = " --config " + s.File
	}
	for _, set := range s.Set {
		text += " --set " + set
	}
	return text
}

// certify issues one certificate on the signer's path. Unless asked there is none,
// whatever the error.
func (d *desk) certify(ctx context.Context, m *certmillv1.IssueRequest) (cert *certmillv1.Certificate, asked bool, err error) {
	profiles, err := profile.LoadDir(d.cfg.ProfilesDir)
	if err != nil {
		return nil, false, usageError{err}
	}
	p, err := profiles.Get(m.Profile)
	if err != nil {
		return nil, false, err
	}
	parsed, err := csr.Parse(m.Csr)
	if err != nil {
		return nil, false, err
	}
	issuer, key, err := d.issuer(ctx, p.IssuerNames())
	if err != nil {
		return nil, false, err
	}
	actor := localCaller()
	direct, err := signer.NewDirect(ctx, signer.DirectConfig{
		Name: "ca-issue", Actor: actor, Issuer: issuer, Key: key, TokenSerial: d.token.Info().Serial, Profiles: profiles, LintShare: 1,
	}, d.book, signer.Deps{})
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, direct.Close(context.WithoutCancel(ctx))) }()
	request := profile.FromCSR(parsed)
	request.Profile = m.Profile
	request.Caller = profile.Caller{ID: actor, Kind: profile.KindLocal, Identity: actor}
	request.Lifetime = m.GetLifetime().AsDuration()
	request.Owner, request.Service, request.Environment = m.Metadata.Owner, m.Metadata.Service, m.Metadata.Environment
	out, err := direct.Issue(ctx, signer.DirectRequest{Request: request, CSR: parsed.SHA256, RequestID: m.RequestId, Reuse: time.Hour})
	if err != nil {
		return nil, true, err
	}
	if out.Duplicate {
		_, revocation, err := d.book.Certificate(ctx, out.Certificate.Serial)
		if err != nil {
			return nil, true, err
		}
		if revocation != nil {
			return nil, true, &problem.Error{Kind: problem.Conflict, Field: "request_id", Rule: "revoked",
				Detail: fmt.Sprintf("the certificate of this request, %s, is revoked since %s; a new one needs a new request id", revocation.Serial, when(revocation.RevokedAt))}
		}
	}
	return asMessage(out, issuer, m.RequestId), true, nil
}

// issuer returns the active generation of the first issuer whose key is in the token.
func (d *desk) issuer(ctx context.Context, names []string) (ledger.Issuer, *hsm.Key, error) {
	issuers, err := d.book.Issuers(ctx)
	if err != nil {
		return ledger.Issuer{}, nil, err
	}
	var errs []error
	for _, name := range names {
		i := slices.IndexFunc(issuers, func(i ledger.Issuer) bool { return i.Name == name && i.State == ledger.IssuerActive })
		if i < 0 {
			errs = append(errs, problem.New(problem.NotFound, "the ledger has no active issuer %q; make the CA with `certmill ca init`", name))
			continue
		}
		key, err := d.token.Key(ctx, issuers[i].KeyURI)
		if err == nil {
			return issuers[i], key, nil
		}
		errs = append(errs, err)
	}
	return ledger.Issuer{}, nil, errors.Join(errs...)
}

// asMessage makes the API's certificate of a ledger row.
func asMessage(out ledger.Outcome, issuer ledger.Issuer, requestID string) *certmillv1.Certificate {
	row := out.Certificate
	cert := &certmillv1.Certificate{
		Serial: row.Serial.String(), Der: row.DER, Issuer: issuer.Name, Profile: row.Profile, ProfileVersion: row.ProfileVersion,
		Names: row.Names, NotBefore: timestamppb.New(row.NotBefore), NotAfter: timestamppb.New(row.NotAfter), Caller: row.Caller,
		Metadata:  &certmillv1.Metadata{Owner: row.Owner, Service: row.Service, Environment: row.Environment},
		RequestId: requestID, Duplicate: out.Duplicate, SpkiSha256: hex.EncodeToString(row.SPKI[:]),
	}
	// The chain ends before the root, which the last of issuer.Chain is.
	cert.Chain = append([][]byte{issuer.DER}, issuer.Chain[:max(0, len(issuer.Chain)-1)]...)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Der})
	for _, der := range cert.Chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	cert.Pem = string(text)
	return cert
}
