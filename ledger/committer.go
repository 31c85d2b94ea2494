package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/certmill/certmill/internal/problem"
)

// CommitterConfig bounds the group commit.
type CommitterConfig struct {
	// MaxBatch is the most certificates that one statement stores, 1 to 256.
	MaxBatch int `yaml:"max_batch"`
	// Connections is how many statements are under way at most. A further one begins
	// while others are under way only when 64 certificates wait: many small statements
	// cost more than few large ones. It takes them from ledger.max_connections.
	Connections int `yaml:"connections"`
	// Gather is how long a statement waits at most for certificates that are being
	// signed at that moment, to store them together. One that nothing follows never
	// waits. 0 switches it off.
	Gather time.Duration `yaml:"gather"`
	// QueueSize bounds the certificates that wait for a statement. Beyond it a commit
	// is refused as Overloaded.
	QueueSize int `yaml:"queue_size"`
}

// DefaultCommitterConfig returns the defaults of CommitterConfig.
func DefaultCommitterConfig() CommitterConfig {
	return CommitterConfig{MaxBatch: MaxBatch, Connections: 3, Gather: 5 * time.Millisecond, QueueSize: 4096}
}

// Validate reports every key that is out of range.
func (c CommitterConfig) Validate() error {
	var errs []error
	check := func(key string, v, lo, hi int) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("%s: %d is not between %d and %d", key, v, lo, hi))
		}
	}
	check("max_batch", c.MaxBatch, 1, MaxBatch)
	check("connections", c.Connections, 1, 16)
	check("queue_size", c.QueueSize, 1, 1<<20)
	if c.Gather < 0 || c.Gather > time.Second {
		errs = append(errs, fmt.Errorf("gather: %s is not between 0s and 1s", c.Gather))
	}
	return errors.Join(errs...)
}

// Committer commits certificates in groups. A row that comes alone goes at once; one
// that is known to be followed by others waits a moment for them, and while a statement
// is under way rows gather for the next. It is safe for concurrent use.
type Committer struct {
	ledger  *Ledger
	cfg     CommitterConfig
	tracer  trace.Tracer
	queue   chan *commitRow
	wake    chan struct{} // there is a row more
	coming  atomic.Int64  // rows that are on their way to Commit
	stopped chan struct{} // closed when Run takes no more
	size    prometheus.Histogram
	seconds prometheus.Histogram
	rows    *prometheus.CounterVec
}

// NewCommitter returns a committer for l. Run makes it work.
func NewCommitter(l *Ledger, cfg CommitterConfig, deps Deps) (*Committer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	deps = deps.withDefaults()
	f := promauto.With(deps.Registry)
	c := &Committer{
		ledger: l, cfg: cfg, tracer: deps.Tracer,
		queue: make(chan *commitRow, cfg.QueueSize), wake: make(chan struct{}, 1), stopped: make(chan struct{}),
		size: f.NewHistogram(prometheus.HistogramOpts{
			Name: "certmill_ledger_commit_batch_rows", Help: "Certificates in one commit statement.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256},
		}),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "certmill_ledger_commit_seconds", Help: "Time of one group commit, repeats included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		rows: f.NewCounterVec(prometheus.CounterOpts{
			Name: "certmill_ledger_commit_rows_total", Help: "Certificates given to the ledger, by outcome: stored, duplicate, abandoned (the caller had gone) or the kind of the error.",
		}, []string{"outcome"}),
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "certmill_ledger_commit_queue_rows", Help: "Certificates that wait for a statement.",
	}, func() float64 { return float64(len(c.queue)) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "certmill_ledger_commit_queue_limit_rows", Help: "Bound of the certificates that wait.",
	}, func() float64 { return float64(cfg.QueueSize) })
	return c, nil
}

// commitRow is one entry on its way. state decides between its caller, who may go
// away, and the committer, who may take it into a batch: only one of them can.
type commitRow struct {
	entry Entry
	state atomic.Int32
	batch int // rows in the statement that took it
	done  chan Result
}

const (
	rowWaiting int32 = iota
	rowTaken
	rowAbandoned
)

