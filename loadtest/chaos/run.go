// Package chaos breaks the service on purpose and shows that nothing is lost:
// `certmill chaos`. It runs the whole service, each process in a network namespace of
// its own, makes load with idempotent retries, and meanwhile kills, freezes, cuts,
// slows, fills and skews, by a seed. Package judge decides afterwards.
package chaos

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/loadtest/chaos/judge"
)

// Options are the choices for Run.
type Options struct {
	// Dir is where everything is kept: data, logs, history.jsonl.
	Dir string
	// Seed decides the order of the faults, whom they hit, and what the clients ask.
	Seed uint64
	// Duration is how long faults are made.
	Duration time.Duration
	// FaultTime is how long each lasts.
	FaultTime time.Duration
	// Rate is how many operations begin a second.
	Rate float64
	// Faults leaves out the faults whose names hold none of these.
	Faults []string
	// Plain runs plain processes, without namespaces.
	Plain bool
	// Say is told the timeline.
	Say func(format string, args ...any)
}

const (
	// calmTime is how long the service is watched before the first fault: the normal rate.
	calmTime = 6 * time.Second
	// recoverWithin bounds the wait for the normal rate after a fault.
	recoverWithin = 25 * time.Second
	// normal is the share of the calm rate at which the service has recovered.
	normal = 0.9
	// restWithin bounds the wait for what is under way at the end.
	restWithin = 90 * time.Second
)

// Outcome is what a run has shown.
type Outcome struct {
	Seed       uint64          `json:"seed"`
	Operations int             `json:"operations"`
	Failed     int             `json:"failed"` // that got nothing although they tried for half a minute
	Calls      int             `json:"calls"`
	CalmRate   float64         `json:"calm_rate"` // successful calls a second before the first fault
	Faults     []FaultReport   `json:"faults"`
	Findings   []judge.Finding `json:"findings"`
	History    string          `json:"history"`
}

// Broken returns how many invariants were broken.
func (o *Outcome) Broken() (n int) {
	for _, f := range o.Findings {
		if f.Broken > 0 {
			n++
		}
	}
	return n
}

