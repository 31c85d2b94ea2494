package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// maxLifetime bounds what may be asked for before a profile says less: beyond it no
// serial and no certificate can be made.
const maxLifetime = 30 * 365 * 24 * time.Hour

// maxRequestID bounds an idempotency key, in bytes.
const maxRequestID = 128

// prepared is a request that has passed every check of the gateway.
type prepared struct {
	key     ledger.RequestKey
	csr     [sha256.Size]byte
	reuse   time.Duration // how long the key stands
	request *profile.Request
	sign    *queuev1.SignRequest
	others  []string // issuers that stand in for the one in sign
}

// issue waits for one certificate. requestID is what its answer and the log call it.
func (s *service) issue(ctx context.Context, c *Caller, requestID string, r *certmillv1.IssueRequest) (*issued, error) {
	return s.issueNamed(ctx, c, requestID, r, namesOfCSR)
}

// namesOfCSR leaves the names as the CSR has them.
func namesOfCSR(*profile.Request) {}

// issueNamed is issue where name, before the profile judges, says which names are asked for.
func (s *service) issueNamed(ctx context.Context, c *Caller, requestID string, r *certmillv1.IssueRequest, name func(*profile.Request)) (*issued, error) {
	began := time.Now()
	i, priority, err := s.issueBy(ctx, c, requestID, r, name)
	s.issuance.ended(ctx, priority, time.Since(began), err)
	return i, err
}

// issueBy is issueNamed without its measurement; it also returns the priority.
func (s *service) issueBy(ctx context.Context, c *Caller, requestID string, r *certmillv1.IssueRequest, name func(*profile.Request)) (*issued, queue.Priority, error) {
	p, err := s.prepare(ctx, c, r, name)
	if err != nil {
		return nil, queue.First, err
	}
	priority := c.priority(p.request)
	if priority == queue.Renewal {
		if err := s.renewing.acquire(1); err != nil {
			return nil, priority, err
		}
		defer s.renewing.release(1)
	}
	if err := s.spend(ctx, c, p); err != nil {
		return nil, priority, err
	}
	failpoint.Hit(failpoint.GatewayAccepted)
	asked := time.Now()
	result, err := s.signer.Do(ctx, p.sign, priority, p.others...)
	s.writable.note(err)
	if err != nil {
		return nil, priority, err
	}
	s.window.answered(time.Now(), time.Since(asked))
	// The ledger has judged this already; a signer that mixed two requests up would
	// end here.
	if result.Duplicate && !bytes.Equal(result.CsrSha256, p.sign.CsrSha256) {
		return nil, priority, conflict()
	}
	if result.Duplicate {
		if err := s.refuseRevoked(ctx, result); err != nil {
			return nil, priority, err
		}
	}
	i, err := s.issuers.get(ctx, result.IssuerId)
	if err != nil {
		return nil, priority, err
	}
	s.issuance.by(i.Name)
	done, err := s.newIssued(requestID, result, i, p.request)
	return done, priority, err
}

// refuseRevoked keeps a certificate that is revoked from being handed out again as if
// nothing were: who repeats a request after its certificate was revoked wants another
// one, and must say so with another request id. After a compromise it needs a new key.
func (s *service) refuseRevoked(ctx context.Context, r *queuev1.SignResult) error {
	n, err := serial.FromBytes(r.Serial)
	if err != nil {
		return fmt.Errorf("reading a signer's result: %w", err)
	}
	_, revocation, err := s.ledger.Certificate(ctx, n)
	if err != nil {
		return fmt.Errorf("looking up a certificate that was issued before: %w", err)
	}
	if revocation == nil {
		return nil
	}
	return &problem.Error{Kind: problem.Conflict, Field: "request_id", Rule: "revoked",
		Detail: fmt.Sprintf("the certificate that this request has, %s, was revoked at %s (%s); for a new one send a new request id, and after a compromise a new key",
			n, revocation.RevokedAt.Format(time.RFC3339), reasonText(revocation.Reason))}
}

