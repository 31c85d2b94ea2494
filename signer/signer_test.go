package signer

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

func TestABatchBecomesCertificatesThatTheLedgerKnows(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	var batch []*queuev1.SignRequest
	for i := range queue.MaxBatch {
		batch = append(batch, w.request(name(i)))
	}
	w.send(queue.Renewal, batch...)
	serials := map[serial.Number]bool{}
	for _, r := range w.await(len(batch)) {
		cert := w.certificate(r)
		n, err := serial.FromBig(cert.SerialNumber)
		if err != nil {
			t.Fatal(err)
		}
		serials[n] = true
		if r.Duplicate || r.SignUs == 0 || r.IssuerId != w.issuer.ID || r.ProfileVersion == "" {
			t.Errorf("result: %v", r)
		}
	}
	if len(serials) != len(batch) {
		t.Errorf("%d serials for %d requests", len(serials), len(batch))
	}
	w.drained()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	// The account of the epoch closes.
	epochs, err := w.book.Epochs(bounded(t))
	if err != nil || len(epochs) != 1 {
		t.Fatalf("epochs: %v, %v", epochs, err)
	}
	for n := range serials {
		if n.Epoch() != epochs[0].ID {
			t.Errorf("serial %s is of another epoch than %d", n, epochs[0].ID)
		}
	}
	if e := epochs[0]; e.Signatures != int64(len(batch)) || !e.Final || e.Issuer != w.issuer.ID || e.Token == "" {
		t.Errorf("epoch: %+v", e)
	}
	if n := s.value("certmill_signer_in_flight"); n != 0 {
		t.Errorf("%g requests leaked", n)
	}
}

func TestOneBadRequestFailsAlone(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	good, beyond, shapeless, otherIssuer := w.request("good"), w.request("beyond"), w.request("shapeless"), w.request("other")
	beyond.Uris = []string{"spiffe://certmill.test/admin"}
	shapeless.Spki = nil
	otherIssuer.Issuer = "root"
	w.send(queue.First, good, beyond, shapeless, otherIssuer)
	got := w.await(4)
	w.certificate(got[ledger.RequestKey(good.RequestKey)])
	for _, r := range []*queuev1.SignRequest{beyond, shapeless, otherIssuer} {
		f := got[ledger.RequestKey(r.RequestKey)].Failure
		if k := problem.Kind(f.GetKind()); k != problem.Invalid && k != problem.Denied {
			t.Errorf("failure: %v", f)
		}
	}
	if n := s.value("certmill_signer_refused_by_profile_total"); n != 1 {
		t.Errorf("refused by profile: %g, want 1", n)
	}
	if len(w.rows(beyond.RequestKey)) != 0 {
		t.Error("what the profile refuses is in the ledger")
	}
	w.drained()
}

func TestMessagesThatNoGatewayMadeAreRefused(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	stranger, err := queue.ParseKeys(strings.Repeat("ee", 32))
	if err != nil {
		t.Fatal(err)
	}
	subject := queue.SignSubject("issuing", queue.First)
	batch := &queuev1.SignBatch{Requests: []*queuev1.SignRequest{w.request("x")}}
	forged, _ := stranger.Seal(subject, batch)
	moved, _ := w.conn.Keys.Seal(queue.SignSubject("issuing", queue.Batch), batch)
	sealed, _ := w.conn.Keys.Seal(subject, batch)
	empty, _ := w.conn.Keys.Seal(subject, &queuev1.SignBatch{})
	for _, m := range []struct {
		data   []byte
		header nats.Header
	}{
		{forged, nil}, {moved, nil}, {[]byte("garbage"), nil}, {empty, nil},
		// The header is not authenticated: it must not steer the signer's words elsewhere.
		{sealed, nats.Header{queue.HeaderReply: {"$JS.API.STREAM.PURGE." + queue.SignStream}}},
	} {
		w.publish(subject, m.data, m.header)
	}
	eventually(t, "five are counted", func() bool { return s.value("certmill_signer_forged_total") == 5 })
	w.drained()
	w.certificate(w.one(w.request("y"))) // and the signer goes on
	if len(w.rows(batch.Requests[0].RequestKey)) != 0 {
		t.Error("a forged request is in the ledger")
	}
}

