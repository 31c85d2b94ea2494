package schedule

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Help describes the specifications that Parse reads.
const Help = `constant:rate=R                       evenly spaced
poisson:rate=R                        as independent clients arrive
ramp:from=R,to=R,over=D               from one rate to another, then steady
step:from=R,by=R,every=D              a staircase
spike:base=R,peak=R,at=D,for=D        a burst on a base rate
herd:agents=N,lifetime=D,spread=D     N agents that renew at half of the lifetime
                                      (jitter=0.01: theirs; ca_jitter=0: the CA's)
R is in requests per second, D is a duration such as 30s. ramp, step and spike
take spacing=even or spacing=poisson (the default).`

// MaxRate bounds a schedule's rate, arrivals per second.
const MaxRate = 1_000_000

// Parse reads a specification (see Help). A bare number is a Poisson rate.
func Parse(spec string) (Schedule, error) {
	if rate, err := strconv.ParseFloat(spec, 64); err == nil {
		spec = fmt.Sprintf("poisson:rate=%g", rate)
	}
	kind, rest, _ := strings.Cut(spec, ":")
	a := &args{values: map[string]string{}}
	for part := range strings.SplitSeq(rest, ",") {
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("schedule %q: %q is not key=value", spec, part)
		}
		a.values[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	s, err := build(kind, a)
	for _, k := range slices.Sorted(maps.Keys(a.values)) {
		a.errs = append(a.errs, fmt.Errorf("%s does not go with %s", k, kind))
	}
	if err := errors.Join(append(a.errs, err)...); err != nil {
		return nil, fmt.Errorf("schedule %q: %w", spec, err)
	}
	return s, nil
}

func build(kind string, a *args) (Schedule, error) {
	switch kind {
	case "constant":
		return Constant(a.rate("rate", true), Even), nil
	case "poisson":
		return Constant(a.rate("rate", true), Poisson), nil
	case "ramp":
		return Ramp(a.rate("from", false), a.rate("to", true), a.duration("over", 0), a.spacing()), nil
	case "step":
		return Step(a.rate("from", true), a.number("by", math.NaN()), a.duration("every", 0), a.spacing()), nil
	case "spike":
		return Spike(a.rate("base", false), a.rate("peak", true), a.duration("at", 0), a.duration("for", 0), a.spacing()), nil
	case "herd":
		h := &Herd{
			Agents:   int(a.number("agents", math.NaN())),
			Lifetime: a.duration("lifetime", 0),
			Spread:   a.duration("spread", time.Second),
			Jitter:   a.number("jitter", 0.01),
			CAJitter: a.number("ca_jitter", 0),
		}
		return h, h.validate()
	default:
		clear(a.values)
		return nil, fmt.Errorf("%q is not a kind of schedule; there are constant, poisson, ramp, step, spike and herd", kind)
	}
}

func (h *Herd) validate() error {
	var errs []error
	if h.Agents < 1 || h.Agents > MaxAgents {
		errs = append(errs, fmt.Errorf("agents must be 1 to %d", MaxAgents))
	}
	if h.Jitter < 0 || h.Jitter > 0.5 || h.CAJitter < 0 || h.CAJitter > 0.5 {
		errs = append(errs, errors.New("jitter and ca_jitter must be 0 to 0.5"))
	}
	return errors.Join(errs...)
}

// args takes values out one by one, so that what is left over is unknown.
type args struct {
	values map[string]string
	errs   []error
}

func (a *args) take(key string) (string, bool) {
	v, ok := a.values[key]
	delete(a.values, key)
	return v, ok
}

func (a *args) fail(format string, v ...any) { a.errs = append(a.errs, fmt.Errorf(format, v...)) }

// number reads a number; NaN as default means that it must be given.
func (a *args) number(key string, or float64) float64 {
	v, ok := a.take(key)
	if !ok {
		if math.IsNaN(or) {
			a.fail("%s is missing", key)
			return 0
		}
		return or
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		a.fail("%s=%s is not a number", key, v)
		return 0
	}
	return f
}

func (a *args) rate(key string, positive bool) float64 {
	r := a.number(key, math.NaN())
	if r < 0 || r > MaxRate || (positive && r == 0) {
		a.fail("%s must be a rate up to %d per second", key, MaxRate)
	}
	return r
}

// duration reads a positive duration; 0 as default means that it must be given.
func (a *args) duration(key string, or time.Duration) time.Duration {
	v, ok := a.take(key)
	if !ok && or > 0 {
		return or
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		a.fail("%s must be a duration above zero, such as 30s", key)
		return time.Second
	}
	return d
}

func (a *args) spacing() Spacing {
	switch v, ok := a.take("spacing"); {
	case !ok || v == string(Poisson):
		return Poisson
	case v == string(Even):
		return Even
	default:
		a.fail("spacing is even or poisson")
		return Even
	}
}
