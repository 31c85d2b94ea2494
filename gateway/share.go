package gateway

import (
	"sync"
	"sync/atomic"

	"github.com/certmill/certmill/internal/problem"
)

// shares keeps one caller from taking all places of a limiter. A caller may hold as
// many places as are free, times a factor (the dynamic threshold of Choudhury and
// Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998):
// alone it has most of them, n that flood come to hold equal parts, and max/(1 + n·factor)
// stay free for whoever comes next. While fewer places are worth having than there are
// (window), and those are taken, what a share leaves to others is theirs still: the flood
// before them is not their doing. Nobody is counted who holds no place, so memory is
// bounded by the limiter. Safe for concurrent use.
type shares struct {
	places *limiter
	rule   string
	factor float64      // 0: no bound
	rest   float64      // of the places, for all but one caller
	bound  atomic.Int64 // places that are worth having at present

	mu   sync.Mutex
	held map[string]int // by caller; never 0
}

// newShares lets a caller who is alone hold the given share of the places, above 0;
// at 1 there is no bound for a single caller.
func newShares(rule string, places *limiter, share float64) *shares {
	s := &shares{places: places, rule: rule, rest: (1 - share) * float64(places.max), held: map[string]int{}}
	s.bound.Store(places.max)
	if share < 1 {
		s.factor = share / (1 - share)
	}
	return s
}

// acquire counts n places, which the limiter has given already, for a caller, and
// fails with Overloaded where they are more than its share. A caller's first call is
// refused only while more is in work than is worth having: it has nothing yet.
func (s *shares) acquire(caller string, n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held[caller]
	free := s.bound.Load() - s.places.used.Load() + int64(n)
	if free < int64(n) {
		if float64(held+n) > s.rest/float64(max(1, len(s.held))) {
			return s.places.refusal()
		}
	} else if s.factor > 0 && held > 1 && float64(held+n) > s.factor*float64(free) {
		return problem.Busy(s.rule, spread(s.places.retryAfter), "you have as many requests in work as this gateway leaves to one caller while it is this busy; let some end first")
	}
	s.held[caller] = held + n
	return nil
}

func (s *shares) release(caller string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[caller] -= n; s.held[caller] <= 0 {
		delete(s.held, caller)
	}
}

// callers returns how many callers hold places, and the most that one of them holds.
func (s *shares) callers() (n, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range s.held {
		most = max(most, held)
	}
	return len(s.held), most
}
