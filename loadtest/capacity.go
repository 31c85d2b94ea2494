package loadtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/observe"
	"github.com/certmill/certmill/loadtest/report"
	"github.com/certmill/certmill/loadtest/schedule"
)

// search is how capacity is looked for.
type search struct {
	start, most float64
	precision   float64
	trial       time.Duration
	warmup      time.Duration
	settle      time.Duration
	objective   *report.Objective
	implied     *report.Objective // that the rate is reached
}

func (s *search) add(c *cobra.Command, o *options) {
	f := c.Flags()
	f.StringVar(&o.objective, "objective", "p99<100ms,errors<0.1%", "what is to be held; what was asked must also be reached")
	f.Float64Var(&s.start, "start", 0, "first rate (default: half of what 64 callers reach in a closed loop)")
	f.Float64Var(&s.most, "most", 200_000, "highest rate tried")
	f.Float64Var(&s.precision, "precision", 0.05, "how near to the edge the search goes")
	f.DurationVar(&s.settle, "settle", time.Second, "pause between trials, for queues to empty")
	o.repeat = 1
	o.add(f)
	// A trial is shorter than a run.
	for name, value := range map[string]string{"duration": "12s", "warmup": "2s", "timeout": "5s"} {
		flag := f.Lookup(name)
		flag.DefValue = value
		_ = flag.Value.Set(value) // a literal that parses
	}
	f.Lookup("duration").Usage = "how long each trial asks, its warm-up included"
}

// prepare takes what the flags say; it must hold the implied condition too: a rate
// that is not reached is not held.
func (s *search) prepare(o *options) error {
	if err := o.validate(); err != nil {
		return err
	}
	objective, err := report.ParseObjective(o.objective)
	if err != nil {
		return err
	}
	if !(s.precision > 0 && s.precision <= 0.5) {
		return fmt.Errorf("--precision is above 0 and at most 0.5, not %v", s.precision)
	}
	if !(s.most >= 1 && s.most <= schedule.MaxRate) {
		return fmt.Errorf("--most is 1 to %d, not %v", schedule.MaxRate, s.most)
	}
	if !(s.start >= 0 && s.start <= s.most) {
		return fmt.Errorf("--start is 0 to --most, which is %v, not %v", s.most, s.start)
	}
	// Poisson arrivals vary by their square root, and answers overhang the end.
	implied, err := report.ParseObjective("errors<1%,reached>95%")
	s.objective, s.implied, s.trial, s.warmup = objective.With(implied), implied, o.duration, o.warmup
	if objective == nil {
		s.objective = implied
	}
	return err
}

func capacityCommand() *cobra.Command {
	o, find := &options{}, &search{}
	c := &cobra.Command{
		Use:   "capacity",
		Short: "Find the highest rate that holds an objective, and what gives way first",
		Long: `Find the highest rate that holds an objective, and what gives way first above it. Each
trial is an open loop with Poisson arrivals. What is found is tried a second time, and so
is a rate that was reached without errors and missed the objective all the same, or at
which the generator was the limit: the machine may have had a bad moment.

Objectives: ` + report.ObjectiveHelp,
		Example: `  certmill loadtest capacity --dev .certmill --objective "p99<25ms,errors<0.1%" --html capacity.html`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := find.prepare(o); err != nil {
				return usage(err)
			}
			s, err := open(c.Context(), o, plannedTrials(o, find), newView(c.ErrOrStderr(), o.every))
			if err != nil {
				return err
			}
			r := s.result(nil)
			r.Plan.Loop, r.Plan.InFlight, r.Objective = "open", s.inFlight(), find.objective.String()
			found, run, err := s.capacity(c.Context(), find)
			cerr := s.close()
			wrong := errors.Is(err, errWrong)
			if len(found.Trials) == 0 && !wrong {
				return errors.Join(nothingMeasured(err), cerr)
			}
			if wrong {
				err = nil // the verdict says it
			}
			r.Capacity = found
			if run != nil {
				r.Runs = []report.Run{*run}
			}
			if found.Rate == 0 && found.Ended == "" {
				r.Missed = found.GaveWay
			}
			return errors.Join(ended(deliver(c, o, r), err), cerr)
		},
	}
	find.add(c, o)
	return c
}

// plannedTrials bounds the CSRs: at most so many requests can one trial make that the
// search goes to. It starts from a guess that most machines stay below.
func plannedTrials(o *options, s *search) int64 {
	return int64(min(s.most, 20_000) * o.duration.Seconds())
}

