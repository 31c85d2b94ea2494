package presence

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

const (
	// SilentAfter is when a process that has not reported counts as silent: three
	// reports were lost, and the fourth is late.
	SilentAfter = 3*Interval + time.Second
	// forgetAfter is how long a process that fell silent is still shown; one that has
	// said that it stops is shown for stoppedFor.
	forgetAfter = 10 * time.Minute
	stoppedFor  = 10 * time.Second
	// maxHeard bounds the processes that are kept.
	maxHeard = 1024
	// maxSkew is how far a process's clock may be from ours. It bounds for how long a
	// recorded report can be played again.
	maxSkew = time.Minute
)

// Roll keeps the last report of each process. It is safe for concurrent use.
type Roll struct {
	now func() time.Time

	mu    sync.Mutex
	heard map[string]*entry // by instance
}

type entry struct {
	at     time.Time // by our clock
	report *certmillv1.RoleStatus
}

// NewRoll makes an empty Roll.
func NewRoll(now func() time.Time) *Roll {
	return &Roll{now: now, heard: map[string]*entry{}}
}

// Hear keeps a report that was authenticated. It returns false for one that is older
// than what is known, comes from another minute, or is one process too many.
func (r *Roll) Hear(m *certmillv1.RoleStatus) bool {
	now := r.now()
	if skew := now.Sub(m.GetReported().AsTime()); m.GetInstance() == "" || skew > maxSkew || skew < -maxSkew {
		return false
	}
	trim(m)
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.heard[m.Instance]
	if known != nil && !m.Reported.AsTime().After(known.report.Reported.AsTime()) {
		return false
	}
	if known == nil && len(r.heard) >= maxHeard {
		r.forget(now)
		if len(r.heard) >= maxHeard {
			return false
		}
	}
	r.heard[m.Instance] = &entry{at: now, report: m}
	return true
}

// Roles returns the last report of every process that is not forgotten, by role, name
// and start. The messages are the caller's.
func (r *Roll) Roles() []*certmillv1.RoleStatus {
	now := r.now()
	r.mu.Lock()
	r.forget(now)
	all := make([]*certmillv1.RoleStatus, 0, len(r.heard))
	for _, e := range r.heard {
		m := proto.CloneOf(e.report)
		if m.State != Stopped && now.Sub(e.at) > SilentAfter {
			m.State = Silent
		}
		all = append(all, m)
	}
	r.mu.Unlock()
	all = slices.DeleteFunc(all, func(m *certmillv1.RoleStatus) bool { return m.State == Silent && replaced(m, all) })
	slices.SortFunc(all, func(a, b *certmillv1.RoleStatus) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Name, b.Name), a.Started.AsTime().Compare(b.Started.AsTime()), cmp.Compare(a.Instance, b.Instance))
	})
	return all
}

// Signing returns the issuers that signers report to be able to sign for, with when one
// last did, by our clock.
func (r *Roll) Signing() map[string]time.Time {
	now := r.now()
	issuers := map[string]time.Time{}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.heard {
		m := e.report
		if m.Role != Signer || m.State != Ready && m.State != NotReady || now.Sub(e.at) > SilentAfter {
			continue
		}
		for _, name := range m.Issuers {
			if e.at.After(issuers[name]) {
				issuers[name] = e.at
			}
		}
	}
	return issuers
}

// Age makes a report that was written down and is read later what it is by now: a
// process that has not renewed it is silent. It returns false where it is forgotten.
func Age(m *certmillv1.RoleStatus, age time.Duration) bool {
	trim(m)
	if m.State == Stopped {
		return age <= stoppedFor
	}
	if age > SilentAfter {
		m.State = Silent
	}
	return age <= forgetAfter
}

// replaced reports whether a process that fell silent has been started again: another
// of its role and name began after it was last heard.
func replaced(m *certmillv1.RoleStatus, all []*certmillv1.RoleStatus) bool {
	return slices.ContainsFunc(all, func(o *certmillv1.RoleStatus) bool {
		return o.State != Silent && o.Role == m.Role && o.Name == m.Name && o.Started.AsTime().After(m.Reported.AsTime())
	})
}

// forget drops what was last heard too long ago. The caller holds mu.
func (r *Roll) forget(now time.Time) {
	for instance, e := range r.heard {
		age := now.Sub(e.at)
		if age > forgetAfter || e.report.State == Stopped && age > stoppedFor {
			delete(r.heard, instance)
		}
	}
}
