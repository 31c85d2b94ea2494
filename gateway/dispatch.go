package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Dispatcher brings requests to the signers and their answers back.
//
//	Do ─► table (one call per request key) ─► lane (callers in turn) ─► publisher ─► JetStream
//	Do ◄─ every waiter of the call ◄───────── reply subject of this start ◄── signer
//
// What waits in a lane goes out together, up to a bound. A request that comes alone goes
// at once; the more is with the signers, the larger a message grows before it goes, for
// Gather at most.
// A request whose answer is late is sent again with the same request key: the ledger
// makes one certificate of all copies. It is safe for concurrent use.
type Dispatcher struct {
	cfg     DispatcherConfig
	conn    *queue.Conn
	log     *slog.Logger
	metrics *dispatchMetrics
	reply   string // the reply subject of this start
	up      atomic.Bool

	connected chan struct{}                          // the connection is new
	queue     atomic.Pointer[certmillv1.QueueStatus] // the last look; never changed

	publishing sync.WaitGroup

	coming atomic.Int64 // requests on their way to Do

	mu     sync.Mutex // guards all below
	open   bool
	link   context.Context // ends with the connection: what waits for the broker waits in vain
	unlink context.CancelFunc
	calls  map[[queue.RequestKeySize]byte]*call
	lanes  map[string]*lane // by subject
	wait   int              // waiters, of orders too
	recent recentKeys
	budget float64 // requests that may be sent again

	issuers map[string]*issuerState
	heard   map[string]time.Time // when signers last reported that they can sign for an issuer
	heardAt time.Time
	signing func() map[string]time.Time
}

// DispatcherDeps are what a Dispatcher works with. Conn is required and stays the
// owner's to close, after Run has returned.
type DispatcherDeps struct {
	Conn     *queue.Conn
	Log      *slog.Logger
	Registry prometheus.Registerer
	// Signing returns when signers last reported, for each issuer, that they can sign for
	// it; presence.Roll's is the one for production. It must be quick and safe for
	// concurrent use. Nil: nobody reports, and issuers are judged by their answers alone.
	Signing func() map[string]time.Time
}

// NewDispatcher makes a Dispatcher; Run brings it to life.
func NewDispatcher(cfg DispatcherConfig, deps DispatcherDeps) (*Dispatcher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("dispatcher: %w", err)
	}
	if deps.Conn == nil {
		return nil, errors.New("dispatcher: no connection to NATS")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Registry == nil {
		deps.Registry = prometheus.NewRegistry()
	}
	var id [10]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	d := &Dispatcher{
		cfg: cfg, conn: deps.Conn, log: deps.Log, reply: queue.ReplySubject(hex.EncodeToString(id[:])),
		connected: make(chan struct{}, 1),
		calls:     map[[queue.RequestKeySize]byte]*call{}, lanes: map[string]*lane{},
		recent: newRecentKeys(cfg.RecentKeys), budget: budgetCap,
		issuers: map[string]*issuerState{}, signing: deps.Signing,
	}
	d.link, d.unlink = context.WithCancel(context.Background())
	d.metrics = newDispatchMetrics(deps.Registry, d)
	return d, nil
}

// Do waits for the outcome of one request until ctx ends, or for CallTimeout where it
// has no end. Equal requests, by request key, that wait at the same time are one to
// the signers and share their result, which must not be changed; a request under the
// key of another CSR is a Conflict. The errors are problems: what the signer stated,
// Overloaded at a bound here or in the queue, Unavailable when the broker is away or
// the time is up. No reference to r is kept.
//
// others are issuers beside r's that may issue it, in the order in which they stand in
// while no signer of r's can.
func (d *Dispatcher) Do(ctx context.Context, r *queuev1.SignRequest, p queue.Priority, others ...string) (*queuev1.SignResult, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.cfg.CallTimeout)
		defer cancel()
	}
	w, err := d.join(ctx, r, p, others)
	if err != nil {
		return nil, err
	}
	return d.await(ctx, w)
}

// Enqueue hands over an order: a request that nobody waits for and whose outcome the
// signer writes into the ledger. A nil error says that the queue has it, nothing
// more: the caller must be able to enqueue it again. No reference to r is kept. others
// are as for Do.
func (d *Dispatcher) Enqueue(ctx context.Context, r *queuev1.SignRequest, p queue.Priority, others ...string) error {
	if r.GetOrderId() == "" {
		return problem.New(problem.Internal, "an enqueued request needs an order")
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.CallTimeout)
	defer cancel()
	w, err := d.join(ctx, r, p, others)
	if err != nil {
		return err
	}
	_, err = d.await(ctx, w)
	return err
}

func (d *Dispatcher) await(ctx context.Context, w *waiter) (*queuev1.SignResult, error) {
	select {
	case a := <-w.answer:
		return a.result, a.err
	case <-ctx.Done():
		d.leave(w)
	}
	// The answer may have come between the two.
	select {
	case a := <-w.answer:
		return a.result, a.err
	default:
		return nil, problem.From(ctx.Err())
	}
}

// Ready returns nil while requests can be brought to signers.
func (d *Dispatcher) Ready() error {
	if !d.up.Load() {
		return problem.Down("dispatcher", time.Second, nil)
	}
	return d.conn.Ready()
}

// Run settles the streams, takes replies and sends late requests again until ctx
// ends. Then it answers everybody who still waits, with Unavailable, and returns nil
// when nothing of it runs any more. Stop the intake before.
func (d *Dispatcher) Run(ctx context.Context) error {
	defer d.shut()
	if err := d.settle(ctx); err != nil {
		return nil // ctx has ended
	}
	closed, err := d.listen()
	if err != nil {
		return fmt.Errorf("listening for replies: %w", err)
	}
	d.mu.Lock()
	d.open = true
	d.mu.Unlock()
	d.up.Store(true)

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.resendLate(gctx) })
	g.Go(func() error { return d.watchConnection(gctx) })
	g.Go(func() error { return d.sampleQueue(gctx) })
	err = g.Wait()
	d.shut()
	closed()
	return err
}

// settleTimeout bounds one attempt to make the streams.
const settleTimeout = 10 * time.Second

// settle makes the streams, trying for ever: a broker that comes late must not need
// the gateway to be started again.
func (d *Dispatcher) settle(ctx context.Context) error {
	for {
		err := d.conn.Wait(ctx)
		if err == nil {
			var cancel context.CancelFunc
			attemptCtx, cancel := context.WithTimeout(ctx, settleTimeout)
			err = queue.EnsureStreams(attemptCtx, d.conn.JetStream, d.conn.Settings)
			cancel()
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		d.log.Warn("the queue's streams cannot be made yet", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// shut refuses new calls, answers those that wait and waits for the publishers. It
// may be called twice.
func (d *Dispatcher) shut() {
	d.up.Store(false)
	d.mu.Lock()
	d.unlink()
	d.open = false
	down := answer{err: problem.Down("gateway", d.cfg.RetryAfter, errors.New("the gateway is shutting down"))}
	for _, c := range d.calls {
		d.finish(c, down)
	}
	for _, l := range d.lanes {
		for c := l.pop(); c != nil; c = l.pop() { // orders are in no table
			d.finish(c, down)
		}
	}
	d.mu.Unlock()
	d.publishing.Wait()
}
