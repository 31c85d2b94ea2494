package gateway

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// LedgerHealth is what a status asks of the ledger.
type LedgerHealth interface {
	// Ping returns nil when the ledger can be written to.
	Ping(ctx context.Context) error
	// CRLs returns the last CRL of every distribution point.
	CRLs(ctx context.Context) ([]ledger.CRL, error)
	// Expiring counts what expires soon by owner; whole is false where there is more.
	Expiring(ctx context.Context) (owners []ledger.Expiring, whole bool, err error)
	// Reports returns what processes without a broker said of themselves.
	Reports(ctx context.Context) ([]ledger.RoleReport, error)
}

const (
	// statusFor is how long a status stands: any number of people who look cost the
	// ledger one look a second.
	statusFor = time.Second
	// statusTimeout bounds a look at the ledger.
	statusTimeout = 3 * time.Second
)

// statusBoard makes the picture of the service and keeps it for a moment. It is safe
// for concurrent use.
type statusBoard struct {
	service *service
	roles   RoleSource  // nil: nobody is heard
	queue   QueueSource // nil: there is none to look at
	self    *presence.Reporter

	mu   sync.Mutex
	at   time.Time
	last *certmillv1.ServiceStatus // never changed once it is here
}

// getStatus returns the picture, for viewers.
func (s *service) getStatus(ctx context.Context, c *Caller) (*certmillv1.ServiceStatus, error) {
	if err := c.needs(Viewer, OperatorRole); err != nil {
		return nil, err
	}
	return s.status.now(ctx), nil
}

// now returns a picture that is not older than statusFor. Whoever comes first makes
// it; the others wait for that one. It does not end with the caller: statusTimeout
// bounds it.
func (b *statusBoard) now(ctx context.Context) *certmillv1.ServiceStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.at) > statusFor {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
		defer cancel()
		b.last, b.at = b.look(ctx), time.Now()
	}
	return b.last
}

func (b *statusBoard) look(ctx context.Context) *certmillv1.ServiceStatus {
	now := b.service.now()
	m := &certmillv1.ServiceStatus{Time: timestamppb.New(now), Roles: b.heard()}
	if b.queue != nil {
		m.Queue = b.queue.QueueStatus()
	}
	var work []*certmillv1.Activity
	for _, r := range m.Roles {
		if r.Issuance != nil && r.State != presence.Silent {
			work = append(work, r.Issuance)
		}
	}
	m.Issuance = presence.Sum(work)
	m.Ledger = b.ledger(ctx)
	if m.Ledger.Ready {
		m.Crls = b.crls(ctx)
		m.Roles = append(m.Roles, b.written(ctx)...)
	}
	m.Issuers = b.issuers(m.Roles)
	m.Findings = find(m, now)
	m.Level = LevelOK
	if len(m.Findings) > 0 {
		m.Level = m.Findings[0].Level
	}
	return m
}

// heard returns the processes, with this one in any case: without the broker nobody
// else is heard.
func (b *statusBoard) heard() (roles []*certmillv1.RoleStatus) {
	if b.roles != nil {
		roles = b.roles.Roles()
	}
	if b.self == nil {
		return roles
	}
	me := b.self.Report()
	i := slices.IndexFunc(roles, func(r *certmillv1.RoleStatus) bool { return r.Instance == me.Instance })
	if i < 0 {
		return append([]*certmillv1.RoleStatus{me}, roles...)
	}
	roles[i] = me
	return roles
}

// written returns the processes that leave word in the ledger.
func (b *statusBoard) written(ctx context.Context) (roles []*certmillv1.RoleStatus) {
	reports, err := b.service.ledger.Reports(ctx)
	if err != nil {
		b.service.log.Debug("the reports in the ledger cannot be read", "error", err)
		return nil
	}
	for _, r := range reports {
		m := &certmillv1.RoleStatus{}
		if proto.Unmarshal(r.Report, m) == nil && presence.Age(m, r.Age) {
			roles = append(roles, m)
		}
	}
	return roles
}

func (b *statusBoard) ledger(ctx context.Context) *certmillv1.LedgerStatus {
	began := time.Now()
	err := b.service.ledger.Ping(ctx)
	m := &certmillv1.LedgerStatus{Ready: err == nil, Seconds: time.Since(began).Seconds()}
	if err != nil {
		m.Reason = err.Error()
	}
	return m
}

func (b *statusBoard) crls(ctx context.Context) *certmillv1.CRLStatus {
	rows, err := b.service.ledger.CRLs(ctx)
	if err != nil {
		return nil // the ledger's own line says so
	}
	m := &certmillv1.CRLStatus{Crls: int64(len(rows))}
	var next, this time.Time
	now, issuers := b.service.now(), b.service.issuers.current().byID
	for _, r := range rows {
		i := issuers[r.Issuer]
		if i != nil && i.over(now) {
			m.Crls-- // its end is that of its CRLs
			continue
		}
		if r.Number == 0 {
			m.Never++
			continue
		}
		m.Entries += r.Entries
		// One that lasts as long as its issuer cannot be made anew to last longer.
		if last := i != nil && !r.NextUpdate.Before(i.cert.NotAfter); !last && (next.IsZero() || r.NextUpdate.Before(next)) {
			next = r.NextUpdate
		}
		if this.IsZero() || r.ThisUpdate.Before(this) {
			this = r.ThisUpdate
		}
	}
	if !next.IsZero() {
		m.NearestNextUpdate = timestamppb.New(next)
	}
	if !this.IsZero() {
		m.OldestThisUpdate = timestamppb.New(this)
	}
	return m
}

// issuers lists the generations that are of use, with who can sign for them. A root that
// issues by ceremony alone is not among them: it is never active and no signer is for it.
func (b *statusBoard) issuers(roles []*certmillv1.RoleStatus) (out []*certmillv1.IssuerStatus) {
	now := b.service.now()
	for _, i := range b.service.issuers.current().byID {
		if i.over(now) || (len(i.Chain) == 0 && i.State != ledger.IssuerActive) {
			continue
		}
		m := &certmillv1.IssuerStatus{Name: i.Name, Generation: i.ID, State: i.State, NotAfter: timestamppb.New(i.cert.NotAfter)}
		if i.State == ledger.IssuerActive {
			for _, r := range roles {
				// A signer that is not ready for one issuer may well be for another.
				if r.Role == presence.Signer && (r.State == presence.Ready || r.State == presence.NotReady) && slices.Contains(r.Issuers, i.Name) {
					m.Signers++
				}
			}
			for _, p := range b.service.profiles.All() {
				if p.IssuedBy(i.Name) {
					m.Uses = append(m.Uses, &certmillv1.IssuerUse{Profile: p.Name, Share: p.IssuerShare(i.Name)})
				}
			}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *certmillv1.IssuerStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Generation, b.Generation))
	})
	return out
}