// edge finds the highest rate, in whole requests a second, that try holds. What is found
// must hold a second time, or the search goes on below it, from the next lower rate that
// has held. With an error it returns the highest that had held; 0: none.
func (f *search) edge(start float64, try func(rate float64) (held bool, err error)) (float64, error) {
	low, high := 0.0, math.Inf(1) // the highest that has held, the lowest that has not
	var below []float64           // rates lower than low that have held
	for rate := math.Min(math.Max(math.Round(start), 1), math.Floor(f.most)); rate > 0; rate = f.next(low, high) {
		again := rate == low
		held, err := try(rate)
		switch {
		case err != nil || held && again:
			return low, err
		case held:
			low, below = rate, append(below, low)
		case again: // it had held by luck
			high = low
			low, below = below[len(below)-1], below[:len(below)-1]
		default:
			high = rate
		}
	}
	return 0, nil
}

// next returns the rate to try: down to halves of high until one holds, up by halves from
// low until one does not, then between low and high. It is low itself when they are near
// enough, and 0 when not even one request a second holds.
func (f *search) next(low, high float64) float64 {
	most := math.Floor(f.most)
	switch {
	case low == 0:
		return math.Floor(high / 2)
	case low < most && math.IsInf(high, 1):
		return math.Min(math.Ceil(low*1.5), most)
	case low < most && high/low > 1+f.precision && high-low > 1:
		return math.Round((low + high) / 2)
	}
	return low
}

// capacity searches, and returns also the run at the highest rate that held, or the one in
// which an answer was wrong.
func (s *session) capacity(ctx context.Context, find *search) (*report.Capacity, *report.Run, error) {
	out := &report.Capacity{}
	start := find.start
	if start == 0 {
		probe, err := s.probe(ctx)
		if err != nil {
			return out, probe, err
		}
		start = probe.RateReached / 2
	}
	held, broke := map[float64]*report.Run{}, map[float64]*report.Run{}
	var last *report.Run
	rate, err := find.edge(start, func(rate float64) (bool, error) {
		run, ok, err := s.try(ctx, find, rate, out)
		if err == nil && !ok && find.doubtful(run) {
			run, ok, err = s.try(ctx, find, rate, out)
		}
		if last = run; ok {
			held[rate] = run
		} else if run != nil {
			broke[rate] = run
		}
		return ok, err
	})
	out.Rate, out.Ceiling = rate, err == nil && rate >= math.Floor(find.most)
	if errors.Is(err, errWrong) {
		out.GaveWay = gaveWay(last, find.objective)
		return out, last, err
	}
	if interrupted(err) {
		out.Ended = report.Interrupted
	}
	for _, above := range slices.Sorted(maps.Keys(broke)) {
		out.GaveWay = gaveWay(broke[above], find.objective)
		if broke[above].OK+broke[above].Failed > 0 {
			break // else nothing came to be asked, which says little
		}
	}
	return out, held[rate], err
}

// doubtful reports whether a trial that did not hold says more of the moment than of the
// rate.
func (f *search) doubtful(r *report.Run) bool {
	return r.Generator.Limit || len(f.implied.Missed(&r.Summary)) == 0
}

// probe finds out roughly what the target can do.
func (s *session) probe(ctx context.Context) (*report.Run, error) {
	const callers = 64
	run, err := s.measure(ctx, load{callers: callers, duration: 5 * time.Second, warmup: time.Second, title: "probe: 64 callers"})
	if run != nil && run.Checks.Wrong > 0 {
		return run, errWrong
	}
	if err != nil {
		return nil, err
	}
	if run.OK == 0 {
		reason := "nothing was answered"
		if len(run.Errors) > 0 {
			reason = run.Errors[0].Kind + ": " + run.Errors[0].Example
		}
		return nil, fmt.Errorf("the target does not serve: %s", reason)
	}
	s.view.note("64 callers in a closed loop reach %.0f/s", run.RateReached)
	return run, nil
}

