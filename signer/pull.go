package signer

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/certmill/certmill/internal/queue"
)

// The signer speaks JetStream's pull protocol itself (NATS ADR-37): one request for
// one message, sent when there is room for it. The client library's iterators ask
// ahead, and what they have asked for would wait here while another signer is idle.
const (
	pullExpiry = 5 * time.Second
	pullBody   = `{"batch":1,"expires":5000000000}`
	// pullNow is for a lane that is known to have more: it is answered at once, with a
	// message, or with 404 where another signer was quicker.
	pullNow = `{"batch":1,"no_wait":true}`
	// pullGrace is how long after its expiry a pull without an answer counts as lost.
	pullGrace = time.Second
	// pullPause is the wait after the broker has refused a pull.
	pullPause = 250 * time.Millisecond
	// lowerTurn is the share of turns, one in so many, in which lower priorities may
	// pull although a higher one has work: they are slow then, and not starved.
	lowerTurn = 8
)

// A lane is one priority of a line. The line's goroutine owns it.
type lane struct {
	priority queue.Priority
	subject  string // of the messages
	pull     string // where to ask for one
	inbox    string // where they come
	sub      *nats.Subscription

	pulling bool      // a pull is unanswered
	expires time.Time // when the pull counts as lost
	rest    time.Time // not before
	backlog bool      // more was waiting when the last message was sent
	refused bool      // the last pull was
	turn    int       // pulls sent with a backlog
}

// openLanes subscribes an inbox for each priority; all deliver into msgs.
func openLanes(nc *nats.Conn, issuer string, msgs chan *nats.Msg) (lanes []*lane, err error) {
	for _, p := range queue.Priorities {
		l := &lane{priority: p, subject: queue.SignSubject(issuer, p), pull: queue.PullSubject(issuer, p), inbox: nc.NewInbox()}
		if l.sub, err = nc.ChanSubscribe(l.inbox, msgs); err != nil {
			for _, open := range lanes {
				err = errors.Join(err, open.sub.Unsubscribe())
			}
			return nil, fmt.Errorf("subscribing an inbox for %s: %w", l.subject, err)
		}
		lanes = append(lanes, l)
	}
	return lanes, nil
}

// ask sends pulls, highest priority first. A lane whose pull waits at the broker is
// empty, so the next one may ask too; one with a backlog keeps those below it waiting,
// but for every lowerTurn-th time.
func (l *line) ask(now time.Time) {
	for _, lane := range l.lanes {
		if now.Before(lane.rest) {
			continue
		}
		if lane.pulling && now.Before(lane.expires) {
			if lane.backlog {
				return // its next message is on the way
			}
			continue
		}
		body, wait := pullBody, pullExpiry+pullGrace
		if lane.backlog {
			body, wait = pullNow, pullGrace
		}
		if err := l.s.conn.NATS.PublishRequest(lane.pull, lane.inbox, []byte(body)); err != nil {
			lane.rest = now.Add(pullPause)
			continue
		}
		l.s.metrics.pulls.Inc()
		lane.pulling, lane.expires = true, now.Add(wait)
		if lane.backlog {
			if lane.turn++; lane.turn%lowerTurn != 0 {
				return
			}
		}
	}
}

// answer looks at what came for a pull and returns the delivery in it, if it is one.
func (lane *lane) answer(m *nats.Msg, now time.Time, log func(string, ...any)) (*delivery, bool) {
	lane.pulling = false
	status := ""
	if len(m.Data) == 0 {
		status = m.Header.Get("Status")
	}
	switch status {
	case "":
	case "100": // a heartbeat: the pull goes on
		lane.pulling = true
		return nil, false
	case "404", "408": // nothing came
		lane.backlog, lane.refused = false, false
		return nil, false
	default: // JetStream is away, the consumer has gone, too many pulls
		lane.backlog, lane.rest = false, now.Add(pullPause)
		if !lane.refused {
			log("pulls are refused", "consumer", lane.pull, "status", status, "description", m.Header.Get("Description"))
		}
		lane.refused = true
		return nil, false
	}
	lane.refused = false
	meta, err := m.Metadata()
	if err != nil {
		log("a message without JetStream's metadata", "subject", m.Subject, "error", err)
		return nil, false
	}
	lane.backlog = meta.NumPending > 0
	return &delivery{msg: m, queued: meta.Timestamp, tries: meta.NumDelivered}, true
}

// reconnected forgets the pulls that the old connection had.
func (l *line) reconnected() {
	for _, lane := range l.lanes {
		lane.pulling, lane.rest = false, time.Time{}
	}
}
