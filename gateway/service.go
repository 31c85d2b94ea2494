package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// service is the gateway without its transports: proto messages and an
// authenticated Caller in, proto messages and problems out. Deadlines come with the
// context. It is safe for concurrent use.
type service struct {
	cfg        Config
	ledger     Ledger
	signer     Signer
	announcer  Announcer // nil: nobody to tell
	issuers    *issuerCache
	writable   *writable
	early      *earlyRenewals
	profiles   *profile.Set // set by Run before the first request
	status     *statusBoard
	issuance   *issuance
	bundles    *bundles // likewise
	inFlight   *limiter
	renewing   *limiter // renewals among them: the rest is kept for first certificates
	window     *window  // lowers both while signers are slow
	waiting    *limiter
	streams    *limiter
	admission  *admission
	possession *possession
	log        *slog.Logger
	now        func() time.Time
	tickets    *ticketOffice // nil where there is no console
	// consoleURL is where browsers find the console; set before the first request.
	consoleURL string
}

// revoke ends a certificate for good. The ledger has it, with its audit entry, before
// this returns; presigners are told at once and would find it by themselves.
func (s *service) revoke(ctx context.Context, c *Caller, r *certmillv1.RevokeRequest) (*certmillv1.Revocation, error) {
	if err := s.writable.check(); err != nil {
		return nil, err
	}
	n, err := parseSerial(r.Serial)
	if err != nil {
		return nil, err
	}
	if err := checkRevocation(r); err != nil {
		return nil, err
	}
	cert, earlier, err := s.ledger.Certificate(ctx, n)
	if err != nil {
		return nil, err
	}
	if !c.owns(&cert) && !c.has(OperatorRole) {
		return nil, problem.Forbidden("serial", "own_or_operator", "the certificate is not yours; revoking it needs the role operator")
	}
	if earlier != nil {
		return alreadyRevoked(earlier, r)
	}
	recorded, first, err := s.ledger.Revoke(ctx, ledger.Revocation{
		Serial: n, Reason: int16(r.Reason), RevokedBy: c.ID, Comment: r.Comment,
	})
	s.writable.note(err)
	if err != nil {
		return nil, err
	}
	if !first {
		return alreadyRevoked(&recorded, r)
	}
	s.announce(ctx, &cert, &recorded)
	return revocationMessage(&recorded), nil
}

// alreadyRevoked answers who revokes once more. A repetition, or one that states no
// reason, is told what stands; one with another reason would believe that it has been
// recorded, and it has not: a revocation is final.
func alreadyRevoked(stands *ledger.Revocation, r *certmillv1.RevokeRequest) (*certmillv1.Revocation, error) {
	if r.Reason == certmillv1.RevocationReason_REVOCATION_REASON_UNSPECIFIED || int16(r.Reason) == stands.Reason {
		return revocationMessage(stands), nil
	}
	return nil, &problem.Error{Kind: problem.Conflict, Field: "reason", Rule: "revocation_final",
		Detail: fmt.Sprintf("the certificate was revoked already, at %s by %s for the reason %s; a revocation is final and so is its reason",
			stands.RevokedAt.Format(time.RFC3339), stands.RevokedBy, reasonText(stands.Reason))}
}

// reasonText is a CRLReason for a person (RFC 5280 section 5.3.1).
func reasonText(reason int16) string {
	name := strings.TrimPrefix(certmillv1.RevocationReason(reason).String(), "REVOCATION_REASON_")
	return strings.ToLower(strings.ReplaceAll(name, "_", " "))
}

func checkRevocation(r *certmillv1.RevokeRequest) error {
	switch r.Reason {
	case certmillv1.RevocationReason_REVOCATION_REASON_CERTIFICATE_HOLD, certmillv1.RevocationReason_REVOCATION_REASON_REMOVE_FROM_CRL:
		return problem.Rejected("reason", "revocation_final", "a revocation is final: certificateHold and removeFromCRL are not offered")
	}
	if _, ok := certmillv1.RevocationReason_name[int32(r.Reason)]; !ok {
		return problem.Rejected("reason", "revocation_reason", "%d is no CRLReason of RFC 5280", r.Reason)
	}
	if len(r.Comment) > 512 || !plainText(r.Comment) {
		return problem.Rejected("comment", "comment_text", "a comment is at most 512 bytes of text without control characters")
	}
	return nil
}

// getCertificate finds one certificate, for its holder and for viewers.
func (s *service) getCertificate(ctx context.Context, c *Caller, r *certmillv1.GetCertificateRequest) (*certmillv1.Certificate, error) {
	n, err := parseSerial(r.Serial)
	if err != nil {
		return nil, err
	}
	cert, revocation, err := s.ledger.Certificate(ctx, n)
	if err != nil {
		return nil, err
	}
	if !c.owns(&cert) && !c.has(Viewer, OperatorRole) {
		return nil, problem.Forbidden("serial", "own_or_viewer", "the certificate is not yours; reading it needs the role viewer")
	}
	i, err := s.issuers.get(ctx, cert.Issuer)
	if err != nil {
		return nil, err
	}
	i = s.chainFor(cert.Profile, i)
	m := s.storedCertificate(&cert, i)
	m.Chain = i.chain
	m.Pem = string(pemChain(cert.DER, i))
	if revocation != nil {
		m.Revocation = revocationMessage(revocation)
	}
	return m, nil
}

