package gateway

import (
	"container/list"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

// rates are token buckets, one for each key: it fills with rate tokens a second up to
// burst, and a request takes one. Buckets are made when they are first used and at most
// max are kept; the one not used for longest goes first, and whoever had it starts with
// a full one. A nil *rates limits nothing. Safe for concurrent use.
type rates[K comparable] struct {
	rule, detail string
	rate         float64 // tokens a second
	burst        float64
	max          int
	now          func() time.Time

	mu    sync.Mutex
	order *list.List // of *bucket[K], most recently used first
	index map[K]*list.Element
}

type bucket[K comparable] struct {
	key    K
	tokens float64
	at     time.Time
	// paid are the last requests that took a token, the newest last: a retry of one of
	// them takes none.
	paid []ledger.RequestKey
}

// maxPaid bounds the requests that a bucket knows again.
const maxPaid = 16

// newRates returns nil, which limits nothing, for a rate of 0.
func newRates[K comparable](rule, detail string, perSecond float64, burst, entries int, now func() time.Time) *rates[K] {
	if perSecond <= 0 {
		return nil
	}
	return &rates[K]{rule: rule, detail: detail, rate: perSecond, burst: float64(burst), max: entries, now: now, order: list.New(), index: map[K]*list.Element{}}
}

// take takes a token for a request. The error is Overloaded and says when the next
// token will be there. A retry of a request that took one is free; the zero key is
// never a retry.
func (r *rates[K]) take(key K, request ledger.RequestKey) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	b := r.bucket(key, now)
	b.tokens = min(r.burst, b.tokens+r.rate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	retry := request != ledger.RequestKey{}
	switch {
	case retry && slices.Contains(b.paid, request):
		return nil
	case b.tokens < 1:
		wait := time.Duration(math.Ceil((1-b.tokens)/r.rate*1000)) * time.Millisecond
		return problem.Busy(r.rule, wait, "%s", r.detail)
	}
	b.tokens--
	if retry {
		if len(b.paid) == maxPaid {
			b.paid = slices.Delete(b.paid, 0, 1)
		}
		b.paid = append(b.paid, request)
	}
	return nil
}

// bucket returns the key's bucket, a new and full one where there is none. The caller
// holds mu.
func (r *rates[K]) bucket(key K, now time.Time) *bucket[K] {
	if e, ok := r.index[key]; ok {
		r.order.MoveToFront(e)
		return e.Value.(*bucket[K])
	}
	if r.order.Len() >= r.max {
		last := r.order.Back()
		r.order.Remove(last)
		delete(r.index, last.Value.(*bucket[K]).key)
	}
	b := &bucket[K]{key: key, tokens: r.burst, at: now}
	r.index[key] = r.order.PushFront(b)
	return b
}

// bound returns how many buckets may be kept.
func (r *rates[K]) bound() int {
	if r == nil {
		return 0
	}
	return r.max
}

// len returns how many buckets are kept.
func (r *rates[K]) len() int {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.order.Len()
}