// try makes one trial and notes it.
func (s *session) try(ctx context.Context, find *search, rate float64, out *report.Capacity) (*report.Run, bool, error) {
	run, err := s.measure(ctx, load{
		plan: schedule.Constant(rate, schedule.Poisson), duration: find.trial, warmup: find.warmup, title: fmt.Sprintf("trial at %.0f/s", rate),
	})
	if err != nil && (run == nil || run.Checks.Wrong == 0) {
		return nil, false, err
	}
	if err := nothingChecked(run); err != nil {
		return nil, false, err
	}
	t := report.Trial{Rate: rate, Missed: find.objective.Missed(&run.Summary), Reached: run.RateReached, Latency: run.Latency,
		Errors: run.ErrorShare(), Own: run.Use.Own, Machine: run.Use.Machine}
	if run.Checks.Wrong > 0 {
		t.Missed = append(t.Missed, fmt.Sprintf("%d wrong answers: %s", run.Checks.Wrong, run.Checks.Examples[0].Why))
	}
	t.Held = len(t.Missed) == 0
	out.Trials = append(out.Trials, t)
	word := "holds"
	if !t.Held {
		word = "does not hold: " + t.Missed[0]
	}
	s.view.note("%7.0f/s  p50 %s  p99 %s  %s", rate, ms(t.Latency.P50), ms(t.Latency.P99), word)
	if run.Checks.Wrong > 0 {
		return run, false, errWrong
	}
	select {
	case <-time.After(find.settle):
	case <-ctx.Done():
	}
	return run, t.Held, nil
}

// errWrong ends a search: a rate at which answers are wrong is no capacity, and a
// search for another one would bury the news.
var errWrong = errors.New("an answer was wrong")

// gaveWay says what broke, the most telling first: wrong answers, refusals, what was
// full, and what the objective says.
func gaveWay(r *report.Run, objective *report.Objective) []string {
	var out []string
	if r.Checks.Wrong > 0 {
		out = append(out, fmt.Sprintf("%d wrong answers", r.Checks.Wrong))
	}
	for _, e := range r.Errors {
		if float64(e.Count) > 0.001*float64(r.OK+r.Failed) {
			out = append(out, fmt.Sprintf("%s: %d of %d requests (%s)", e.Kind, e.Count, r.OK+r.Failed, e.Example))
		}
	}
	out = append(out, full(r)...)
	if name, share := slowest(r.Phases); name != "" {
		out = append(out, fmt.Sprintf("most of the server's time is in %q (%.0f %%)", name, 100*share))
	}
	if r.Generator.Limit {
		out = append(out, "the generator: "+r.Generator.Why)
	}
	return append(out, objective.Missed(&r.Summary)...)
}

// full names the resources that were used up.
func full(r *report.Run) []string {
	var out []string
	if r.Use.Cores > 0 && r.Use.Machine > 0.93*float64(r.Use.Cores) {
		text := fmt.Sprintf("CPU of this machine: %.2f of %d cores", r.Use.Machine, r.Use.Cores)
		if len(r.Use.Roles) > 0 {
			most := slices.MaxFunc(r.Use.Roles, func(a, b observe.RoleUse) int { return cmp.Compare(a.Cores, b.Cores) })
			others := r.Use.Machine - r.Use.Own
			for _, role := range r.Use.Roles {
				others -= role.Cores
			}
			text += fmt.Sprintf(", the most by %s (%.2f), the generator %.2f", most.Name, most.Cores, r.Use.Own)
			if others > 0.1*float64(r.Use.Cores) {
				text += fmt.Sprintf(", what is not watched %.2f", others)
			}
		}
		out = append(out, text)
	}
	var busy, sessions, first, last float64
	n := 0
	for _, s := range r.Samples {
		if s.Busy != nil && s.Sessions != nil {
			busy, sessions, n = busy+*s.Busy, *s.Sessions, n+1
		}
		if s.Waiting != nil {
			if last = *s.Waiting; first == 0 {
				first = last
			}
		}
	}
	if n > 0 && sessions > 0 && busy/float64(n) > 0.9*sessions {
		out = append(out, fmt.Sprintf("HSM sessions: %.1f of %.0f busy on average", busy/float64(n), sessions))
	}
	if last > 100 && last > 3*first {
		out = append(out, fmt.Sprintf("the queue grew: %.0f calls waited at the end", last))
	}
	return out
}

// slowest returns the phase with the largest share of the time that the phases tell
// of, without the "total" that some servers add.
func slowest(phases []engine.PhaseSummary) (string, float64) {
	sum, most, name := 0.0, 0.0, ""
	for _, p := range phases {
		if p.Name == "total" {
			continue
		}
		sum += p.Mean
		if p.Mean > most {
			most, name = p.Mean, p.Name
		}
	}
	if sum == 0 {
		return "", 0
	}
	return name, most / sum
}
