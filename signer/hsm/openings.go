package hsm

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Openings opens the tokens of a process. It remembers those that could not be opened,
// for people and for metrics, and does not give a refused PIN a second time. It is safe
// for concurrent use.
type Openings struct {
	deps     Deps
	unopened *prometheus.GaugeVec

	mu     sync.Mutex
	failed map[Config]*failedOpening
}

type failedOpening struct {
	name  string
	since time.Time
	err   error
}

// NewOpenings makes an Openings whose tokens get deps.
func NewOpenings(deps Deps) *Openings {
	o := &Openings{deps: deps, unopened: newUnopened(), failed: map[Config]*failedOpening{}}
	if deps.Registry != nil {
		deps.Registry.MustRegister(o.unopened)
	}
	return o
}

func newUnopened() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "certmill_hsm_unopened",
		Help: "1 while a configured token could not be opened yet: it has none of the other metrics."}, []string{"token"})
}

// errNotAgain says that a token is not tried again.
var errNotAgain = errors.New("it is not tried again before a restart")

// Open opens a token as the function Open does. One whose opening was Fatal before, as a
// refused PIN is, is left alone: the same error is returned.
func (o *Openings) Open(ctx context.Context, cfg Config) (*Token, error) {
	o.mu.Lock()
	before := o.failed[cfg]
	o.mu.Unlock()
	if before != nil && RemedyFor(before.err) == Fatal {
		return nil, errors.Join(before.err, errNotAgain)
	}
	t, err := Open(ctx, cfg, o.deps)
	o.note(cfg, err)
	return t, err
}

// note remembers how an opening has ended.
func (o *Openings) note(cfg Config, err error) {
	s, _ := cfg.resolve() // a configuration that is wrong still has a name
	name := s.name()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		delete(o.failed, cfg)
		o.unopened.WithLabelValues(name).Set(0)
		return
	}
	since := time.Now()
	if before := o.failed[cfg]; before != nil {
		since = before.since
	}
	o.failed[cfg] = &failedOpening{name, since, err}
	o.unopened.WithLabelValues(name).Set(1)
}

// Keep forgets the tokens that could not be opened and are not in the list: they are not
// wanted any more.
func (o *Openings) Keep(wanted []Config) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for cfg, f := range o.failed {
		if !slices.Contains(wanted, cfg) {
			delete(o.failed, cfg)
			o.unopened.DeleteLabelValues(f.name)
		}
	}
	for _, f := range o.failed { // one of the same name may be wanted
		o.unopened.WithLabelValues(f.name).Set(1)
	}
}

// Unopened describes the tokens that could not be opened, by name: down where they are
// tried again, failed where an operator must look.
func (o *Openings) Unopened() (all []*certmillv1.TokenStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for cfg, f := range o.failed {
		condition := Down
		if RemedyFor(f.err) == Fatal {
			condition = Failed
		}
		all = append(all, &certmillv1.TokenStatus{Name: f.name, Serial: cfg.TokenSerial, Condition: string(condition),
			Reason: f.err.Error(), Since: timestamppb.New(f.since)})
	}
	slices.SortFunc(all, func(a, b *certmillv1.TokenStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason))
	})
	return all
}

// Status describes the token for the reports of its process.
func (t *Token) Status() *certmillv1.TokenStatus {
	state := t.State()
	return &certmillv1.TokenStatus{
		Name: t.Info().Label, Serial: t.Info().Serial, Condition: string(state.Condition), Reason: state.Reason,
		Since: timestamppb.New(state.Since), Sessions: int32(state.Sessions), Busy: int32(state.Sessions - state.Idle),
		Hanging: int32(state.Abandoned), Recoveries: int32(state.Recoveries), Signatures: int64(t.Signatures()),
	}
}
