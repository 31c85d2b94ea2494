package signer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/certmill/certmill/internal/failpoint"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

const (
	// lookInterval is how often a line looks at what tells it nothing by itself: tokens
	// that come back, pulls that are lost.
	lookInterval = 200 * time.Millisecond
	// lineBacklog bounds the messages and notices that wait for a line's goroutine. A
	// line has at most one pull a lane out, so it is never near.
	lineBacklog = 256
)

// A line serves one generation of one issuer: its lanes bring the work, its seats sign.
type line struct {
	s      *Signer
	issuer ledger.Issuer
	prep   preparer
	log    *slog.Logger

	seatsMu sync.Mutex // guards seats, which is replaced and never changed
	seats   []*seat

	lanes []*lane
	msgs  chan *nats.Msg
	poke  chan struct{} // there may be room
	again chan struct{} // the connection is new
	busy  atomic.Int64  // requests that are not signed yet
	// refused is set when the broker refuses pulls: the queue may have to be made again.
	refused atomic.Bool

	stop   context.CancelFunc
	work   sync.WaitGroup // the requests
	events *batcher[ledger.Certificate]
	done   chan struct{} // closed when the line's goroutine has ended
}

// newLine finds the issuer's key in the tokens and writes the epoch rows.
func (s *Signer) newLine(ctx context.Context, issuer ledger.Issuer) (*line, error) {
	cert, err := x509.ParseCertificate(issuer.DER)
	if err != nil {
		return nil, fmt.Errorf("parsing the certificate of issuer %s: %w", issuer.Name, err)
	}
	l := &line{
		s: s, issuer: issuer, log: s.log.With("issuer", issuer.Name, "generation", issuer.ID),
		msgs: make(chan *nats.Msg, lineBacklog), poke: make(chan struct{}, 1), again: make(chan struct{}, 1),
		done: make(chan struct{}),
	}
	l.events = &batcher[ledger.Certificate]{size: eventGroup, bound: eventBacklog, owner: &s.writing, flush: l.sendEvents}
	if l.prep, err = s.newPreparer(issuer, cert.PublicKey); err != nil {
		return nil, fmt.Errorf("compiling the profiles of issuer %s: %w", issuer.Name, err)
	}
	if err := l.findSeats(ctx, cert); err != nil {
		return nil, err
	}
	return l, nil
}

// findSeats takes a seat in every token that has the key and in which the line has
// none yet. It fails when the line is left without a seat.
func (l *line) findSeats(ctx context.Context, cert *x509.Certificate) error {
	have := l.allSeats()
	var errs []error
	for _, t := range l.s.openTokens() {
		if has(have, t) {
			continue
		}
		seat, err := takeSeat(ctx, l.s, l.issuer, cert.PublicKey, t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.log.Info("signing", "token", t.Serial(), "epoch", seat.epoch, "sessions", t.Sessions())
		have = append(have[:len(have):len(have)], seat)
	}
	l.seatsMu.Lock()
	l.seats = have
	l.seatsMu.Unlock()
	if len(have) == 0 {
		return fmt.Errorf("%w: %w", errNoSeat, errors.Join(errs...))
	}
	return nil
}

// errNoSeat says that none of the tokens has the issuer's key.
var errNoSeat = errors.New("no token of this signer has the issuer's key")

func has(seats []*seat, t Token) bool {
	for _, s := range seats {
		if s.token == t {
			return true
		}
	}
	return false
}

func (l *line) allSeats() []*seat {
	l.seatsMu.Lock()
	defer l.seatsMu.Unlock()
	return l.seats
}

// pick returns the seat with the least work for each of its sessions, or nil when no
// token is ready. Not the one given, if there is another.
func (l *line) pick(not *seat) *seat { return pickSeat(l.allSeats(), not) }

// hold is pick for who will sign there: until held.Done the seat is not ended.
func (l *line) hold(not *seat) *seat {
	l.seatsMu.Lock()
	defer l.seatsMu.Unlock()
	s := pickSeat(l.seats, not)
	if s != nil {
		s.held.Add(1)
	}
	return s
}

func pickSeat(seats []*seat, not *seat) *seat {
	var best *seat
	for _, s := range seats {
		switch {
		case !s.token.Ready():
		case best == nil, best == not:
			best = s
		case s == not:
		case s.load.Load()*int64(best.token.Sessions()) < best.load.Load()*int64(s.token.Sessions()):
			best = s
		}
	}
	return best
}

// room returns how many more requests the line may take now.
func (l *line) room() int64 {
	sessions := 0
	for _, s := range l.allSeats() {
		if s.token.Ready() {
			sessions += s.token.Sessions()
		}
	}
	if sessions == 0 || !l.s.gate.isOpen() || l.s.skewed() != nil {
		return 0
	}
	return min(int64(l.s.cfg.RunAhead*float64(sessions))-l.busy.Load(), int64(l.s.cfg.MaxInFlight)-l.s.inFlight.Load())
}

// ready returns nil while the line can sign.
func (l *line) ready() error {
	if l.pick(nil) == nil {
		return problem.Down("hsm", time.Second, fmt.Errorf("no token of issuer %s is ready", l.issuer.Name))
	}
	return nil
}

// able reports whether the line would sign for whoever asks now.
func (l *line) able() bool {
	return l.ready() == nil && l.s.gate.isOpen() && l.s.skewed() == nil
}

// open settles the consumers and subscribes.
func (l *line) open(ctx context.Context) (err error) {
	c := l.s.conn
	if err := queue.EnsureConsumers(ctx, c.JetStream, c.Settings, l.issuer.Name); err != nil {
		return err
	}
	l.lanes, err = openLanes(c.NATS, l.issuer.Name, l.msgs)
	return err
}

// run pulls while there is room, until ctx ends. Then it stops pulling and hands back
// what comes too late. Requests at work go on; work waits for them.
func (l *line) run(ctx context.Context) {
	defer close(l.done)
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		if l.room() > 0 {
			l.ask(time.Now())
		}
		select {
		case m := <-l.msgs:
			l.take(m)
		case <-l.poke:
		case <-look.C:
		case <-l.again:
			l.reconnected()
		case <-ctx.Done():
			l.leave()
			return
		}
	}
}

