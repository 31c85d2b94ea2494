package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/certmill/certmill/loadtest/schedule"
)

// Config says how a loop runs.
type Config struct {
	// Duration is how long calls are made, the warm-up included.
	Duration time.Duration
	// Warmup is the part at the start that does not count.
	Warmup time.Duration
	// Timeout is how long a caller waits, from the moment its call was due.
	Timeout time.Duration
	// InFlight bounds the calls that wait for an answer at one time; beyond it calls
	// wait here, and their latency counts. For a closed loop it is the callers.
	InFlight int
	// MaxCalls ends the run after so many calls; 0 means no bound.
	MaxCalls int64
	// Quantum is the shortest sleep of the open loop: calls that are due within it are
	// sent together, up to so much late. 0 means DefaultQuantum.
	Quantum time.Duration
	// Units is what one call stands for, 1 or the size of a batch: what counts as
	// failed when a call could not be sent.
	Units int
	// Clock is the machine's when nil.
	Clock Clock
}

// DefaultQuantum bounds what pacing costs to 4,000 short sleeps a second. A sleep and
// its wake-up cost 20–60 µs of CPU on a virtual machine, whatever the system call
// (BenchmarkOpen); what is due within the quantum is sent at its end, at most so late.
const DefaultQuantum = 250 * time.Microsecond

func (c Config) validate() error {
	switch {
	case c.Duration <= 0 || c.Warmup < 0 || c.Warmup >= c.Duration:
		return fmt.Errorf("a run of %s cannot hold a warm-up of %s", c.Duration, c.Warmup)
	case c.Timeout <= 0:
		return errors.New("the timeout must be above zero")
	case c.InFlight < 1:
		return errors.New("at least one call must be allowed in flight")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = SystemClock{}
	}
	if c.Quantum <= 0 {
		c.Quantum = DefaultQuantum
	}
	if c.Units < 1 {
		c.Units = 1
	}
	return c
}

// Open runs the open loop until the duration is over or ctx ends, and waits for
// every call. Results go to rec. It returns ctx's error when the run was cut short.
func Open(ctx context.Context, cfg Config, plan schedule.Arrivals, op Op, rec *Recorder) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	o := &open{cfg: cfg, op: op, rec: rec, work: make(chan Call)}
	defer func() {
		close(o.work)
		o.callers.Wait()
		rec.finish(cfg.Clock.Now())
	}()
	start := cfg.Clock.Now()
	rec.begin(start, start.Add(cfg.Warmup), start.Add(cfg.Duration))
	var slept time.Time
	for seq := int64(0); cfg.MaxCalls == 0 || seq < cfg.MaxCalls; seq++ {
		offset, ok := plan.Next()
		if !ok || offset >= cfg.Duration {
			break
		}
		due := start.Add(offset)
		if now := cfg.Clock.Now(); due.After(now) {
			// Never early; and never shorter than the quantum after the sleep before.
			cfg.Clock.SleepUntil(ctx, later(due, slept.Add(cfg.Quantum)))
			slept = cfg.Clock.Now()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rec.asked(due, cfg.Units)
		o.hand(ctx, Call{Seq: seq, Due: due, Deadline: due.Add(cfg.Timeout)})
	}
	cfg.Clock.SleepUntil(ctx, start.Add(cfg.Duration))
	return ctx.Err()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// open is the state of one open loop. Callers are goroutines that stay, for a new
// goroutine would grow its stack through TLS anew for each call.
type open struct {
	cfg     Config
	op      Op
	rec     *Recorder
	work    chan Call
	started int         // callers; owned by the pacing goroutine
	own     atomic.Bool // the caller that came free last was at Outcome.Then for most of its call
	callers sync.WaitGroup
}

// hand gives the call to an idle caller, a new one, or the first that comes free.
func (o *open) hand(ctx context.Context, call Call) {
	select {
	case o.work <- call:
		return
	default:
	}
	if o.started < o.cfg.InFlight {
		o.started++
		o.callers.Go(func() {
			o.do(ctx, call)
			for call := range o.work {
				o.do(ctx, call)
			}
		})
		return
	}
	// Every caller waits for the service: what is late from here until one is free is
	// the service's doing, unless that one was at the generator's own work for most of its
	// time. Callers end by their deadlines, so this wait ends.
	o.work <- call
	if !o.own.Load() {
		o.rec.blockedUntil(o.cfg.Clock.Now())
	}
}

func (o *open) do(ctx context.Context, call Call) {
	own := false
	defer func() { o.own.Store(own) }()
	sent := o.cfg.Clock.Now()
	if !sent.Before(call.Deadline) {
		o.rec.record(call.Due, sent, sent, Outcome{Failed: o.cfg.Units, Kind: KindUnsent, Late: true,
			Detail: "every caller was busy until the deadline had passed"})
		return
	}
	if ctx.Err() != nil {
		return // the run was cut short; nobody asked for this call any more
	}
	out := o.op(ctx, call)
	if ctx.Err() != nil && out.OK == 0 {
		return
	}
	done := o.cfg.Clock.Now()
	o.rec.record(call.Due, sent, done, out)
	if out.Then != nil {
		out.Then()
		own = o.cfg.Clock.Now().Sub(done) > done.Sub(sent)
	}
}

// Closed runs cfg.InFlight callers, each of which makes its next call when it has
// the answer to the one before, until the duration is over or ctx ends.
func Closed(ctx context.Context, cfg Config, op Op, rec *Recorder) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	start := cfg.Clock.Now()
	end := start.Add(cfg.Duration)
	rec.begin(start, start.Add(cfg.Warmup), end)
	seq := &counter{limit: cfg.MaxCalls}
	var callers sync.WaitGroup
	for range cfg.InFlight {
		callers.Go(func() {
			for now := cfg.Clock.Now(); ctx.Err() == nil && now.Before(end); {
				n, ok := seq.next()
				if !ok {
					return
				}
				rec.asked(now, cfg.Units)
				out := op(ctx, Call{Seq: n, Due: now, Deadline: now.Add(cfg.Timeout)})
				done := cfg.Clock.Now()
				if ctx.Err() != nil && out.OK == 0 {
					return
				}
				rec.record(now, now, done, out)
				if out.Then != nil {
					out.Then()
					done = cfg.Clock.Now()
				}
				now = done
			}
		})
	}
	callers.Wait()
	rec.finish(cfg.Clock.Now())
	return ctx.Err()
}

// counter hands out sequence numbers up to a limit.
type counter struct {
	mu    sync.Mutex
	n     int64
	limit int64
}

func (c *counter) next() (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit > 0 && c.n >= c.limit {
		return 0, false
	}
	c.n++
	return c.n - 1, true
}
