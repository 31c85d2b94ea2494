package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/certmill/certmill/loadtest/engine"
)

// maxShown is what the table shows of what a server said, in characters.
const maxShown = 200

// few answers are those of which at most one is slower than the p99.
const few = 100

// Few says that a run had so few answers that its p99 is that of one or two of them, or "".
// The answers of a batch come together and count as one.
func (r *Run) Few(p Plan) string {
	n := r.Latency.Count / int64(max(1, p.Batch))
	if n == 0 || n >= few {
		return ""
	}
	return fmt.Sprintf("the p99 is that of the slowest or second slowest of %d calls: run longer", n)
}

// terminal passes text on without what could control a terminal: results come from files
// too, and all their texts from others.
type terminal struct{ w io.Writer }

func (t terminal) Write(p []byte) (int, error) {
	if _, err := t.w.Write(bytes.Map(visible, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func visible(r rune) rune {
	if r == '\n' || unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

// WriteTable writes the result for a terminal.
func (r *Result) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(terminal{w}, 0, 0, 2, ' ', 0)
	for i := range r.Runs {
		title := ""
		switch {
		case r.Capacity != nil:
			title = "the run at capacity"
		case len(r.Runs) > 1:
			title = fmt.Sprintf("run %d of %d", i+1, len(r.Runs))
		}
		r.Runs[i].write(t, title, r.Plan)
	}
	if r.Capacity != nil {
		r.Capacity.write(t, r.Objective)
	}
	if len(r.Scale) > 0 {
		fmt.Fprintf(t, "\nsigners\tcapacity\tof linear\tgave way\n")
		for _, s := range r.Scale {
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", s.Signers, s.Capacity.Highest(), s.Share(), first(s.Capacity.GaveWay))
		}
	}
	switch {
	case r.Objective == "" || r.Scale != nil && len(r.Missed) == 0:
	case r.Wrong() > 0:
		fmt.Fprintf(t, "objective\tnot judged, since answers were wrong: %s\n", r.Objective)
	case r.Capacity != nil && r.Capacity.Ended != "" && len(r.Missed) == 0:
		fmt.Fprintf(t, "ended early\t%s\n", r.Capacity.WhyEnded())
	case len(r.Missed) > 0:
		fmt.Fprintf(t, "objective\tNOT HELD: %s\n", strings.Join(r.Missed, "; "))
	default:
		fmt.Fprintf(t, "objective\theld: %s\n", r.Objective)
	}
	return t.Flush()
}

func first(s []string) string {
	if len(s) == 0 {
		return "nothing"
	}
	return s[0]
}

func (r *Run) write(t io.Writer, title string, p Plan) {
	if title != "" {
		fmt.Fprintf(t, "\n%s\n", title)
	}
	if r.Checks.Wrong > 0 {
		fmt.Fprintf(t, "*** WRONG ANSWERS: %d of %d ***\n", r.Checks.Wrong, r.Checks.Seen)
		for _, e := range r.Checks.Examples[:min(3, len(r.Checks.Examples))] {
			fmt.Fprintf(t, "***\t%s %s\n", e.Request, engine.Printable(e.Why, maxShown))
		}
	}
	asked := fmt.Sprintf("asked %.0f/s", r.RateAsked)
	if p.Loop == "closed" {
		asked = fmt.Sprintf("%d callers", p.InFlight)
	}
	fmt.Fprintf(t, "rate\t%.0f %s/s (%s), %d in %.0f s\n", r.RateReached, p.Unit, asked, r.OK, r.Seconds)
	l := r.Latency
	from := "from due"
	if p.Loop == "closed" {
		from = "closed loop: stalls are understated"
	}
	fmt.Fprintf(t, "latency\tp50 %s  p90 %s  p99 %s  p99.9 %s  max %s ms (%s)\n", digits(l.P50), digits(l.P90), digits(l.P99), digits(l.P999), digits(l.Max), from)
	if text := r.Few(p); text != "" {
		fmt.Fprintf(t, "  WARNING\t%s\n", text)
	}
	fmt.Fprintf(t, "errors\t%d (%.3g%%)\n", r.Failed, 100*r.ErrorShare())
	for _, e := range r.Errors[:min(6, len(r.Errors))] {
		fmt.Fprintf(t, "  %s\t%d, the first: %s\n", e.Kind, e.Count, engine.Printable(e.Example, maxShown))
	}
	for _, part := range r.breakdown() {
		text := digits(part.mean) + " ms mean"
		if part.p99 > 0 {
			text += ", " + digits(part.p99) + " ms p99"
		}
		fmt.Fprintf(t, "  %s\t%s\n", part.name, text)
	}
	fmt.Fprintf(t, "checked\t%d of %d in full (%s)\n", r.Checks.Checked, r.Checks.Seen, strings.Join(r.Checks.What, ", "))
	if n := r.Checks.Skipped; n > 0 {
		fmt.Fprintf(t, "  WARNING\t%d more were not checked in full, since the checks were behind\n", n)
	}
	if n := r.Checks.Unmade; n > 0 {
		fmt.Fprintf(t, "  WARNING\t%d more could not be checked in full; the first: %s\n", n, engine.Printable(r.Checks.UnmadeWhy, maxShown))
	}
	if r.Checks.Serials != "" {
		fmt.Fprintf(t, "serials\t%s\n", r.Checks.Serials)
	}
	if len(r.Use.Roles) > 0 {
		fmt.Fprintf(t, "CPU\t%.3f ms for each, all watched processes together\n", r.CPUPerUnit())
		for _, u := range r.Use.Roles {
			if u.Cores >= 0.001 {
				fmt.Fprintf(t, "  %s\t%.2f cores, %.0f MB\n", u.Name, u.Cores, u.RSS/1e6)
			}
		}
	}
	fmt.Fprintf(t, "generator\t%.2f cores; sent late by p50 %s, p99 %s ms; CSRs or serials used %.1f times on average\n", r.Generator.Cores, digits(r.Late.P50), digits(r.Late.P99), r.Reuse)
	if r.Generator.Limit {
		fmt.Fprintf(t, "  WARNING\tthe generator was the limit: %s\n", r.Generator.Why)
	}
	if r.Ended != "" {
		fmt.Fprintf(t, "ended early\t%s\n", r.Ended)
	}
}

func (c *Capacity) write(t io.Writer, objective string) {
	fmt.Fprintf(t, "\nrate\treached\tp50 ms\tp99 ms\terrors\t\n")
	for _, x := range c.Trials {
		word := "holds"
		if !x.Held {
			word = strings.Join(x.Missed, "; ")
		}
		fmt.Fprintf(t, "%.0f/s\t%.0f/s\t%s\t%s\t%.3g%%\t%s\n", x.Rate, x.Reached, digits(x.Latency.P50), digits(x.Latency.P99), 100*x.Errors, word)
	}
	fmt.Fprintf(t, "\ncapacity\t%s with %s\n", c.Highest(), objective)
	for i, g := range c.GaveWay {
		label := ""
		if i == 0 {
			label = "gave way"
		}
		fmt.Fprintf(t, "%s\t%s\n", label, g)
	}
}

// Highest is the capacity for people.
func (c *Capacity) Highest() string {
	if c.Rate == 0 {
		return "none"
	}
	text := fmt.Sprintf("%.0f/s", c.Rate)
	if c.Ceiling {
		return "at least " + text + " (--most)"
	}
	return text
}

// WhyEnded says what a search that ended early has found.
func (c *Capacity) WhyEnded() string {
	if c.Rate == 0 {
		return c.Ended + ": no rate had held yet"
	}
	return c.Ended + ": that rate had held, a higher one was not looked for to the end"
}

// Share is the share of linear for people.
func (s Step) Share() string {
	if s.Linear == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%.2f", s.Linear)
}

// Asked is what the requests asked for, for people; "" for OCSP.
func (p Plan) Asked() string {
	if p.KeyTypes == "" || p.Name == "" {
		return ""
	}
	parts := []string{"name " + p.Name, "keys " + p.KeyTypes}
	if p.Profile != "" {
		parts = append(parts, "profile "+p.Profile)
	}
	if p.Lifetime > 0 {
		parts = append(parts, "lifetime "+time.Duration(p.Lifetime*float64(time.Second)).String())
	}
	if p.Loop == "open" {
		parts = append(parts, fmt.Sprintf("arrivals from seed %d", p.Seed))
	}
	return strings.Join(parts, ", ")
}

// digits writes a figure with three digits, or all before the point.
func digits(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// part is a stop on a request's way with its mean and p99 in milliseconds.
type part struct {
	name      string
	mean, p99 float64
}

// breakdown says where the time went: the server's phases, what the server did beside
// them ("gateway", where it states a total), what the way to it took ("network and
// client"), and how long requests waited to be sent.
func (r *Run) breakdown() []part {
	if len(r.Phases) == 0 {
		return nil
	}
	var parts []part
	known, total := 0.0, -1.0
	for _, p := range r.Phases {
		if p.Name == "total" {
			total = p.Mean
			continue
		}
		parts = append(parts, part{p.Name, p.Mean, p.P99})
		known += p.Mean
	}
	if total >= 0 {
		parts = append(parts, part{name: "gateway", mean: max(total-known, 0)})
		known = max(known, total)
	}
	if rest := r.Service.Mean - known; rest > 0 {
		parts = append(parts, part{name: "network and client", mean: rest})
	}
	if late := r.Latency.Mean - r.Service.Mean; late > 0 {
		parts = append(parts, part{name: waiting, mean: late})
	}
	slices.SortStableFunc(parts, func(a, b part) int { return byWay(a.name, b.name) })
	return parts
}

// waiting is the part between the moment a request was due and its sending.
const waiting = "waiting to be sent"
