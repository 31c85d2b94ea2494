package gateway

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// The levels of a status and of its findings.
const (
	LevelOK       = "ok"
	LevelDegraded = "degraded" // look at it today
	LevelDown     = "down"     // the service does not do its work: look at it now
)

// The bounds from which on something is a finding. The alerts in deploy/prometheus
// have the same.
const (
	queueOld      = 5 * time.Second     // the oldest message: callers wait as long
	nearlyFull    = 0.8                 // of a bound
	issuerNear    = 30 * 24 * time.Hour // time to roll over
	ocspNear      = time.Hour           // until the first answer expires
	crlNear       = time.Hour           // until the first CRL expires
	ocspSignerEnd = 7 * 24 * time.Hour  // until an issuer is without an OCSP signer
	sweepOld      = 24 * time.Hour      // since ledger and answers were compared
)

// findings gathers what is not as it should be.
type findings struct {
	now  time.Time
	list []*certmillv1.Finding
}

func (f *findings) add(level, part, format string, args ...any) {
	f.list = append(f.list, &certmillv1.Finding{Level: level, Part: part, Detail: fmt.Sprintf(format, args...)})
}

// find judges a status and returns what an operator should look at, the worst first.
func find(m *certmillv1.ServiceStatus, now time.Time) []*certmillv1.Finding {
	f := &findings{now: now}
	f.ledger(m.Ledger)
	f.roles(m.Roles)
	f.queue(m.Queue)
	f.crls(m.Crls)
	f.issuers(m.Issuers)
	slices.SortStableFunc(f.list, func(a, b *certmillv1.Finding) int {
		return cmp.Compare(rank(a.Level), rank(b.Level))
	})
	return f.list
}

func rank(level string) int {
	if level == LevelDown {
		return 0
	}
	return 1
}

func (f *findings) ledger(l *certmillv1.LedgerStatus) {
	if !l.GetReady() {
		f.add(LevelDown, "ledger", "the ledger does not answer: nothing is issued or revoked")
	}
}

func (f *findings) roles(roles []*certmillv1.RoleStatus) {
	ready, versions := map[string]int{}, map[string]map[string]bool{}
	for _, r := range roles {
		name := r.Role + " " + r.Name
		switch r.State {
		case presence.Ready:
			ready[r.Role]++
		case presence.NotReady:
			f.add(LevelDegraded, "roles", "%s is not ready: %s", name, r.Reason)
		case presence.Silent:
			f.add(LevelDegraded, "roles", "%s has not been heard since %s", name, r.Reported.AsTime().UTC().Format(time.TimeOnly))
		}
		if r.State != presence.Silent && r.State != presence.Stopped {
			if versions[r.Role] == nil {
				versions[r.Role] = map[string]bool{}
			}
			versions[r.Role][r.Version+" "+r.Revision] = true
			f.process(r, name)
		}
	}
	for _, role := range []string{presence.Signer, presence.Presigner, presence.Responder} {
		level := LevelDegraded
		if role == presence.Signer {
			level = LevelDown
		}
		if ready[role] == 0 {
			f.add(level, "roles", "no %s is ready", role)
		}
		if n := len(versions[role]); n > 1 {
			f.add(LevelDegraded, "roles", "%d builds of the %s run side by side", n, role)
		}
	}
}

// process looks into one process that reports.
func (f *findings) process(r *certmillv1.RoleStatus, name string) {
	for _, t := range r.Tokens {
		if t.Condition != "ready" {
			f.add(LevelDegraded, "tokens", "token %s of %s is %s: %s", t.Name, name, t.Condition, t.Reason)
		}
		if t.Hanging > 0 {
			f.add(LevelDegraded, "tokens", "%d calls hang in token %s of %s", t.Hanging, t.Name, name)
		}
	}
	for _, b := range r.Bounds {
		if b.Max > 0 && float64(b.Used) >= nearlyFull*float64(b.Max) {
			f.add(LevelDegraded, "roles", "%s: %s is %d of %d", name, b.Name, b.Used, b.Max)
		}
	}
	if o := r.Ocsp; o != nil {
		f.ocsp(o, name)
	}
}

func (f *findings) ocsp(o *certmillv1.OCSPStatus, name string) {
	if o.Overdue > 0 {
		level := LevelDegraded
		if left, ok := f.until(o.NearestNextUpdate); ok && left < ocspNear {
			level = LevelDown
		}
		f.add(level, "ocsp", "%d OCSP answers of %s should have been refreshed and were not", o.Overdue, name)
	}
	if left, ok := f.until(o.SignerExpiry); ok && left < ocspSignerEnd {
		f.add(LevelDegraded, "ocsp", "an issuer is without an OCSP signer in %s", left.Round(time.Minute))
	}
	if left, ok := f.until(o.Swept); ok && -left > sweepOld {
		f.add(LevelDegraded, "ocsp", "%s has not compared its answers with the ledger for %s", name, (-left).Round(time.Minute))
	}
}

func (f *findings) until(t *timestamppb.Timestamp) (time.Duration, bool) {
	if t == nil {
		return 0, false
	}
	return t.AsTime().Sub(f.now), true
}

func (f *findings) queue(q *certmillv1.QueueStatus) {
	if q == nil {
		return
	}
	if old := time.Duration(q.OldestSeconds * float64(time.Second)); old > queueOld {
		f.add(LevelDegraded, "queue", "the oldest message has waited for %s", old.Round(100*time.Millisecond))
	}
	if q.MaxMessages > 0 && float64(q.Messages) >= nearlyFull*float64(q.MaxMessages) {
		f.add(LevelDegraded, "queue", "the queue holds %d of %d messages", q.Messages, q.MaxMessages)
	}
}

func (f *findings) crls(c *certmillv1.CRLStatus) {
	if c == nil {
		return
	}
	if c.Never > 0 {
		f.add(LevelDegraded, "crls", "%d distribution points have no CRL yet", c.Never)
	}
	if left, ok := f.until(c.NearestNextUpdate); ok && left < crlNear {
		f.add(LevelDown, "crls", "a CRL expires in %s and has not been made anew", left.Round(time.Second))
	}
}

func (f *findings) issuers(issuers []*certmillv1.IssuerStatus) {
	active := 0
	for _, i := range issuers {
		if i.State != ledger.IssuerActive {
			continue
		}
		active++
		if left, _ := f.until(i.NotAfter); left < issuerNear {
			f.add(LevelDegraded, "issuers", "issuer %s (generation %d) expires in %d days; roll it over", i.Name, i.Generation, left/(24*time.Hour))
		}
		switch {
		case i.Signers > 0:
		case replaced(i, issuers):
			f.add(LevelDegraded, "issuers", "no ready signer serves issuer %s; its profiles' other issuers do its work", i.Name)
		default:
			f.add(LevelDown, "issuers", "no ready signer serves issuer %s", i.Name)
		}
	}
	if active == 0 {
		f.add(LevelDown, "issuers", "there is no active issuer")
	}
}

// replaced reports whether every profile of an issuer has another one with signers.
func replaced(i *certmillv1.IssuerStatus, all []*certmillv1.IssuerStatus) bool {
	for _, use := range i.Uses {
		if !slices.ContainsFunc(all, func(o *certmillv1.IssuerStatus) bool {
			return o.Name != i.Name && o.State == ledger.IssuerActive && o.Signers > 0 &&
				slices.ContainsFunc(o.Uses, func(u *certmillv1.IssuerUse) bool { return u.Profile == use.Profile })
		}) {
			return false
		}
	}
	return len(i.Uses) > 0
}
