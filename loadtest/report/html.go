package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"
	"time"
)

//go:embed report.html
var page string

//go:embed report.css
var style string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"style": func() template.CSS { return template.CSS(style) }, //nolint:gosec // our own file
	"ms":    milliseconds,
	"n":     group,
	"pct":   func(v float64) string { return fmt.Sprintf("%.3g %%", 100*v) },
	"f2":    func(v float64) string { return fmt.Sprintf("%.2f", v) },
	"lines": lines,
	"text":  func(s string) template.HTML { return lines([]string{s}) },
	"join":  func(s []string) string { return strings.Join(s, ", ") },
	"add":   func(a, b int) int { return a + b },
	"mb":    func(v float64) string { return fmt.Sprintf("%.0f MB", v/1e6) },
	"when":  func(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") },
	"secs":  func(v float64) string { return (time.Duration(v * float64(time.Second))).String() },
}).Parse(page))

// lines sets texts apart, each of them and each line of theirs: errors that were joined
// are several lines.
func lines(texts []string) template.HTML {
	text := strings.TrimSpace(strings.Join(texts, "\n"))
	return template.HTML(strings.ReplaceAll(template.HTMLEscapeString(text), "\n", "<br>")) //nolint:gosec // escaped
}

// WriteHTML writes the report as one HTML file that loads nothing.
func (r *Result) WriteHTML(path string) error {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, &view{r}); err != nil {
		return fmt.Errorf("drawing the report: %w", err)
	}
	return writeFile(path, b.Bytes())
}

// view is what the page's template asks for.
type view struct{ *Result }

// Title names the report.
func (v *view) Title() string {
	if v.Label != "" {
		return v.Label
	}
	host := v.Plan.URL
	if u, err := url.Parse(v.Plan.URL); err == nil && u.Host != "" {
		host = u.Host
	}
	return v.Plan.Target + " at " + host
}

// Verdict is the one word at the top, with its class.
func (v *view) Verdict() (out struct{ Text, Class string }) {
	switch {
	case v.Wrong() > 0:
		out.Text, out.Class = "wrong answers", "bad"
	case len(v.Missed) > 0:
		out.Text, out.Class = "objective not held", "bad"
	case slices.ContainsFunc(v.Runs, func(r Run) bool { return r.OK == 0 }):
		out.Text, out.Class = "nothing was answered", "bad"
	case v.Capacity != nil && v.Capacity.Ended != "":
		out.Text, out.Class = "ended early", "neutral"
	case v.Scale != nil:
		out.Text, out.Class = fmt.Sprintf("%d steps", len(v.Scale)), "neutral"
	case v.Objective != "":
		out.Text, out.Class = "objective held", "good"
	default:
		out.Text, out.Class = "no objective", "neutral"
	}
	return out
}

// Head is the run whose figures stand at the top: the one of median rate.
func (v *view) Head() *runView {
	if len(v.Runs) == 0 {
		return nil
	}
	all := v.All()
	for i := range all { // insertion by rate; there are few
		for k := i; k > 0 && all[k].RateReached < all[k-1].RateReached; k-- {
			all[k], all[k-1] = all[k-1], all[k]
		}
	}
	return all[len(all)/2]
}

// All are the runs.
func (v *view) All() []*runView {
	out := make([]*runView, len(v.Runs))
	for i := range v.Runs {
		out[i] = &runView{Run: &v.Runs[i], plan: v.Plan, Number: i + 1}
	}
	return out
}

// Several reports whether there is more than one run.
func (v *view) Several() bool { return len(v.Runs) > 1 }

// Closed reports whether the loop was closed.
func (v *view) Closed() bool { return v.Plan.Loop == "closed" }

// Examples are the first wrong answers.
func (v *view) Examples() []template.HTML {
	var out []template.HTML
	for i := range v.Runs {
		for _, e := range v.Runs[i].Checks.Examples {
			out = append(out, template.HTML("<b>"+string(lines([]string{e.Why}))+"</b> "+template.HTMLEscapeString(e.Request)+ //nolint:gosec // escaped
				"<pre>"+template.HTMLEscapeString(e.Evidence)+"</pre>"))
		}
	}
	return out[:min(len(out), 5)]
}

// Trials is the plot of a capacity search.
func (v *view) Trials() template.HTML { return v.Capacity.chart().HTML() }

// Scaling is the plot of capacity by signers.
func (v *view) Scaling() template.HTML { return scaleChart(v.Scale).HTML() }

// runView is one run for the template.
type runView struct {
	*Run
	plan   Plan
	Number int
}

// Charts are its plots.
func (r *runView) Charts() []template.HTML {
	var out []template.HTML
	for _, c := range r.charts(r.plan) {
		out = append(out, c.HTML())
	}
	return out
}

// bar is one bar of the breakdown.
type bar struct {
	Name, Class, Width string
	Mean, P99          float64
	Share              float64
}

// Breakdown is where the mean request's time went.
func (r *runView) Breakdown() []bar {
	parts := r.breakdown()
	total := 0.0
	for _, p := range parts {
		total += p.mean
	}
	var out []bar
	for i, p := range parts {
		out = append(out, bar{Name: p.name, Class: classOf(p.name, i), Mean: p.mean, P99: p.p99, Share: p.mean / total, Width: fmt.Sprintf("%.2f%%", 100*p.mean/total)})
	}
	return out
}

// milliseconds writes a latency.
func milliseconds(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v >= 1000:
		return fmt.Sprintf("%.3g s", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f ms", v)
	default:
		return fmt.Sprintf("%.3g ms", v)
	}
}

// group writes a number with thousands apart.
func group(v any) string {
	var s string
	switch v := v.(type) {
	case float64:
		s = fmt.Sprintf("%.0f", v)
	default:
		s = fmt.Sprint(v)
	}
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 && s[i-1] != '-' {
			b.WriteRune('\u202f') // narrow, and no line breaks at it
		}
		b.WriteRune(c)
	}
	return b.String()
}