func TestWhatNobodyWaitsForIsNotSigned(t *testing.T) {
	w := newWorld(t)
	var signatures atomic.Int64
	s := w.startWith(func(p *parts, tokens *[]Token) {
		(*tokens)[0] = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, real ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
			signatures.Add(1)
			return real.SignContext(ctx, d, o)
		}}
	})
	late := w.request("late")
	late.DeadlineUnixMs = time.Now().Add(-time.Second).UnixMilli()
	subject := queue.SignSubject("issuing", queue.First)
	sealed, err := w.conn.Keys.Seal(subject, &queuev1.SignBatch{Requests: []*queuev1.SignRequest{late}})
	if err != nil {
		t.Fatal(err)
	}
	// By the header the message is dropped unopened: this one would count as forged.
	w.publish(subject, []byte("unopened"), nats.Header{queue.HeaderDeadline: {"1000"}})
	// By the request's own deadline.
	w.publish(subject, sealed, nil)
	w.drained()
	eventually(t, "both are counted", func() bool { return s.value("certmill_signer_expired_total") == 2 })
	if n := signatures.Load(); n != 0 || s.value("certmill_signer_forged_total") != 0 {
		t.Errorf("%d signatures, %g forged", n, s.value("certmill_signer_forged_total"))
	}
}

func TestARepetitionYieldsTheSameCertificate(t *testing.T) {
	w := newWorld(t)
	w.start()
	first := w.one(w.request("a"))
	w.certificate(first)
	seen := w.request("a")
	seen.Seen = true
	for what, r := range map[string]*queuev1.SignRequest{"seen": seen, "not known to be one": w.request("a")} {
		again := w.one(r)
		w.certificate(again)
		if !again.Duplicate || string(again.Serial) != string(first.Serial) {
			t.Errorf("%s: duplicate %v, serial %x, want %x", what, again.Duplicate, again.Serial, first.Serial)
		}
		other := w.request("a")
		other.CsrSha256[0]++
		other.Seen = r.Seen
		if f := w.one(other).Failure; problem.Kind(f.GetKind()) != problem.Conflict {
			t.Errorf("%s, another CSR: %v", what, f)
		}
	}
}

// dying commits for real and then acts as if the process died: no answer comes back
// until the test is over.
type dying struct {
	Committer
	dead chan struct{}
	once sync.Once
	did  chan struct{}
}

func (d *dying) Commit(ctx context.Context, e ledger.Entry) (ledger.Outcome, error) {
	_, err := d.Committer.Commit(ctx, e)
	d.once.Do(func() { close(d.did) })
	<-d.dead
	return ledger.Outcome{}, errors.Join(err, problem.Down("ledger", 0, errors.New("died")))
}

// A signer that dies after its signature, with the row stored or not: the next one
// brings the certificate, and there is one.
// While a copy of a request may still be signed, its key stands, however short the
// window for repetitions is: a redelivery is no new request.
func TestACopyOfARequestMakesNoSecondCertificate(t *testing.T) {
	w := newWorld(t)
	w.start()
	r := w.request("a")
	r.ReuseSeconds = 0
	first := w.one(r)
	w.certificate(first)
	for _, seen := range []bool{false, true} {
		r.Seen = seen
		if again := w.one(r); !again.Duplicate || !bytes.Equal(again.Serial, first.Serial) {
			t.Errorf("seen %v: %v", seen, again)
		}
	}
}

