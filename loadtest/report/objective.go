package report

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/certmill/certmill/loadtest/engine"
)

// Objective is what a service is to hold: all conditions in every run.
type Objective struct {
	text       string
	conditions []condition
}

type condition struct {
	name  string
	bound float64
	less  bool
	value func(*engine.Summary) float64
	show  func(float64) string
}

// ObjectiveHelp describes the specifications that ParseObjective reads.
const ObjectiveHelp = `conditions separated by commas: p50, p90, p99, p99.9, max, mean < DURATION;
errors < SHARE (0.1% or 0.001); rate > N per second; reached > SHARE of what was asked`

// ParseObjective reads conditions such as "p99<25ms,errors<0.1%". Empty is no objective.
func ParseObjective(s string) (*Objective, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	o := &Objective{}
	var errs []error
	var texts []string
	for part := range strings.SplitSeq(s, ",") {
		c, text, err := parseCondition(strings.ReplaceAll(part, " ", ""))
		if err != nil {
			errs = append(errs, fmt.Errorf("objective %q: %w", strings.TrimSpace(part), err))
			continue
		}
		o.conditions = append(o.conditions, c)
		texts = append(texts, text)
	}
	o.text = strings.Join(texts, ", ")
	return o, errors.Join(errs...)
}

func parseCondition(s string) (condition, string, error) {
	name, bound, less := strings.Cut(s, "<")
	if !less {
		var more bool
		if name, bound, more = strings.Cut(s, ">"); !more {
			return condition{}, "", errors.New("it has neither < nor >")
		}
	}
	c := condition{name: name, less: less}
	if value := latencies[name]; value != nil {
		d, err := time.ParseDuration(bound)
		if err != nil || d <= 0 || !less {
			return c, "", fmt.Errorf("it looks like %s<25ms", name)
		}
		c.bound, c.value, c.show = float64(d)/1e6, value, showMilliseconds
		return c, name + " < " + d.String(), nil
	}
	known := errors.New("there are " + strings.ReplaceAll(ObjectiveHelp, "\n", " "))
	if name != "errors" && name != "reached" && name != "rate" {
		return c, "", known
	}
	v, err := strconv.ParseFloat(strings.TrimSuffix(bound, "%"), 64)
	if err != nil || !(v >= 0) {
		return c, "", fmt.Errorf("%q is not a number", bound)
	}
	if strings.HasSuffix(bound, "%") {
		v /= 100
	}
	if name != "rate" && v > 1 {
		return c, "", fmt.Errorf("%q is more than all: a share is written as 0.05 or 5%%", bound)
	}
	if name == "errors" && v == 0 || name == "reached" && v == 1 {
		return c, "", fmt.Errorf("nothing is %s", map[string]string{"errors": "below no errors", "reached": "above all"}[name])
	}
	c.bound, c.show = v, showShare
	switch {
	case name == "errors" && less:
		c.value = (*engine.Summary).ErrorShare
	case name == "reached" && !less:
		c.value = reached
	case name == "rate" && !less:
		c.value, c.show = func(s *engine.Summary) float64 { return s.RateReached }, func(v float64) string { return fmt.Sprintf("%.0f/s", v) }
	default:
		return c, "", known
	}
	return c, name + map[bool]string{true: " < ", false: " > "}[less] + c.show(v), nil
}

var latencies = map[string]func(*engine.Summary) float64{
	"p50":   func(s *engine.Summary) float64 { return s.Latency.P50 },
	"p90":   func(s *engine.Summary) float64 { return s.Latency.P90 },
	"p99":   func(s *engine.Summary) float64 { return s.Latency.P99 },
	"p99.9": func(s *engine.Summary) float64 { return s.Latency.P999 },
	"max":   func(s *engine.Summary) float64 { return s.Latency.Max },
	"mean":  func(s *engine.Summary) float64 { return s.Latency.Mean },
}

// reached is the share of what was asked that was answered at that pace, at most 1.
// What is on its way at the ends of the counted time makes the count uncertain by
// about its root; twice that is allowed for, or a short run would miss by chance.
func reached(s *engine.Summary) float64 {
	if s.RateAsked == 0 {
		return 0
	}
	share := s.RateReached / s.RateAsked
	if n := s.RateReached * s.Seconds; n > 0 {
		share *= 1 + 2/math.Sqrt(n)
	}
	return math.Min(share, 1)
}

func showMilliseconds(v float64) string { return digits(v) + " ms" }
func showShare(v float64) string        { return fmt.Sprintf("%.3g%%", 100*v) }

// String returns the conditions; "" for a nil objective.
func (o *Objective) String() string {
	if o == nil {
		return ""
	}
	return o.text
}

// Missed returns the conditions that a run does not meet, with what it had; none for a
// nil objective. A run without a single answer meets none.
func (o *Objective) Missed(s *engine.Summary) []string {
	if o == nil {
		return nil
	}
	if s.OK == 0 {
		return []string{"nothing was answered"}
	}
	var out []string
	for _, c := range o.conditions {
		v := c.value(s)
		if c.less && v >= c.bound || !c.less && v <= c.bound {
			out = append(out, fmt.Sprintf("%s is %s, bound %s", c.name, c.show(v), c.show(c.bound)))
		}
	}
	return out
}

// With returns the objective with further conditions; those given already win.
func (o *Objective) With(more *Objective) *Objective {
	if o == nil {
		return more
	}
	out := &Objective{text: o.text, conditions: append([]condition(nil), o.conditions...)}
	for _, c := range more.conditions {
		known := false
		for _, k := range o.conditions {
			known = known || k.name == c.name
		}
		if !known {
			out.conditions = append(out.conditions, c)
			sign := " > "
			if c.less {
				sign = " < "
			}
			out.text += ", " + c.name + sign + c.show(c.bound)
		}
	}
	return out
}