// leave ends the subscriptions and hands back the messages that come before they have
// ended, so that another signer has them at once.
func (l *line) leave() {
	closed := make(chan struct{}, len(l.lanes))
	waiting := 0
	for _, lane := range l.lanes {
		lane.sub.SetClosedHandler(func(string) { closed <- struct{}{} })
		if lane.sub.Drain() == nil {
			waiting++
		}
	}
	limit := time.NewTimer(time.Second)
	defer limit.Stop()
	for waiting > 0 {
		select {
		case m := <-l.msgs:
			l.handBack(m)
		case <-closed:
			waiting--
		case <-limit.C:
			return // the broker is away; it will give the messages out again by itself
		}
	}
	for {
		select {
		case m := <-l.msgs:
			l.handBack(m)
		default:
			return
		}
	}
}

func (l *line) handBack(m *nats.Msg) {
	if lane := l.laneOf(m); lane != nil {
		if d, ok := lane.answer(m, l.s.now(), l.log.Debug); ok {
			d.line = l
			d.handBack(0)
		}
	}
}

func (l *line) laneOf(m *nats.Msg) *lane {
	for _, lane := range l.lanes {
		if m.Sub == lane.sub {
			return lane
		}
	}
	return nil
}

// take opens a message and sets its requests to work.
func (l *line) take(m *nats.Msg) {
	now := l.s.now()
	lane := l.laneOf(m)
	if lane == nil {
		return
	}
	d, ok := lane.answer(m, now, l.log.Warn)
	if lane.refused {
		l.refused.Store(true)
	}
	if !ok {
		return
	}
	d.line = l
	failpoint.Hit(failpoint.SignerTaken)
	l.s.metrics.messages.Inc()
	if d.expired(now) {
		// Nobody waits any more: not even its envelope is opened.
		l.s.metrics.expired.Inc()
		d.say(ackTerm)
		return
	}
	if l.pick(nil) == nil {
		// It was asked for before the tokens went away: another signer may have one.
		d.handBack(50 * time.Millisecond)
		return
	}
	if err := l.unseal(d, lane); err != nil {
		l.s.metrics.forged.Inc()
		l.log.Warn("a message was refused", "subject", m.Subject, "error", err)
		d.say(ackTerm)
		return
	}
	l.begin(d, now)
}

// unseal opens the envelope and checks what the worker relies on.
func (l *line) unseal(d *delivery, lane *lane) error {
	if d.msg.Subject != lane.subject {
		return fmt.Errorf("a message of %s came for a pull of %s", d.msg.Subject, lane.subject)
	}
	if err := l.s.conn.Keys.Open(d.msg.Subject, d.msg.Data, &d.batch); err != nil {
		return err
	}
	if d.reply = d.msg.Header.Get(queue.HeaderReply); d.reply != "" && !queue.ValidReply(d.reply) {
		return fmt.Errorf("%q cannot be a gateway's reply subject", d.reply)
	}
	return queue.CheckBatch(&d.batch)
}

// begin sets the requests of an opened message to work, each on its own.
func (l *line) begin(d *delivery, now time.Time) {
	n := len(d.batch.Requests)
	d.left.Store(int32(n))
	d.shown = time.Now()
	// By how much is left: contexts go by the machine's clock, which ours may be off.
	deadline := time.Now().Add(latest(d.batch.Requests, now).Sub(now))
	d.commitCtx, d.endCommit = context.WithDeadline(l.s.work, deadline.Add(l.s.cfg.CommitTimeout))
	d.ctx, d.end = context.WithDeadline(d.commitCtx, deadline)
	l.busy.Add(int64(n))
	l.s.committer.Expect(n)
	l.s.inFlight.Add(int64(n))
	l.s.remember(d)
	l.work.Add(n)
	if d.tries == 1 && !anySeen(d.batch.Requests) {
		for _, r := range d.batch.Requests {
			l.s.crew.begin(task{l, d, r})
		}
		return
	}
	l.work.Add(1)
	go l.serveKnown(d)
}

// orderTime is what a request without a deadline may take: an order, which is tried
// again.
const orderTime = 30 * time.Second

func latest(requests []*queuev1.SignRequest, now time.Time) time.Time {
	var last int64
	for _, r := range requests {
		if r.GetDeadlineUnixMs() == 0 {
			return now.Add(orderTime)
		}
		last = max(last, r.DeadlineUnixMs)
	}
	return time.UnixMilli(min(last, now.Add(10*time.Minute).UnixMilli()))
}

func anySeen(requests []*queuev1.SignRequest) bool {
	for _, r := range requests {
		if r.GetSeen() {
			return true
		}
	}
	return false
}

// signed takes note that one request needs no session any more.
func (l *line) signed() {
	l.busy.Add(-1)
	l.s.committer.Expect(-1)
	if l.room() > 0 {
		select {
		case l.poke <- struct{}{}:
		default:
		}
	}
}