func TestASignerThatDiesLosesNothing(t *testing.T) {
	for name, stored := range map[string]bool{"after the commit": true, "before the commit": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := &dying{dead: make(chan struct{}), did: make(chan struct{})}
			first := w.startWith(func(p *parts, _ *[]Token) {
				d.Committer = p.committer
				if !stored {
					d.Committer = refuses{}
				}
				p.committer = d
			})
			r := w.request("a")
			w.send(queue.First, r)
			<-d.did
			// Dead for the broker: no progress, no acknowledgement, no reply.
			first.conn.NATS.Close()
			second := w.start()
			res := w.await(1)[ledger.RequestKey(r.RequestKey)]
			w.certificate(res)
			if res.Duplicate != stored {
				t.Errorf("duplicate: %v", res.Duplicate)
			}
			if n := second.value("certmill_signer_lookups_total"); n != 1 {
				t.Errorf("%g lookups before signing", n)
			}
			close(d.dead)
			w.drained()
		})
	}
}

type refuses struct{}

func (refuses) Expect(int) {}

func (refuses) Commit(context.Context, ledger.Entry) (ledger.Outcome, error) {
	return ledger.Outcome{}, problem.Down("ledger", 0, nil)
}

func TestAnOrderEndsInItsCertificateOrItsFailure(t *testing.T) {
	w := newWorld(t)
	w.start()
	ctx := bounded(t)
	order := func(r *queuev1.SignRequest) string {
		r.DeadlineUnixMs = 0
		encoded, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := w.book.CreateOrder(ctx, ledger.Order{
			Caller:     "mtls:test",
			RequestKey: ledger.RequestKey(r.RequestKey), CSR: [queue.DigestSize]byte(r.CsrSha256), RequestID: r.Uris[0], Request: encoded,
		})
		if err != nil {
			t.Fatal(err)
		}
		r.OrderId = o.ID
		return o.ID
	}
	good, bad := w.request("aa"), w.request("aaa")
	bad.DnsNames = []string{"not.allowed.example"}
	goodID, badID := order(good), order(bad)
	w.send(queue.Batch, good, bad)
	w.drained()
	if o, err := w.book.Order(ctx, goodID); err != nil || o.State != ledger.OrderIssued || o.Certificate == nil {
		t.Errorf("good order: %+v, %v", o, err)
	}
	o, err := w.book.Order(ctx, badID)
	if err != nil || o.State != ledger.OrderFailed {
		t.Fatalf("bad order: %+v, %v", o, err)
	}
	var f queuev1.Failure
	if err := proto.Unmarshal(o.Failure, &f); err != nil || problem.Kind(f.Kind) == problem.Internal {
		t.Errorf("failure: %v, %v", &f, err)
	}
	select {
	case r := <-w.results:
		t.Errorf("an order got a reply: %v", r)
	default:
	}
}

// TestAnOrderAtWhichSignersDiedIsGivenUp leaves the marks of dead signers on orders, as a
// kill does (the kill itself: TestReliability in loadtest/chaos).
func TestAnOrderAtWhichSignersDiedIsGivenUp(t *testing.T) {
	w := newWorld(t)
	signer := w.start()
	ctx := bounded(t)
	marked := func(id string, deaths int) *queuev1.SignRequest {
		r := w.request(id)
		r.DeadlineUnixMs, r.Seen = 0, true
		o, _, err := w.book.CreateOrder(ctx, ledger.Order{Caller: "mtls:test", RequestKey: ledger.RequestKey(r.RequestKey), CSR: [queue.DigestSize]byte(r.CsrSha256), RequestID: id, Request: []byte("r")})
		w.check(err)
		r.OrderId = o.ID
		for range deaths {
			w.check(w.book.BeginOrder(ctx, o.ID))
		}
		return r
	}
	deadly, unlucky, innocent := marked("ab", mostDeaths), marked("abc", mostDeaths-1), marked("abcd", 0)
	w.send(queue.Batch, deadly, unlucky, innocent)
	w.drained()
	o, err := w.book.Order(ctx, deadly.OrderId)
	w.check(err)
	var f queuev1.Failure
	w.check(proto.Unmarshal(o.Failure, &f))
	if o.State != ledger.OrderFailed || f.Rule != "order_poisonous" || f.Detail == "" {
		t.Errorf("the order at which signers died is %+v: %v", o, &f)
	}
	for _, r := range []*queuev1.SignRequest{unlucky, innocent} {
		if o, err := w.book.Order(ctx, r.OrderId); err != nil || o.State != ledger.OrderIssued {
			t.Errorf("an order beside it is %+v, %v", o, err)
		}
	}
	deaths, err := w.book.OrderDeaths(ctx, []string{unlucky.OrderId, innocent.OrderId})
	if err != nil || deaths[unlucky.OrderId] != mostDeaths-1 || deaths[innocent.OrderId] != 0 {
		t.Errorf("marks are %v, %v: one that ended takes its own mark off, and no other", deaths, err)
	}
	for _, name := range []string{"certmill_signer_orders_poisonous_total", "certmill_signer_orders_failed_total"} {
		if n := signer.value(name); n != 1 {
			t.Errorf("%s is %v", name, n)
		}
	}
}

