package presign

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

const (
	// eventAckWait is after how long an event that a presigner took goes to another.
	eventAckWait = 10 * time.Second
	// eventTrusted is for how long an event of issue is taken at its word. A later one
	// may have been overtaken by a revocation whose record is lost, so the ledger is
	// asked.
	eventTrusted = 2 * time.Second
	// An event that failed comes again after eventRetry, doubled up to maxEventRetry.
	eventRetry    = 250 * time.Millisecond
	maxEventRetry = 30 * time.Second
)

// All presigners share one durable pull consumer for each kind of event, so that each
// event is worked on once.
func issuedConsumer(c Config) jetstream.ConsumerConfig {
	return eventConsumer(c, "presign-issued", queue.IssuedSubject("*"))
}

func revokedConsumer(c Config) jetstream.ConsumerConfig {
	return eventConsumer(c, "presign-revoked", queue.RevokedSubject("*"))
}

func eventConsumer(c Config, name, subject string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: name, FilterSubject: subject, DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: eventAckWait,
		MaxDeliver: -1, // the stream forgets an event after an hour, and the sweep has it
		// All presigners of a fleet together; an event is up to 256 certificates.
		MaxAckPending: 1024,
	}
}

// event is a message on its way to a handler.
type event struct {
	subject string
	data    []byte
	// late says that the event is no news: it was delivered before or has waited.
	late bool
}

// errDrop says that an event will never be of use.
var errDrop = errors.New("event dropped")

// consume hands events to handle until ctx ends, event_handlers of them at a time,
// and acknowledges what was handled. Where reading was interrupted events may have been
// lost, with a broker that forgot them or at signers that could not publish, so the
// ledger is swept as soon as they come again.
func (p *Presigner) consume(ctx context.Context, cfg jetstream.ConsumerConfig, handle func(context.Context, event) error) {
	interrupted := false
	p.every(ctx, time.Second, "reading events for "+cfg.Durable, func(ctx context.Context) error {
		setup, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		consumer, err := p.deps.Queue.JetStream.CreateOrUpdateConsumer(setup, queue.EventsStream, cfg)
		if err != nil {
			return err
		}
		messages, err := consumer.Messages(jetstream.PullMaxMessages(2*p.cfg.EventHandlers), jetstream.PullExpiry(5*time.Second))
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, messages.Stop)()
		defer messages.Stop()
		if interrupted {
			p.sweepSoon()
		}
		interrupted = true // from here on only an interruption leads back
		var handlers errgroup.Group
		handlers.SetLimit(p.cfg.EventHandlers)
		defer func() { _ = handlers.Wait() }() // they return no errors
		for {
			m, err := messages.Next()
			if err != nil {
				return err
			}
			handlers.Go(func() error { p.handle(ctx, m, cfg.Durable, handle); return nil })
		}
	})
}

// handle works on one message and answers for it. A shutdown lets it finish.
func (p *Presigner) handle(ctx context.Context, m jetstream.Msg, kind string, handle func(context.Context, event) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventAckWait)
	defer cancel()
	meta, err := m.Metadata()
	if err != nil {
		return // not a message of the stream
	}
	e := event{subject: m.Subject(), data: m.Data(), late: meta.NumDelivered > 1 || time.Since(meta.Timestamp) > eventTrusted}
	switch err = handle(ctx, e); {
	case err == nil:
		p.metrics.eventSeconds.WithLabelValues(kind).Observe(max(0, time.Since(meta.Timestamp).Seconds()))
		err = m.Ack()
	case errors.Is(err, errDrop):
		err = m.Term()
	default:
		p.deps.Log.Warn("an event was not handled; it comes again", "consumer", kind, "error", err)
		err = m.NakWithDelay(min(eventRetry<<min(meta.NumDelivered-1, 10), maxEventRetry))
	}
	if err != nil {
		p.deps.Log.Debug("an event was not answered for; it comes again", "consumer", kind, "error", err)
	}
}

// open checks an event's authentication code and decodes it.
func (p *Presigner) open(e event, m proto.Message) error {
	err := p.deps.Queue.Keys.Open(e.subject, e.data, m)
	if err == nil {
		return nil
	}
	if errors.Is(err, queue.ErrForged) {
		p.metrics.forged.Inc()
	}
	p.deps.Log.Error("an event cannot be trusted and is dropped", "subject", e.subject, "error", err)
	return errDrop
}

// handleIssued signs the first answers of the certificates of one commit.
func (p *Presigner) handleIssued(ctx context.Context, e event) error {
	var m queuev1.IssuedEvent
	if err := p.open(e, &m); err != nil {
		return err
	}
	statuses := make([]ledger.Status, 0, len(m.Issued))
	for _, i := range m.Issued {
		n, err := serial.FromBytes(i.Serial)
		if err != nil || i.Revocation&ledger.RevocationOCSP == 0 {
			continue
		}
		statuses = append(statuses, ledger.Status{
			Serial: n, Issuer: i.IssuerId, Revocation: uint8(i.Revocation),
			NotBefore: time.Unix(i.NotBeforeUnix, 0), NotAfter: time.Unix(i.NotAfterUnix, 0),
		})
	}
	if e.late {
		known, err := p.deps.Ledger.Statuses(ctx, serialsOf(statuses))
		if err != nil {
			return err
		}
		statuses = known
	}
	if err := p.knowEpochs(ctx, statuses); err != nil {
		return err
	}
	return p.publish(ctx, statuses, fromIssued, 0)
}

// handleRevoked publishes a revocation. It asks nobody: the event is authentic, and
// revocation is final.
func (p *Presigner) handleRevoked(ctx context.Context, e event) error {
	var m queuev1.RevokedEvent
	if err := p.open(e, &m); err != nil {
		return err
	}
	n, err := serial.FromBytes(m.Serial)
	if err != nil || m.Reason < 0 || m.Reason > 10 {
		return errDrop
	}
	if m.Revocation&ledger.RevocationOCSP == 0 {
		return nil
	}
	statuses := []ledger.Status{{
		Serial: n, Issuer: m.IssuerId, NotAfter: time.Unix(m.NotAfterUnix, 0), Revocation: uint8(m.Revocation),
		Revoked: &ledger.Revocation{Serial: n, Issuer: m.IssuerId, Reason: int16(m.Reason), RevokedAt: time.Unix(m.RevokedAtUnix, 0)},
	}}
	if err := p.knowEpochs(ctx, statuses); err != nil {
		return err
	}
	return p.publish(ctx, statuses, fromRevoked, m.AcknowledgedUnixMs)
}

// knowEpochs sees to it that the responders take the epochs of these certificates for
// ours before their records appear: a signer that has just started has a new one.
func (p *Presigner) knowEpochs(ctx context.Context, statuses []ledger.Status) error {
	view := p.shared.Load()
	for i := range statuses {
		if view != nil && view.knows(&statuses[i]) {
			continue
		}
		fresh, err := p.loadShared(ctx)
		if err != nil {
			return err
		}
		view = fresh
	}
	return nil
}

// knows reports whether the issuer can be signed for and the epoch is published.
func (v *sharedView) knows(st *ledger.Status) bool {
	_, epoch := v.shared.Epochs[st.Serial.Epoch()]
	return epoch && len(v.delegates[st.Issuer]) > 0
}

func serialsOf(statuses []ledger.Status) []serial.Number {
	out := make([]serial.Number, len(statuses))
	for i := range statuses {
		out[i] = statuses[i].Serial
	}
	return out
}
