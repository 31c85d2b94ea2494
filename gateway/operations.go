package gateway

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// The bounds of an enrollment token.
const (
	maxTokenLifetime     = 30 * 24 * time.Hour
	defaultTokenLifetime = time.Hour
	maxTokenUses         = 1_000_000
	maxTokenNames        = 100
	maxTokenOwner        = 128 // bytes, as in Metadata
)

// createToken makes an enrollment token, whose secret is in this answer and nowhere else.
func (s *service) createToken(ctx context.Context, c *Caller, r *certmillv1.CreateEnrollmentTokenRequest) (*certmillv1.CreateEnrollmentTokenResponse, error) {
	if err := s.writable.check(); err != nil {
		return nil, err
	}
	if err := c.needs(OperatorRole); err != nil {
		return nil, err
	}
	t, err := s.newToken(c, r)
	if err != nil {
		return nil, err
	}
	var secret string
	secret, t.Hash = newSecret()
	if t, err = s.ledger.CreateToken(ctx, t); err != nil { // with its audit row, or not at all
		return nil, err
	}
	return &certmillv1.CreateEnrollmentTokenResponse{Token: tokenMessage(&t), Secret: secret}, nil
}

func (s *service) newToken(c *Caller, r *certmillv1.CreateEnrollmentTokenRequest) (ledger.Token, error) {
	lifetime, uses := defaultTokenLifetime, int(r.Uses)
	if r.Lifetime != nil {
		lifetime = r.Lifetime.AsDuration()
	}
	if uses == 0 {
		uses = 1
	}
	switch {
	case r.Profile == "":
		return ledger.Token{}, problem.Rejected("profile", "required", "a token is for one profile")
	case len(r.Names) == 0 || len(r.Names) > maxTokenNames:
		return ledger.Token{}, problem.Rejected("names", "token_names", "a token is for 1 to %d names", maxTokenNames)
	case uses < 0 || uses > maxTokenUses:
		return ledger.Token{}, problem.Rejected("uses", "token_uses", "a token has 1 to %d uses", maxTokenUses)
	case lifetime < time.Second || lifetime > maxTokenLifetime:
		return ledger.Token{}, problem.Rejected("lifetime", "token_lifetime", "a token lives 1s to %s", maxTokenLifetime)
	case len(r.Owner) > maxTokenOwner || !plainText(r.Owner):
		return ledger.Token{}, problem.Rejected("owner", "metadata_text", "owner is at most %d bytes of text without control characters", maxTokenOwner)
	}
	if _, err := s.profiles.Get(r.Profile); err != nil {
		return ledger.Token{}, err
	}
	for _, n := range r.Names {
		if !printable(n, 256) || strings.Contains(strings.TrimPrefix(strings.TrimPrefix(n, "dns:"), "*."), "*") {
			return ledger.Token{}, problem.Rejected("names", "token_names", "a name is exact, or \"*.\" and a domain for one label below it")
		}
	}
	return ledger.Token{
		Profile: r.Profile, Names: r.Names, Uses: uses, Owner: r.Owner, CreatedBy: c.ID,
		Expires: s.now().UTC().Add(lifetime).Truncate(time.Microsecond), // what the ledger keeps
	}, nil
}

func (s *service) listTokens(ctx context.Context, c *Caller, r *certmillv1.ListEnrollmentTokensRequest) (*certmillv1.ListEnrollmentTokensResponse, error) {
	if err := c.needs(OperatorRole, Viewer); err != nil {
		return nil, err
	}
	size, err := pageSize(r.PageSize)
	if err != nil {
		return nil, err
	}
	tokens, err := s.ledger.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	if r.PageToken != "" {
		i := slices.IndexFunc(tokens, func(t ledger.Token) bool { return t.ID == r.PageToken })
		if i < 0 {
			return nil, problem.Rejected("page_token", "page_token", "the page token is not one of this list, or its token has left the list; start again")
		}
		tokens = tokens[i+1:]
	}
	out := &certmillv1.ListEnrollmentTokensResponse{}
	if len(tokens) > size {
		tokens = tokens[:size]
		out.NextPageToken = tokens[size-1].ID
	}
	for i := range tokens {
		out.Tokens = append(out.Tokens, tokenMessage(&tokens[i]))
	}
	return out, nil
}

func (s *service) deleteToken(ctx context.Context, c *Caller, r *certmillv1.DeleteEnrollmentTokenRequest) (*certmillv1.DeleteEnrollmentTokenResponse, error) {
	if err := s.writable.check(); err != nil {
		return nil, err
	}
	if err := c.needs(OperatorRole); err != nil {
		return nil, err
	}
	if _, err := uuid.Parse(r.Id); err != nil || len(r.Id) != 36 {
		return nil, problem.Rejected("id", "token_id", "a token's id is a UUID")
	}
	if err := s.ledger.DeleteToken(ctx, r.Id, c.ID); err != nil {
		return nil, err
	}
	return &certmillv1.DeleteEnrollmentTokenResponse{}, nil
}

func tokenMessage(t *ledger.Token) *certmillv1.EnrollmentToken {
	return &certmillv1.EnrollmentToken{
		Id: t.ID, Profile: t.Profile, Names: t.Names, Uses: int32(t.Uses), Used: int32(t.Used),
		Expires: timestamppb.New(t.Expires), Owner: t.Owner, CreatedBy: t.CreatedBy,
	}
}

// listAudit pages through the audit chain; its page token is the last sequence seen.
func (s *service) listAudit(ctx context.Context, c *Caller, r *certmillv1.ListAuditRequest) (*certmillv1.ListAuditResponse, error) {
	if err := c.needs(Auditor); err != nil {
		return nil, err
	}
	size, err := pageSize(r.PageSize)
	if err != nil {
		return nil, err
	}
	var after int64
	if r.PageToken != "" {
		if after, err = strconv.ParseInt(r.PageToken, 10, 64); err != nil || after < 0 {
			return nil, problem.Rejected("page_token", "page_token", "the page token is not one that this service gave")
		}
	}
	entries, err := s.ledger.Audit(ctx, after, size)
	if err != nil {
		return nil, err
	}
	out := &certmillv1.ListAuditResponse{}
	for _, e := range entries {
		out.Entries = append(out.Entries, &certmillv1.AuditEntry{
			Sequence: e.Sequence, Time: timestamppb.New(e.Time), Actor: e.Actor,
			Action: e.Action, Subject: e.Subject, Detail: e.Detail, Hash: e.Hash[:],
		})
	}
	if len(entries) == size {
		out.NextPageToken = strconv.FormatInt(entries[len(entries)-1].Sequence, 10)
	}
	return out, nil
}

// announce tells presigners of a revocation that the ledger has. A failure costs
// them only the time until their next look at the ledger.
func (s *service) announce(ctx context.Context, cert *ledger.Certificate, r *ledger.Revocation) {
	if s.announcer == nil {
		return
	}
	i, err := s.issuers.get(ctx, cert.Issuer)
	if err == nil {
		err = s.announcer.Revoked(ctx, i.Name, &queuev1.RevokedEvent{
			Serial: cert.Serial[:], IssuerId: cert.Issuer, Reason: int32(r.Reason),
			RevokedAtUnix: r.RevokedAt.Unix(), NotAfterUnix: cert.NotAfter.Unix(),
			AcknowledgedUnixMs: s.now().UnixMilli(), Revocation: uint32(cert.Revocation),
		})
	}
	if err != nil {
		s.log.Warn("a revocation could not be announced; presigners will find it in the ledger", "serial", cert.Serial.String(), "error", err)
	}
}