// troubled fails the first commits as a ledger does that is away.
type troubled struct {
	Committer
	left atomic.Int64
}

func (c *troubled) Commit(ctx context.Context, e ledger.Entry) (ledger.Outcome, error) {
	if c.left.Add(-1) >= 0 {
		return ledger.Outcome{}, problem.Down("ledger", 0, errors.New("away"))
	}
	return c.Committer.Commit(ctx, e)
}

func TestAnOrderOutlivesALedgerThatWasAway(t *testing.T) {
	w := newWorld(t)
	c := &troubled{}
	c.left.Store(1)
	w.startWith(func(p *parts, _ *[]Token) {
		c.Committer = p.committer
		p.committer = c
	})
	r := w.request("a")
	r.OrderId, r.DeadlineUnixMs = "00000000-0000-4000-8000-000000000000", 0
	w.send(queue.Batch, r)
	eventually(t, "the certificate is there", func() bool { return len(w.rows(r.RequestKey)) == 1 })
	w.drained()
}

// What cannot be done in max_deliver tries leaves the queue: its bound is for what a
// signer may still take.
func TestWhatIsTriedForTheLastTimeLeavesTheQueue(t *testing.T) {
	w := newWorld(t)
	w.cfg.NATS.MaxDeliver = 2
	c := &troubled{}
	c.left.Store(1 << 30)
	s := w.startWith(func(p *parts, _ *[]Token) {
		c.Committer = p.committer
		p.committer = c
	})
	r := w.request("a")
	r.OrderId, r.DeadlineUnixMs = "00000000-0000-4000-8000-000000000000", 0
	w.send(queue.Batch, r)
	eventually(t, "it was tried twice", func() bool { return s.value("certmill_signer_messages_total") == 2 })
	w.drained()
}

// After an outage the queue is full of orders that came too late: each is dropped at
// once, without a look into the ledger, since the sweep queues it again.
func TestALateOrderIsDroppedAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	for _, seen := range []bool{false, true} {
		r := w.request("late")
		r.OrderId, r.Seen, r.DeadlineUnixMs = "00000000-0000-4000-8000-000000000000", seen, time.Now().Add(-time.Second).UnixMilli()
		w.send(queue.Batch, r)
	}
	w.drained()
	if n := s.value("certmill_signer_messages_total"); n != 2 {
		t.Errorf("2 late messages were handed out %g times", n)
	}
	if n := s.value("certmill_signer_lookups_total"); n != 0 {
		t.Errorf("%g looks into the ledger", n)
	}
	if n := s.value("certmill_signer_expired_total"); n != 2 {
		t.Errorf("%g requests are counted as expired, want 2", n)
	}
	w.certificate(w.one(w.request("b")))
}

