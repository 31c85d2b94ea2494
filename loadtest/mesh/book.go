package mesh

import (
	"slices"
	"sync"
	"time"
)

// Rates are what happened in one second.
type Rates struct {
	// First and Renewals are the certificates wanted: agents that began to ask.
	First    int64 `json:"first"`
	Renewals int64 `json:"renewals"`
	// Tries are the requests sent, Served the certificates obtained, Refused the tries
	// that failed.
	Tries   int64 `json:"tries"`
	Served  int64 `json:"served"`
	Refused int64 `json:"refused"`
}

func (r Rates) wanted() int64 { return r.First + r.Renewals }

// maxSamples bounds the latencies kept; beyond it only counts go on.
const maxSamples = 2_000_000

// book counts. Safe for concurrent use.
type book struct {
	started time.Time
	ended   chan struct{}

	mu       sync.Mutex // guards all below
	seconds  []Rates
	waits    []time.Duration // of those served
	refusals []time.Duration // how long a refusal took
	kinds    map[string]int64
	examples map[string]string
	given    int64         // runs of tries that were given up
	period   time.Duration // sum of the times until the next renewal
	renewed  int64
}

func newBook(started, most time.Time) *book {
	return &book{
		started: started, ended: make(chan struct{}), seconds: make([]Rates, int(most.Sub(started)/time.Second)+1),
		kinds: map[string]int64{}, examples: map[string]string{},
	}
}

func (b *book) at(t time.Time) *Rates {
	i := int(t.Sub(b.started) / time.Second)
	return &b.seconds[min(max(i, 0), len(b.seconds)-1)]
}

func (b *book) due(t time.Time, renewal bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if renewal {
		b.at(t).Renewals++
	} else {
		b.at(t).First++
	}
}

func (b *book) tried(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at(t).Tries++
}

func (b *book) served(t time.Time, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at(t).Served++
	if len(b.waits) < maxSamples {
		b.waits = append(b.waits, wait)
	}
}

func (b *book) refused(t time.Time, kind string, err error, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at(t).Refused++
	if b.kinds[kind]++; b.kinds[kind] == 1 {
		b.examples[kind] = err.Error()
	}
	if len(b.refusals) < maxSamples {
		b.refusals = append(b.refusals, took)
	}
}

func (b *book) gaveUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given++
}

func (b *book) renewal(in time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.period += in
	b.renewed++
}

func (b *book) stop() { close(b.ended) }

// watch tells every second what the second before was like, until the book is closed.
func (b *book) watch(end time.Time, tell func(time.Duration, Rates)) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-b.ended:
			return
		case now := <-tick.C:
			if tell == nil {
				continue
			}
			b.mu.Lock()
			r := *b.at(now.Add(-time.Second))
			b.mu.Unlock()
			tell(now.Sub(b.started), r)
		}
	}
}

// quantile returns one of sorted samples; 0 where there are none.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]) / float64(time.Millisecond)
}

// Quantiles are of milliseconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func quantiles(samples []time.Duration) Quantiles {
	slices.Sort(samples)
	return Quantiles{quantile(samples, 0.5), quantile(samples, 0.99), quantile(samples, 1)}
}
