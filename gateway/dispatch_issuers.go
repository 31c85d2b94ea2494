package gateway

import (
	"time"

	"github.com/certmill/certmill/internal/presence"
)

// Where a profile has several issuers, a request goes to the first of its order whose
// signers can sign, and over to another one when they stop. The ledger makes one
// certificate of all copies, whoever signs first. An issuer is away while
//
//   - signers report, and none of them reports that it can sign for it; or
//   - requests wait for it and none is answered: a signer that died is missed by its
//     reports only after seconds.
//
// While nobody reports anything, no issuer is known to be away, and the order decides.

// heardInterval is how often the reports of signers are looked at.
const heardInterval = 250 * time.Millisecond

// issuerState is what the answers tell of an issuer. The dispatcher's mutex guards it.
type issuerState struct {
	answered time.Time // when a signer of it last answered
	silent   time.Time // since when it is held to be away for its silence; zero: it is not
}

func (d *Dispatcher) issuer(name string) *issuerState {
	s := d.issuers[name]
	if s == nil {
		s = &issuerState{}
		d.issuers[name] = s
	}
	return s
}

// away reports whether no signer of the issuer is to be expected to answer. The caller
// holds the mutex.
func (d *Dispatcher) away(issuer string, now time.Time) bool {
	heard := d.heard[issuer]
	s := d.issuer(issuer)
	// A report since then speaks for it; where there are no reports, it is tried again.
	if !s.silent.IsZero() && (heard.After(s.silent) || now.Sub(s.silent) > presence.SilentAfter) {
		s.silent = time.Time{}
	}
	return !s.silent.IsZero() || heard.IsZero() && len(d.heard) > 0
}

// choose returns the first of the issuers that is not away, or the first of all. The
// caller holds the mutex.
func (d *Dispatcher) choose(issuers []string) string {
	if len(issuers) == 1 {
		return issuers[0]
	}
	now := time.Now()
	for i, name := range issuers {
		if !d.away(name, now) {
			if i > 0 {
				d.metrics.failovers.WithLabelValues(issuers[0], "away").Inc()
			}
			return name
		}
	}
	return issuers[0]
}

// standIn returns the issuer to which a call can go over, or "". The caller holds the mutex.
func (d *Dispatcher) standIn(c *call, now time.Time) string {
	if c.moves >= len(c.issuers) || c.deadline.Sub(now) < leastTime && !c.order {
		return ""
	}
	for _, name := range c.issuers {
		if name != c.lane.issuer && !d.away(name, now) {
			return name
		}
	}
	return ""
}

// move takes a call over to another issuer's lane. It takes nothing from the budget of
// repetitions, which keeps a slow system from being made slower: where this is called
// nobody works for the old issuer. The caller holds the mutex.
func (d *Dispatcher) move(c *call, to, why string) {
	from := c.lane
	d.metrics.failovers.WithLabelValues(from.issuer, why).Inc()
	c.moves++
	if c.state != waiting {
		c.encoded = c.encoded.SetSeen()
	}
	c.encoded = c.encoded.SetIssuer(to)
	c.state = waiting
	c.lane = d.lane(to, from.priority)
	if c.counted {
		c.counted = false
		from.inFlight--
		d.publishFrom(from)
	}
	c.lane.pushUrgent(c)
	d.publishFrom(c.lane)
}

// watchIssuers notes the issuers that have fallen silent and takes their calls over to
// others. The caller holds the mutex.
func (d *Dispatcher) watchIssuers(now time.Time) {
	if now.Sub(d.heardAt) > heardInterval && d.signing != nil {
		d.heard, d.heardAt = d.signing(), now
	}
	oldest := map[string]time.Time{} // the oldest request that waits for an answer
	for _, c := range d.calls {
		if c.state != sent {
			continue
		}
		if first, ok := oldest[c.lane.issuer]; !ok || c.sent.Before(first) {
			oldest[c.lane.issuer] = c.sent
		}
	}
	for name, since := range oldest {
		s := d.issuer(name)
		if s.silent.IsZero() && now.Sub(later(since, s.answered)) > d.cfg.FailoverAfter {
			s.silent = now
			d.log.Warn("an issuer's signers answer nothing", "issuer", name, "for", now.Sub(later(since, s.answered)).Round(time.Millisecond))
		}
	}
	for _, c := range d.calls {
		if len(c.issuers) > 1 && c.state == sent && d.away(c.lane.issuer, now) {
			if to := d.standIn(c, now); to != "" {
				d.move(c, to, "silent")
			}
		}
	}
	for _, l := range d.lanes {
		if l.waiting > 0 && d.away(l.issuer, now) {
			d.clear(l, now)
		}
	}
}

// clear takes what waits in the lane of an issuer that is away over to others; what has
// no other stays. The caller holds the mutex.
func (d *Dispatcher) clear(l *lane, now time.Time) {
	var stay []*call
	for n := l.waiting; n > 0; n-- {
		c := l.pop()
		if c == nil {
			break
		}
		if c.state == gone {
			continue
		}
		if to := d.standIn(c, now); to != "" {
			d.move(c, to, "silent")
		} else {
			stay = append(stay, c)
		}
	}
	for _, c := range stay {
		l.push(c)
	}
}