// A broker that keeps the queue in memory forgets it when it restarts, and people
// delete the wrong thing.
func TestTheQueueIsMadeAgainWhenItIsGone(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	w.certificate(w.one(w.request("a")))
	js := w.conn.JetStream
	for what, remove := range map[string]func() error{
		"consumer": func() error {
			return js.DeleteConsumer(bounded(t), queue.SignStream, queue.SignConsumer("issuing", queue.First))
		},
		"stream": func() error { return js.DeleteStream(bounded(t), queue.SignStream) },
	} {
		w.check(remove())
		eventually(t, "the "+what+" is there again", func() bool {
			_, err := js.Consumer(bounded(t), queue.SignStream, queue.SignConsumer("issuing", queue.First))
			return err == nil
		})
		w.certificate(w.one(w.request(what)))
	}
	if err := s.Ready(); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

func TestNoWorkIsTakenWhileTheLedgerIsAway(t *testing.T) {
	w := newWorld(t)
	b := &book{Ledger: w.book}
	c := &troubled{}
	c.left.Store(1)
	s := w.startWith(func(p *parts, _ *[]Token) {
		c.Committer = p.committer
		p.committer, p.book = c, b
	})
	b.away.Store(true)
	if f := w.one(w.request("a")).Failure; problem.Kind(f.GetKind()) != problem.Unavailable {
		t.Fatalf("failure: %v", f)
	}
	if err := s.Ready(); problem.KindOf(err) != problem.Unavailable {
		t.Errorf("Ready: %v", err)
	}
	// One pull may be out already; what it brings fails with the ledger or is signed.
	// After that nothing is taken.
	pulls := s.value("certmill_signer_pulls_total")
	for range 3 * lookInterval / (50 * time.Millisecond) {
		time.Sleep(50 * time.Millisecond)
	}
	if n := s.value("certmill_signer_pulls_total"); n != pulls {
		t.Errorf("%g pulls while the ledger was away", n-pulls)
	}
	b.away.Store(false)
	eventually(t, "the signer is ready", func() bool { return s.Ready() == nil })
	w.certificate(w.one(w.request("b")))
}

type book struct {
	Ledger
	away atomic.Bool
}

func (b *book) Ping(ctx context.Context) error {
	if b.away.Load() {
		return problem.Down("ledger", 0, nil)
	}
	return b.Ledger.Ping(ctx)
}

func TestASignatureThatFailsIsTriedOnceMore(t *testing.T) {
	for name, failures := range map[string]int64{"once": 1, "twice": 2} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var left atomic.Int64
			left.Store(failures)
			s := w.startWith(func(_ *parts, tokens *[]Token) {
				(*tokens)[0] = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, real ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
					if left.Add(-1) >= 0 {
						return nil, problem.Down("hsm", 0, errors.New("session lost"))
					}
					return real.SignContext(ctx, d, o)
				}}
			})
			res := w.one(w.request("a"))
			if failures == 1 {
				w.certificate(res)
			} else if problem.Kind(res.Failure.GetKind()) != problem.Unavailable {
				t.Errorf("result: %v", res)
			}
			if n := s.value("certmill_signer_hsm_retries_total"); n != 1 {
				t.Errorf("%g retries", n)
			}
		})
	}
}

func TestAWrongSignatureNeverLeaves(t *testing.T) {
	w := newWorld(t)
	var fake *fakeToken
	w.startWith(func(_ *parts, tokens *[]Token) {
		fake = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, real ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
			sig, err := real.SignContext(ctx, d, o)
			if err == nil {
				sig[len(sig)-1] ^= 1
			}
			return sig, err
		}}
		(*tokens)[0] = fake
	})
	r := w.request("a")
	res := w.one(r)
	if res.Failure == nil || len(w.rows(r.RequestKey)) != 0 {
		t.Fatalf("result: %v", res)
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if !errors.Is(fake.condemned, ErrBadSignature) {
		t.Errorf("the token was not condemned: %v", fake.condemned)
	}
}

