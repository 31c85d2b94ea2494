package chaos

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/certmill/certmill/loadtest/chaos/judge"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

const (
	// callTimeout is the deadline of one call, opTimeout that of an operation with its
	// repetitions.
	callTimeout = 4 * time.Second
	opTimeout   = 30 * time.Second
	// workers bounds the operations at one time.
	workers = 64
	// keys is how many keys the CSRs share: making one is dearer than signing with it.
	keys    = 16
	profile = "server"
)

// A load makes certificates, orders and revocations at a rate, with idempotent retries.
type load struct {
	rec     *judge.Recorder
	callers []*caller
	rate    float64
	seed    uint64
	run     string // in every name and key, so that no two runs share one
	keys    []*ecdsa.PrivateKey
	watch   *watch

	mu     sync.Mutex
	live   []string // issued, and not revoked by us
	failed int      // operations that got nothing within opTimeout
	ops    int
}

func newLoad(rec *judge.Recorder, callers []*caller, rate float64, seed uint64, w *watch) (*load, error) {
	l := &load{rec: rec, callers: callers, rate: rate, seed: seed, run: fmt.Sprintf("r%d", time.Now().UnixNano()), watch: w}
	for range keys {
		k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		if err != nil {
			return nil, err
		}
		l.keys = append(l.keys, k)
	}
	return l, nil
}

// drive begins operations until ctx ends and returns when all have ended.
func (l *load) drive(ctx context.Context) {
	work := make(chan int)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for op := range work {
				// An operation that has begun goes on to its end.
				l.operate(context.WithoutCancel(ctx), op)
			}
		})
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / l.rate))
	defer tick.Stop()
	for op := 1; ; op++ {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if ctx.Err() != nil {
			break
		}
		select {
		case work <- op:
		case <-ctx.Done():
		}
	}
	close(work)
	all.Wait()
}

// operate performs one operation; what it is depends on the seed and its number alone.
func (l *load) operate(ctx context.Context, op int) {
	r := rand.New(rand.NewPCG(l.seed, uint64(op)))
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var ok bool
	switch dice := r.IntN(100); {
	case dice < 12:
		ok = l.revoke(ctx, op, r)
	case dice < 25:
		ok = l.order(ctx, op, r)
	default:
		ok = l.issue(ctx, op, r)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops++
	if !ok {
		l.failed++
	}
}

// request makes the request of an operation: its own name and key.
func (l *load) request(op int, r *rand.Rand) (*certmillv1.IssueRequest, judge.Event, error) {
	key := l.keys[r.IntN(len(l.keys))]
	name := fmt.Sprintf("op-%d.%s.test", op, l.run)
	csr, err := x509.CreateCertificateRequest(crand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		return nil, judge.Event{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, judge.Event{}, err
	}
	sum := sha256.Sum256(spki)
	id := fmt.Sprintf("%s-%d", l.run, op)
	return &certmillv1.IssueRequest{Csr: csr, Profile: profile, RequestId: id},
		judge.Event{Op: op, Key: id, Name: name, Profile: profile, SPKI: sum[:]}, nil
}

// try makes calls until one succeeds or it is no use to try again, each at another
// gateway than the one before.
func (l *load) try(ctx context.Context, r *rand.Rand, e judge.Event, call func(context.Context, *caller, *judge.Event) error) bool {
	first := r.IntN(len(l.callers))
	for attempt := 0; ; attempt++ {
		c := l.callers[(first+attempt*3)%len(l.callers)]
		e := e
		e.Node, e.Via, e.Deadline = c.node, c.via, callTimeout
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		e.At = time.Now()
		err := call(callCtx, c, &e)
		e.Took = time.Since(e.At)
		e.Outcome = outcome(callCtx, err)
		cancel()
		if err != nil {
			e.Detail = err.Error()
		}
		l.rec.Add(e)
		if !again(e.Outcome) {
			return e.Outcome == judge.OK
		}
		pause := min(100*time.Millisecond<<min(attempt, 4), time.Second)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause/2 + time.Duration(r.Int64N(int64(pause)))):
		}
	}
}

func (l *load) issue(ctx context.Context, op int, r *rand.Rand) bool {
	request, e, err := l.request(op, r)
	if err != nil {
		return false
	}
	e.Kind = judge.Issue
	return l.try(ctx, r, e, func(ctx context.Context, c *caller, e *judge.Event) error {
		cert, err := c.issue(ctx, request)
		if err != nil {
			return err
		}
		l.released(e, cert)
		return nil
	})
}

// released takes note of a certificate that has come.
func (l *load) released(e *judge.Event, cert *certmillv1.Certificate) {
	e.Serial, e.DER = cert.GetSerial(), cert.GetDer()
	l.watch.issued(e.Serial)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = append(l.live, e.Serial)
}

func (l *load) order(ctx context.Context, op int, r *rand.Rand) bool {
	request, e, err := l.request(op, r)
	if err != nil {
		return false
	}
	e.Kind = judge.Submit
	id := ""
	if !l.try(ctx, r, e, func(ctx context.Context, c *caller, e *judge.Event) error {
		o, err := c.submit(ctx, request)
		id = o.GetId()
		e.Order = id
		return err
	}) {
		return false
	}
	e.Kind, e.Order = judge.Order, id
	for settled := false; !settled; {
		if ctx.Err() != nil || !l.try(ctx, r, e, func(ctx context.Context, c *caller, e *judge.Event) error {
			o, err := c.order(ctx, id)
			if err != nil {
				return err
			}
			settled = o.GetState() != certmillv1.Order_STATE_PENDING
			if cert := o.GetCertificate(); cert != nil {
				l.released(e, cert)
			}
			e.Detail = o.GetProblem().GetDetail()
			return nil
		}) {
			return false
		}
	}
	return true
}

// revoke revokes the oldest certificate that is live.
func (l *load) revoke(ctx context.Context, op int, r *rand.Rand) bool {
	l.mu.Lock()
	if len(l.live) < 10 {
		l.mu.Unlock()
		return l.issue(ctx, op, r)
	}
	serial := l.live[0]
	l.live = l.live[1:]
	l.mu.Unlock()
	ok := l.try(ctx, r, judge.Event{Kind: judge.Revoke, Op: op, Serial: serial}, func(ctx context.Context, c *caller, _ *judge.Event) error {
		return c.revoke(ctx, serial)
	})
	if ok {
		l.watch.revoked(serial)
	}
	return ok
}