// Commit stores one entry, together with what else is waiting, under the rules of
// Ledger.CommitBatch. It is Overloaded when the queue is full. When ctx ends first
// the entry is either not written at all, or is already on its way: then it is
// written regardless, and a retry of the request finds it.
func (c *Committer) Commit(ctx context.Context, e Entry) (out Outcome, err error) {
	_, span := c.tracer.Start(ctx, "ledger.commit")
	row := &commitRow{entry: e, done: make(chan Result, 1)}
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, string(problem.KindOf(err)))
		}
		span.End()
	}()
	if err := ctx.Err(); err != nil {
		return out, err
	}
	select {
	case <-c.stopped:
		return out, errStopped()
	default:
	}
	select {
	case c.queue <- row:
		c.look()
	default:
		return out, problem.Busy("commit_queue", time.Second, "%d certificates wait for the ledger", c.cfg.QueueSize)
	}
	select {
	case r := <-row.done:
		span.SetAttributes(attribute.Int("rows", row.batch), attribute.Bool("duplicate", r.Duplicate))
		return r.Outcome, r.Err
	case <-ctx.Done():
		row.state.CompareAndSwap(rowWaiting, rowAbandoned)
		return out, ctx.Err()
	case <-c.stopped:
	}
	// Run is ending. What it has taken it still answers; what it has not is ours.
	if row.state.CompareAndSwap(rowWaiting, rowAbandoned) {
		return out, errStopped()
	}
	r := <-row.done
	return r.Outcome, r.Err
}

func errStopped() error {
	return problem.Down("ledger", time.Second, errors.New("the committer has stopped"))
}

// Expect says that n more rows are about to be given to Commit, or, negative, that so
// many fewer are: each is taken back when its row comes, or will not come.
func (c *Committer) Expect(n int) {
	if c.coming.Add(int64(n)) <= 0 {
		c.look()
	}
}

// look has Run look at what waits.
func (c *Committer) look() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run commits until ctx ends, finishes the statements under way, and returns nil.
// Rows still waiting then are refused as Unavailable: stop what calls Commit first.
// It is called once.
func (c *Committer) Run(ctx context.Context) error {
	var statements sync.WaitGroup
	finished := make(chan struct{}, c.cfg.Connections)
	underWay := 0
	patience := time.NewTimer(0)
	defer patience.Stop()
	ripe, patient := false, false // the first row has waited long enough; patience runs
	for ctx.Err() == nil {
		waiting := len(c.queue)
		if c.begins(waiting, underWay, ripe) {
			ripe, patient = false, false
			if batch := c.gather(); len(batch) > 0 {
				underWay++
				statements.Go(func() {
					c.commit(context.WithoutCancel(ctx), batch)
					finished <- struct{}{}
				})
			}
			continue
		}
		if waiting > 0 && underWay == 0 && !patient {
			patient = true
			patience.Reset(c.cfg.Gather)
		}
		select {
		case <-c.wake:
		case <-finished:
			underWay--
		case <-patience.C:
			ripe = patient
		case <-ctx.Done():
		}
	}
	statements.Wait()
	close(c.stopped)
	return nil
}

// crowd is how many rows make a statement worth its own connection while another is
// under way: from there on the cost of a row hardly falls.
const crowd = 64

// begins decides whether a statement begins now.
func (c *Committer) begins(waiting, underWay int, ripe bool) bool {
	switch {
	case waiting == 0 || underWay == c.cfg.Connections:
		return false
	case waiting >= min(crowd, c.cfg.MaxBatch):
		return true
	case underWay > 0:
		return false
	}
	return ripe || c.cfg.Gather == 0 || c.coming.Load() <= 0
}

// gather takes what waits, up to MaxBatch, without those whose callers have gone.
func (c *Committer) gather() (batch []*commitRow) {
	for len(batch) < c.cfg.MaxBatch {
		select {
		case row := <-c.queue:
			if row.state.CompareAndSwap(rowWaiting, rowTaken) {
				batch = append(batch, row)
			} else {
				c.rows.WithLabelValues("abandoned").Inc()
			}
		default:
			return batch
		}
	}
	return batch
}

func (c *Committer) commit(ctx context.Context, batch []*commitRow) {
	entries := make([]Entry, len(batch))
	for i, row := range batch {
		entries[i] = row.entry
	}
	start := time.Now()
	results := c.ledger.CommitBatch(ctx, entries)
	c.seconds.Observe(time.Since(start).Seconds())
	c.size.Observe(float64(len(batch)))
	for i, row := range batch {
		c.rows.WithLabelValues(outcomeLabel(results[i])).Inc()
		row.batch = len(batch)
		row.done <- results[i]
	}
}

func outcomeLabel(r Result) string {
	switch {
	case r.Err != nil:
		return string(problem.KindOf(r.Err))
	case r.Duplicate:
		return "duplicate"
	default:
		return "stored"
	}
}