func TestATokenThatIsAwayTakesNoWork(t *testing.T) {
	w := newWorld(t)
	var ready atomic.Bool
	ready.Store(true)
	s := w.startWith(func(_ *parts, tokens *[]Token) {
		(*tokens)[0] = &fakeToken{Token: (*tokens)[0], ready: ready.Load}
	})
	// Ready comes before the first pulls; a token that is away by then takes no message at all.
	eventually(t, "a pull waits at the broker", func() bool {
		c, err := w.conn.JetStream.Consumer(bounded(t), queue.SignStream, queue.SignConsumer("issuing", queue.First))
		return err == nil && c.CachedInfo().NumWaiting > 0
	})
	ready.Store(false)
	if err := s.Ready(); problem.KindOf(err) != problem.Unavailable {
		t.Errorf("Ready: %v", err)
	}
	r := w.request("a")
	w.send(queue.First, r)
	// The pull that was out brings the message; it is handed back for other signers.
	eventually(t, "the message is handed back", func() bool { return s.value("certmill_signer_messages_total") == 1 })
	if n := s.value("certmill_signer_in_flight"); n != 0 {
		t.Errorf("%g requests in flight", n)
	}
	other := w.start() // another signer has a token
	w.certificate(w.await(1)[ledger.RequestKey(r.RequestKey)])
	if n := other.value("certmill_signer_requests_total", "ok"); n != 1 {
		t.Errorf("the other signer issued %g", n)
	}
	ready.Store(true)
	eventually(t, "the first signer is ready again", func() bool { return s.Ready() == nil })
}

type poisonous struct{ preparer }

func (p poisonous) prepare(r *profile.Request, epoch uint32) (prepared, error) {
	if strings.HasSuffix(r.URIs[0], "poison") {
		panic("poison")
	}
	return p.preparer.prepare(r, epoch)
}

func TestAPoisonousRequestIsContained(t *testing.T) {
	w := newWorld(t)
	s := w.startWith(func(p *parts, _ *[]Token) {
		real := p.newPreparer
		p.newPreparer = func(i ledger.Issuer, public crypto.PublicKey) (preparer, error) {
			inner, err := real(i, public)
			return poisonous{inner}, err
		}
	})
	poison, good := w.request("poison"), w.request("good")
	w.send(queue.First, poison, good)
	got := w.await(2)
	w.certificate(got[ledger.RequestKey(good.RequestKey)])
	f := got[ledger.RequestKey(poison.RequestKey)].Failure
	if problem.Kind(f.GetKind()) != problem.Internal || strings.Contains(f.GetDetail(), "poison") {
		t.Errorf("failure: %v", f)
	}
	if n := s.value("certmill_signer_poison_total"); n != 1 {
		t.Errorf("poison: %g", n)
	}
	w.drained()
	if n := s.value("certmill_signer_in_flight"); n != 0 {
		t.Errorf("%g requests leaked", n)
	}
}

func TestALongRequestIsNotHandedOutTwice(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	s := w.startWith(func(_ *parts, tokens *[]Token) {
		(*tokens)[0] = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, real ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
			<-hold
			return real.SignContext(ctx, d, o)
		}}
	})
	r := w.request("a")
	w.send(queue.First, r)
	time.Sleep(2 * w.cfg.NATS.AckWait) // real time: the broker's clock cannot be moved
	close(hold)
	w.certificate(w.await(1)[ledger.RequestKey(r.RequestKey)])
	w.drained()
	if n := s.value("certmill_signer_messages_total"); n != 1 {
		t.Errorf("%g deliveries", n)
	}
}

func TestShutdownFinishesWhatIsHeld(t *testing.T) {
	w := newWorld(t)
	entered, hold := make(chan struct{}, 100), make(chan struct{})
	s := w.startWith(func(_ *parts, tokens *[]Token) {
		(*tokens)[0] = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, real ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
			entered <- struct{}{}
			<-hold
			return real.SignContext(ctx, d, o)
		}}
	})
	r := w.request("a")
	w.send(queue.First, r)
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	eventually(t, "the signer is not ready", func() bool { return s.Ready() != nil })
	// What comes now is left for others.
	later := w.request("later")
	w.send(queue.First, later)
	close(hold)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	w.certificate(w.await(1)[ledger.RequestKey(r.RequestKey)])
	epochs, err := w.book.Epochs(bounded(t))
	if err != nil || len(epochs) != 1 || epochs[0].Signatures != 1 || !epochs[0].Final {
		t.Errorf("epochs: %+v, %v", epochs, err)
	}
	w.start()
	w.certificate(w.await(1)[ledger.RequestKey(later.RequestKey)])
	w.drained()
}