// prepare turns what was asked into what a signer is asked: the CSR is parsed and its
// signature checked once, and the profile judges all of it. The next message to the signers
// waits for it meanwhile, which only for an order is in vain.
func (s *service) prepare(ctx context.Context, c *Caller, r *certmillv1.IssueRequest, name func(*profile.Request)) (*prepared, error) {
	s.signer.Expect(1)
	defer s.signer.Expect(-1)
	// Step 1: what costs nothing to check.
	if err := checkIssue(r); err != nil {
		return nil, err
	}
	p, err := s.profileFor(c, r.Profile)
	if err != nil {
		return nil, err
	}
	if err := s.writable.check(); err != nil {
		return nil, err
	}
	if err := s.admission.certificate(ctx, c); err != nil {
		return nil, err
	}
	if issuers := p.IssuerNames(); !slices.ContainsFunc(issuers, s.isActive) {
		return nil, problem.Down("issuer", s.cfg.Limits.RetryAfter, fmt.Errorf("profile %s names %q; none of these issuers is active in the ledger", p.Name, issuers))
	}
	// Step 2: the CSR, with its proof of possession.
	parsed, err := s.possession.of(ctx, r.Csr)
	if err != nil {
		return nil, err
	}
	request := profile.FromCSR(parsed)
	request.Profile, request.Caller = p.Name, c.Caller
	name(request)
	request.Lifetime = r.Lifetime.AsDuration()
	request.Owner, request.Service, request.Environment = r.Metadata.GetOwner(), r.Metadata.GetService(), r.Metadata.GetEnvironment()
	// Step 3: what the caller may have.
	if c.grant != nil {
		if err := c.grant.check(p.Name, request.Owner, parsed); err != nil {
			return nil, err
		}
		if c.grant.token.Owner != "" {
			request.Owner = c.grant.token.Owner
		}
	}
	if err := p.Check(request); err != nil {
		return nil, err
	}
	// Step 4: the message for a signer.
	key, window := s.requestKey(c, r.RequestId, p.Name, parsed.SHA256)
	sign := &queuev1.SignRequest{
		RequestKey: key[:], ReuseSeconds: uint32(window / time.Second), CsrSha256: parsed.SHA256[:],
	}
	others := s.route(p, sign)
	request.ToQueue(sign)
	if deadline, ok := ctx.Deadline(); ok {
		sign.DeadlineUnixMs = deadline.UnixMilli()
	}
	return &prepared{key: key, csr: parsed.SHA256, reuse: window, request: request, sign: sign, others: others}, nil
}

// route gives a request the issuer that its key chooses among the profile's, of those
// that are active, and returns the others in the order in which they stand in.
func (s *service) route(p *profile.Profile, r *queuev1.SignRequest) (others []string) {
	issuers := slices.DeleteFunc(p.RankIssuers(r.RequestKey), func(name string) bool { return !s.isActive(name) })
	if len(issuers) == 0 {
		return nil // an order whose issuers have gone waits for them
	}
	r.Issuer = issuers[0]
	return issuers[1:]
}

func (s *service) isActive(issuer string) bool { return s.issuers.current().active[issuer] != nil }

func checkIssue(r *certmillv1.IssueRequest) error {
	if len(r.Csr) == 0 {
		return problem.Rejected("csr", "required", "the request holds no CSR")
	}
	if r.RequestId != "" && !printable(r.RequestId, maxRequestID) {
		return problem.Rejected("request_id", "request_id_format", "an idempotency key is at most 128 bytes of printable ASCII")
	}
	if r.Lifetime != nil {
		d := r.Lifetime.AsDuration()
		if err := r.Lifetime.CheckValid(); err != nil || d < time.Second || d > maxLifetime || d%time.Second != 0 {
			return problem.Rejected("lifetime", "lifetime_range", "a lifetime is a whole number of seconds, at least one, for example 86400s or 24h")
		}
	}
	return nil
}

