package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteTable writes the result for a terminal.
func (r *Result) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
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
			fmt.Fprintf(t, "%d\t%.0f/s\t%.2f\t%s\n", s.Signers, s.Capacity.Rate, s.Linear, first(s.Capacity.GaveWay))
		}
	}
	switch {
	case r.Objective == "" || r.Scale != nil:
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
			fmt.Fprintf(t, "***\t%s %s\n", e.Request, e.Why)
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
	fmt.Fprintf(t, "latency\tp50 %.3g  p90 %.3g  p99 %.3g  p99.9 %.3g  max %.3g ms (%s)\n", l.P50, l.P90, l.P99, l.P999, l.Max, from)
	fmt.Fprintf(t, "errors\t%d (%.3g%%)\n", r.Failed, 100*r.ErrorShare())
	for _, e := range r.Errors[:min(6, len(r.Errors))] {
		fmt.Fprintf(t, "  %s\t%d, the first: %s\n", e.Kind, e.Count, oneLine(e.Example))
	}
	for _, part := range r.breakdown() {
		text := fmt.Sprintf("%.3g ms mean", part.mean)
		if part.p99 > 0 {
			text += fmt.Sprintf(", %.3g ms p99", part.p99)
		}
		fmt.Fprintf(t, "  %s\t%s\n", part.name, text)
	}
	fmt.Fprintf(t, "checked\t%d of %d in full (%s)\n", r.Checks.Checked, r.Checks.Seen, strings.Join(r.Checks.What, ", "))
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
	fmt.Fprintf(t, "generator\t%.2f cores; sent late by p50 %.3g, p99 %.3g ms; CSRs or serials used %.1f times on average\n", r.Generator.Cores, r.Late.P50, r.Late.P99, r.Reuse)
	if r.Generator.Limit {
		fmt.Fprintf(t, "  WARNING\tthe generator was the limit: %s\n", r.Generator.Why)
	}
	if r.Ended != "" {
		fmt.Fprintf(t, "ended early\t%s\n", r.Ended)
	}
}

// oneLine makes what a server said fit into a line of a table.
func oneLine(s string) string {
	const most = 200 // characters
	runes := []rune(strings.Join(strings.Fields(s), " "))
	if len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return string(runes)
}

func (c *Capacity) write(t io.Writer, objective string) {
	fmt.Fprintf(t, "\nrate\treached\tp50 ms\tp99 ms\terrors\t\n")
	for _, x := range c.Trials {
		word := "holds"
		if !x.Held {
			word = strings.Join(x.Missed, "; ")
		}
		fmt.Fprintf(t, "%.0f/s\t%.0f/s\t%.3g\t%.3g\t%.3g%%\t%s\n", x.Rate, x.Reached, x.Latency.P50, x.Latency.P99, 100*x.Errors, word)
	}
	fmt.Fprintf(t, "\ncapacity\t%.0f/s with %s\n", c.Rate, objective)
	for i, g := range c.GaveWay {
		label := ""
		if i == 0 {
			label = "gave way"
		}
		fmt.Fprintf(t, "%s\t%s\n", label, g)
	}
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