func TestShutdownIsBounded(t *testing.T) {
	w := newWorld(t)
	w.cfg.ShutdownTimeout = 200 * time.Millisecond
	entered := make(chan struct{}, 1)
	s := w.startWith(func(_ *parts, tokens *[]Token) {
		(*tokens)[0] = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, _ ContextSigner, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
			entered <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
	})
	w.send(queue.First, w.request("a"))
	<-entered
	start := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("shutdown took %s", d)
	}
}

func TestSignersGoOnWhenTheBrokerComesBack(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.certificate(w.one(w.request("a")))
	w.server.Stop()
	w.startNATS()
	if err := w.conn.Wait(bounded(t)); err != nil {
		t.Fatal(err)
	}
	w.certificate(w.one(w.request("b")))
	w.drained()
}

func TestHigherPriorityGoesFirstAndStarvesNobody(t *testing.T) {
	w := newWorld(t)
	w.cfg.RunAhead, w.cfg.Tokens[0].Sessions = 1, 1
	const n = 40
	var order []string
	var mu sync.Mutex
	gate := make(chan struct{})
	s := w.startWith(func(p *parts, tokens *[]Token) {
		(*tokens)[0] = &fakeToken{Token: (*tokens)[0], sign: func(ctx context.Context, real ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
			<-gate
			return real.SignContext(ctx, d, o)
		}}
		real := p.newPreparer
		p.newPreparer = func(i ledger.Issuer, public crypto.PublicKey) (preparer, error) {
			inner, err := real(i, public)
			return noting{inner, func(uri string) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, uri[strings.LastIndexByte(uri, '/')+1:])
			}}, err
		}
	})
	w.send(queue.Batch, w.request("plug")) // holds the one session
	eventually(t, "the plug is in", func() bool { return s.value("certmill_signer_in_flight") == 1 })
	for i := range n {
		w.send(queue.Batch, w.request("low"+name(i)))
		w.send(queue.First, w.request("high"+name(i)))
	}
	close(gate)
	w.await(2*n + 1)
	mu.Lock()
	defer mu.Unlock()
	lastHigh, lowBefore := 0, 0
	for i, who := range order {
		if strings.HasPrefix(who, "high") {
			lastHigh = i
		}
	}
	for _, who := range order[:lastHigh] {
		if strings.HasPrefix(who, "low") {
			lowBefore++
		}
	}
	if lowBefore < 2 || lowBefore > n/3 {
		t.Errorf("%d of %d low ones before the last high one: %v", lowBefore, n, order)
	}
}

// The same with requests at work beside each other, where every signature that is made
// has the line ask again, and with all three priorities.
func TestPrioritiesHoldWhileManyAreAtWork(t *testing.T) {
	w := newWorld(t)
	const n = 150
	var order []string
	var mu sync.Mutex
	s := w.startWith(func(p *parts, _ *[]Token) {
		real := p.newPreparer
		p.newPreparer = func(i ledger.Issuer, public crypto.PublicKey) (preparer, error) {
			inner, err := real(i, public)
			return noting{inner, func(uri string) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, uri[strings.LastIndexByte(uri, '/')+1:])
			}}, err
		}
	})
	s.gate.shut.Store(true) // the pulls that are out bring one of each
	for i := range n {
		w.send(queue.Batch, w.request("low"+name(i)))
		w.send(queue.Renewal, w.request("mid"+name(i)))
		w.send(queue.First, w.request("high"+name(i)))
	}
	s.gate.shut.Store(false)
	w.await(3 * n)
	mu.Lock()
	defer mu.Unlock()
	last, before := 0, map[string]int{}
	for i, who := range order {
		if strings.HasPrefix(who, "high") {
			last = i
		}
	}
	for _, who := range order[:last] {
		before[who[:3]]++
	}
	if before["mid"] < n/16 || before["mid"] > n/4 || before["low"] < 2 || before["low"] > n/8 {
		t.Errorf("before the last high one: %d mid and %d low of %d each", before["mid"], before["low"], n)
	}
}