// listCertificates pages through the ledger, for viewers, and through a caller's own.
func (s *service) listCertificates(ctx context.Context, c *Caller, r *certmillv1.ListCertificatesRequest) (*certmillv1.ListCertificatesResponse, error) {
	size, err := pageSize(r.PageSize)
	if err != nil {
		return nil, err
	}
	if r.Caller != c.ID && !c.has(Viewer, OperatorRole) {
		return nil, problem.Forbidden("caller", "own_or_viewer", "listing certificates of others needs the role viewer; your own are listed with caller=%s", c.ID)
	}
	for _, f := range []struct{ field, value string }{{"name", r.Name}, {"owner", r.Owner}, {"caller", r.Caller}} {
		if !utf8.ValidString(f.value) || !plainText(f.value) {
			return nil, problem.Rejected(f.field, "filter_text", "%s is text without control characters", f.field)
		}
	}
	filter := ledger.Filter{Name: nameWithKind(r.Name), Owner: r.Owner, Caller: r.Caller, ExpiresAfter: s.now()}
	if one(r.Name)+one(r.Owner)+one(r.Caller) > 1 {
		return nil, problem.Rejected("name", "one_filter", "at most one of name, owner and caller can be given")
	}
	if r.ExpiresAfter != nil {
		filter.ExpiresAfter = r.ExpiresAfter.AsTime()
	}
	if r.ExpiresBefore != nil {
		filter.ExpiresBefore = r.ExpiresBefore.AsTime()
	}
	rows, next, err := s.ledger.List(ctx, filter, r.PageToken, size)
	if err != nil {
		return nil, err
	}
	out := &certmillv1.ListCertificatesResponse{NextPageToken: next}
	for k := range rows {
		i, err := s.issuers.get(ctx, rows[k].Issuer)
		if err != nil {
			return nil, err
		}
		m := s.storedCertificate(&rows[k].Certificate, i)
		if rows[k].Revoked != nil {
			m.Revocation = revocationMessage(rows[k].Revoked)
		}
		out.Certificates = append(out.Certificates, m)
	}
	return out, nil
}

// nameWithKind returns the name as the ledger has it; without a kind it is a DNS name.
func nameWithKind(name string) string {
	if name == "" || bare(name) != name {
		return name
	}
	return "dns:" + strings.ToLower(name)
}

// owns reports whether the certificate was issued to the caller, or is the very one
// that the caller has shown: whoever holds a key may revoke its certificate.
func (c *Caller) owns(cert *ledger.Certificate) bool {
	return cert.Caller == c.ID || (c.Renewal && c.Serial == cert.Serial)
}

func parseSerial(text string) (serial.Number, error) {
	n, err := serial.Parse(text)
	if err != nil {
		return n, problem.Rejected("serial", "serial_format", "a serial of this CA has %d hexadecimal digits", 2*serial.Size)
	}
	return n, nil
}

func pageSize(asked int32) (int, error) {
	if asked < 0 || asked > 1000 {
		return 0, problem.Rejected("page_size", "page_size", "a page has 1 to 1000 entries")
	}
	if asked == 0 {
		return 100, nil
	}
	return int(asked), nil
}

func one(s string) int {
	if s == "" {
		return 0
	}
	return 1
}

// plainText reports whether s is UTF-8 without control characters.
func plainText(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '�' }) < 0
}

// requestKey makes a request one with its retries: by the caller's idempotency key,
// or, where there is none, by the CSR and the profile. The second result is how long
// the key stands.
func (s *service) requestKey(c *Caller, requestID, profileName string, csrHash [sha256.Size]byte) (ledger.RequestKey, time.Duration) {
	if requestID != "" {
		return ledger.NewRequestKey(c.ID, "id", requestID), s.cfg.RequestIDWindow
	}
	parts := []string{c.ID, "csr", string(csrHash[:]), profileName}
	if c.actsFor != "" {
		parts = append(parts, c.actsFor) // the same key for another identity is another certificate
	}
	return ledger.NewRequestKey(parts...), s.cfg.DuplicateWindow
}

// trustBundle returns the roots and the issuing certificates.
func (s *service) trustBundle() (*certmillv1.TrustBundle, error) {
	set := s.issuers.current()
	if len(set.bundle.Roots) == 0 {
		return nil, problem.Down("ledger", s.cfg.Limits.RetryAfter, errors.New("no issuer has been read from the ledger yet"))
	}
	return set.bundle, nil
}