// profileFor finds the profile asked for, else the token's, else the default one.
func (s *service) profileFor(c *Caller, name string) (*profile.Profile, error) {
	if name == "" && c.grant != nil {
		name = c.grant.token.Profile
	}
	if name == "" {
		name = s.cfg.DefaultProfile
	}
	if name == "" {
		return nil, problem.Rejected("profile", "required", "name a profile; this gateway has no default")
	}
	return s.profiles.Get(name)
}

// spend takes what a request costs: one of its names' certificates, where those are
// limited, and one use of an enrollment token for a request and its retries. A retry has
// the same CSR, or a key could be used for as many as there is time for; and it comes
// while the request's key still stands for the first certificate, which is not after
// that one's end. Half of the lifetime leaves room for its jitter.
func (s *service) spend(ctx context.Context, c *Caller, p *prepared) error {
	if err := s.admission.named(ctx, c, p); err != nil {
		return err
	}
	if c.grant == nil {
		return nil
	}
	use := ledger.NewRequestKey(string(p.key[:]), string(p.csr[:]))
	_, err := s.ledger.UseToken(ctx, c.grant.hash, use, min(p.reuse, p.request.Lifetime/2))
	return err
}

// issueMany issues several certificates at once; the failure of one is that one's. It
// holds a place in flight for each, so all or none of them start.
func (s *service) issueMany(ctx context.Context, c *Caller, requests []*certmillv1.IssueRequest) ([]*certmillv1.IssueResult, error) {
	if len(requests) == 0 {
		return nil, problem.Rejected("requests", "required", "the batch is empty")
	}
	if len(requests) > s.cfg.Limits.MaxBatch {
		return nil, problem.Rejected("requests", "batch_max", "a batch has at most %d requests", s.cfg.Limits.MaxBatch)
	}
	if err := s.inFlight.acquire(len(requests) - 1); err != nil { // the call itself has one place
		return nil, err
	}
	defer s.inFlight.release(len(requests) - 1)
	leave, err := s.admission.admit(ctx, s.admission.calls, c, len(requests)-1)
	if err != nil {
		return nil, err
	}
	defer leave()
	results := make([]*certmillv1.IssueResult, len(requests))
	var wait sync.WaitGroup
	for k := range requests {
		wait.Go(func() { results[k] = s.issueOne(ctx, c, requests[k]) })
	}
	wait.Wait()
	return results, nil
}

// issueOne is issue for batches and streams: a failure, even a defect, is a result.
func (s *service) issueOne(ctx context.Context, c *Caller, r *certmillv1.IssueRequest) (result *certmillv1.IssueResult) {
	requestID := requestIDOf(r)
	if requestID == "" {
		requestID = newRequestID()
	}
	defer func() {
		if v := recover(); v != nil {
			result = s.failedResult(requestID, panicked(v))
		}
	}()
	if r == nil {
		r = &certmillv1.IssueRequest{}
	}
	i, err := s.issue(ctx, c, requestID, r)
	if err != nil {
		return s.failedResult(requestID, err)
	}
	return &certmillv1.IssueResult{RequestId: requestID, Outcome: &certmillv1.IssueResult_Certificate{Certificate: i.message()}}
}

func (s *service) failedResult(requestID string, err error) *certmillv1.IssueResult {
	if problem.KindOf(err) == problem.Internal {
		s.log.Error("one of several requests failed", "request_id", requestID, "error", err)
	}
	return &certmillv1.IssueResult{RequestId: requestID, Outcome: &certmillv1.IssueResult_Problem{Problem: problemMessage(err, requestID)}}
}

// requestIDOf returns the idempotency key of a request, and "" where there is none or
// one that checkIssue will refuse.
func requestIDOf(r *certmillv1.IssueRequest) string {
	if id := r.GetRequestId(); printable(id, maxRequestID) {
		return id
	}
	return ""
}

// newRequestID names a request for the logs where its caller did not.
func newRequestID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