type noting struct {
	preparer
	note func(string)
}

func (p noting) prepare(r *profile.Request, epoch uint32) (prepared, error) {
	p.note(r.URIs[0])
	return p.preparer.prepare(r, epoch)
}

func TestANewGenerationTakesOver(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	first := w.one(w.request("a"))
	old := w.issuer.ID
	w.makeGeneration()
	eventually(t, "the new generation is served alone", func() bool {
		lines := s.allLines()
		return len(lines) == 1 && lines[0].issuer.ID != old
	})
	second := w.one(w.request("b"))
	w.certificate(second)
	if first.IssuerId != old || second.IssuerId != w.issuer.ID {
		t.Errorf("issuers %d and %d, want %d and %d", first.IssuerId, second.IssuerId, old, w.issuer.ID)
	}
}

func TestPresignersAreToldOfWhatWasCommitted(t *testing.T) {
	w := newWorld(t)
	w.start()
	events := make(chan *queuev1.IssuedEvent, 10)
	_, err := w.conn.NATS.Subscribe(queue.IssuedSubject("issuing"), func(m *nats.Msg) {
		var e queuev1.IssuedEvent
		if err := w.conn.Keys.Open(m.Subject, m.Data, &e); err != nil {
			t.Errorf("an event: %v", err)
		}
		events <- &e
	})
	w.check(err)
	w.check(w.conn.NATS.FlushWithContext(bounded(t)))

	without, with := w.request("without"), w.request("with")
	with.Profile, with.Uris, with.DnsNames = "server", nil, []string{"www.example.test"}
	w.certificate(w.one(without)) // its profile publishes no status
	res := w.one(with)
	w.certificate(res)
	w.certificate(w.one(with)) // a duplicate is no news
	select {
	case e := <-events:
		if len(e.Issued) != 1 || string(e.Issued[0].Serial) != string(res.Serial) || e.Issued[0].Revocation != ledger.RevocationOCSP|ledger.RevocationCRL {
			t.Errorf("event: %v", e)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no event")
	}
	w.check(w.conn.NATS.FlushWithContext(bounded(t)))
	if len(events) != 0 {
		t.Errorf("another event: %v", <-events)
	}
}

func TestTwoTokensShareAnIssuer(t *testing.T) {
	w := newWorld(t)
	var a, b atomic.Int64
	var away atomic.Bool
	counting := func(real Token, n *atomic.Int64, ready func() bool) Token {
		return &fakeToken{Token: real, ready: ready, sign: func(ctx context.Context, key ContextSigner, d []byte, o crypto.SignerOpts) ([]byte, error) {
			n.Add(1)
			return key.SignContext(ctx, d, o)
		}}
	}
	w.startWith(func(_ *parts, tokens *[]Token) {
		real := (*tokens)[0]
		*tokens = []Token{counting(real, &a, nil), counting(onlyOnce{real}, &b, func() bool { return !away.Load() })}
	})
	for i := range 4 {
		var batch []*queuev1.SignRequest
		for j := range 16 {
			batch = append(batch, w.request(name(16*i+j)))
		}
		w.send(queue.First, batch...)
	}
	for _, r := range w.await(64) {
		w.certificate(r)
	}
	if a.Load() == 0 || b.Load() == 0 || a.Load()+b.Load() != 64 {
		t.Errorf("%d and %d signatures", a.Load(), b.Load())
	}
	away.Store(true)
	before := b.Load()
	w.certificate(w.one(w.request("after")))
	if b.Load() != before {
		t.Error("a token that is away was asked")
	}
	// Each signature belongs to the epoch of its token.
	epochs, err := w.book.Epochs(bounded(t))
	if err != nil || len(epochs) != 2 {
		t.Fatalf("epochs: %v, %v", epochs, err)
	}
}

// onlyOnce closes its token no second time.
type onlyOnce struct{ Token }

func (onlyOnce) Close(context.Context) error { return nil }
