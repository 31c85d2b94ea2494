package staple

import (
	"errors"
	"time"
)

// State is how a staple is doing.
type State string

// The states. All but Fresh need somebody.
const (
	Fresh   State = "fresh"
	Stale   State = "stale"   // it ends soon and was not renewed
	Expired State = "expired" // clients that insist on a staple refuse the server
	Missing State = "missing" // there is no file, or no valid answer in it
	Revoked State = "revoked" // valid, and the certificate must be replaced
)

var states = []State{Fresh, Stale, Expired, Missing, Revoked}

// Report is the state of one certificate's staple.
type Report struct {
	Chain      string    `json:"chain"`
	Staple     string    `json:"staple"`
	State      State     `json:"state"`
	ThisUpdate time.Time `json:"this_update,omitzero"`
	NextUpdate time.Time `json:"next_update,omitzero"`
	Problem    string    `json:"problem,omitempty"`
}

// Check looks at the files alone, as the proxies have them, and asks nobody. ok is true
// where every staple is Fresh.
func (s *Stapler) Check() (reports []Report, ok bool) {
	now := s.deps.Now()
	ok = true
	for _, e := range s.entries {
		r := s.check(&e.Certificate, now)
		reports = append(reports, r)
		ok = ok && r.State == Fresh
	}
	return reports, ok
}

func (s *Stapler) check(c *Certificate, now time.Time) Report {
	r := Report{Chain: c.Chain, Staple: c.path(), State: Missing}
	m, err := c.read()
	if err != nil {
		r.Problem = err.Error()
		return r
	}
	der, err := readBounded(c.path(), maxStapleBytes)
	if err != nil {
		r.Problem = err.Error()
		return r
	}
	staple, err := verify(der, m, now)
	if err != nil {
		r.Problem = err.Error()
	}
	if staple != nil {
		r.ThisUpdate, r.NextUpdate = staple.ThisUpdate, staple.NextUpdate
	}
	switch {
	case errors.Is(err, errExpired):
		r.State = Expired
	case err == nil:
		r.State = s.state(staple, now)
	}
	return r
}

// state judges a staple that was verified some time ago.
func (s *Stapler) state(staple *Staple, now time.Time) State {
	if staple == nil {
		return Missing
	}
	left := staple.NextUpdate.Sub(now)
	switch {
	case left <= 0:
		return Expired
	case staple.Revoked:
		return Revoked
	case left < min(s.cfg.AlarmBefore, staple.NextUpdate.Sub(staple.ThisUpdate)/4):
		return Stale
	}
	return Fresh
}