// Run makes chaos and judges it. An error says that the run could not be made; what it
// has broken is in the outcome.
func Run(ctx context.Context, o Options) (out *Outcome, err error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	dir, err := local.OpenDir(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	net := &network{prefix: "10.77.0.", plain: o.Plain}
	if o.Plain {
		net.prefix = fmt.Sprintf("127.%d.%d.", 64+os.Getpid()>>8&63, os.Getpid()&255)
	} else if err := furnish(); err != nil {
		return nil, err
	}
	began := time.Now()
	say := func(format string, args ...any) {
		o.Say("%7.1fs  %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	file, err := os.Create(filepath.Join(o.Dir, "history.jsonl"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()

	s := newStack(dir, binary, net, say)
	defer func() {
		s.wake()
		err = errors.Join(err, s.down())
	}()
	say("starting %d processes", len(s.nodes)-1)
	if err := s.up(ctx); err != nil {
		return nil, err
	}
	say("everything is up")
	r := &drill{Options: o, stack: s, rec: judge.NewRecorder(file), say: say}
	if err := r.make(ctx); err != nil {
		return nil, err
	}
	out, err = r.judge(ctx)
	if err == nil {
		out.History = file.Name()
	}
	return out, err
}

// drill is a run on a stack that is up.
type drill struct {
	Options
	stack *stack
	rec   *judge.Recorder
	say   func(string, ...any)
	load  *load
	watch *watch
}

// make drives the load and makes one fault after the other.
func (r *drill) make(ctx context.Context) error {
	callers, err := r.stack.callers()
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range callers {
			c.close()
		}
	}()
	issuer, err := readCertificate(r.stack.dir.Path("issuing.pem"))
	if err != nil {
		return err
	}
	r.watch = &watch{rec: r.rec, issuer: issuer, nodes: r.stack.of("responder"), seed: r.Seed}
	if r.load, err = newLoad(r.rec, callers, r.Rate, r.Seed, r.watch); err != nil {
		return err
	}
	loadCtx, endLoad := context.WithCancel(ctx)
	defer endLoad()
	watchCtx, endWatch := context.WithCancel(ctx)
	defer endWatch()
	var driving, watching sync.WaitGroup
	driving.Go(func() { r.load.drive(loadCtx) })
	watching.Go(func() { r.watch.drive(watchCtx) })
	stallCtx, endStalls := context.WithCancel(ctx)
	var stalling sync.WaitGroup
	stalling.Go(func() { r.stalls(stallCtx) })
	defer stalling.Wait()
	defer endStalls()
	defer watching.Wait()
	defer endWatch()
	defer driving.Wait()
	defer endLoad()

	if !pause(ctx, calmTime) {
		return ctx.Err()
	}
	if err := r.faults(ctx); err != nil {
		return err
	}
	if err := r.stack.await(ctx, "every role", func() error { return r.stack.ready(ctx) }); err != nil {
		return err
	}
	pause(ctx, 2*time.Second)
	endLoad()
	driving.Wait()
	r.say("the load has ended")
	// Until the responders have heard of everything.
	pause(ctx, 3*time.Second)
	endWatch()
	watching.Wait()
	r.watch.everything(ctx)
	return ctx.Err()
}

// stalls records until ctx ends when this process, and the clients in it, did not run: a
// machine that is too busy must not look like a service that is late.
func (r *drill) stalls(ctx context.Context) {
	const every, worth = 20 * time.Millisecond, 30 * time.Millisecond
	for {
		due := time.Now().Add(every)
		if !pause(ctx, every) {
			return
		}
		if late := time.Since(due); late > worth {
			r.rec.Add(judge.Event{Kind: judge.Stall, At: due, Took: late})
		}
	}
}

// faults makes faults until their time is over, each at least once if there is time.
func (r *drill) faults(ctx context.Context) error {
	random := rand.New(rand.NewPCG(r.Seed, 0))
	end := time.Now().Add(r.Duration)
	for time.Now().Before(end) {
		faults := r.stack.shuffle(random, r.Faults)
		if len(faults) == 0 {
			return errors.New("no fault is left to make: see --faults and --plain")
		}
		for _, f := range faults {
			if !time.Now().Before(end) {
				break
			}
			if err := r.fault(ctx, f); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return nil
}

func (r *drill) fault(ctx context.Context, f fault) error {
	r.say("%s", f.name)
	e := judge.Event{Kind: judge.Fault, Name: f.name, At: time.Now()}
	// What has begun is ended and recorded, whatever the run's own end.
	whole := context.WithoutCancel(ctx)
	err := f.begin(whole)
	if f.end != nil {
		pause(ctx, r.FaultTime)
		err = errors.Join(err, f.end(whole))
	}
	e.Took = time.Since(e.At)
	r.rec.Add(e)
	if err != nil {
		return err
	}
	events, err := r.rec.Events()
	if err != nil {
		return err
	}
	calm := calmRate(events)
	for limit := time.Now().Add(recoverWithin); time.Now().Before(limit); {
		if !pause(ctx, 250*time.Millisecond) {
			return ctx.Err()
		}
		events, _ := r.rec.Events()
		now := time.Now()
		if at, ok := recovery(events, e.End(), now, calm); ok {
			r.say("  normal again %.1f s after its end", at.Seconds())
			return nil
		}
	}
	r.say("  not back at the normal rate within %s", recoverWithin)
	return nil
}

// judge waits for rest, reads the ledger and judges.
func (r *drill) judge(ctx context.Context) (*Outcome, error) {
	cfg := r.stack.database
	cfg.MaxConnections = 4
	book, err := ledger.Open(ctx, cfg, ledger.Deps{})
	if err != nil {
		return nil, err
	}
	defer book.Close()
	books, err := r.rest(ctx, book)
	if err != nil {
		return nil, err
	}
	r.leaks(ctx)
	// The signers end in order, so that their accounts are closed.
	for _, n := range r.stack.of("signer") {
		if err := n.stop(); err != nil {
			return nil, err
		}
	}
	if books.Accounts, err = book.Accounts(ctx); err != nil {
		return nil, err
	}
	rules, err := r.rules()
	if err != nil {
		return nil, err
	}
	events, err := r.rec.Events()
	if err != nil {
		return nil, err
	}
	calls := 0
	for i := range events {
		if isCall(&events[i]) {
			calls++
		}
	}
	return &Outcome{
		Seed: r.Seed, Operations: r.load.ops, Failed: r.load.failed, Calls: calls, CalmRate: calmRate(events),
		Faults: reports(events), Findings: judge.Judge(events, books, rules),
	}, nil
}

func (r *drill) rules() (judge.Rules, error) {
	root, err := readCertificate(r.stack.dir.Path("root.pem"))
	if err != nil {
		return judge.Rules{}, err
	}
	rules := judge.Rules{Roots: x509.NewCertPool(), Issuing: x509.NewCertPool(), RevokedWithin: time.Second, Settle: recoverWithin,
		Grace: 500 * time.Millisecond, MaxLifetime: 90 * 24 * time.Hour}
	rules.Roots.AddCert(root)
	rules.Issuing.AddCert(r.watch.issuer)
	return rules, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// pause waits; it returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
