package loadtest

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/report"
)

// view shows a run while it is on: a few lines that change in place on a terminal, a
// line every so often elsewhere. A nil view shows nothing.
type view struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	every    time.Duration
	lines    int // on the terminal, to be written over
	last     time.Duration
}

func newView(out io.Writer, every time.Duration) *view {
	v := &view{out: out, every: every}
	if f, ok := out.(*os.File); ok {
		v.terminal = term.IsTerminal(int(f.Fd()))
	}
	return v
}

// note writes a line that stays.
func (v *view) note(format string, args ...any) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wipe()
	fmt.Fprintf(v.out, format+"\n", args...)
}

// progress tells of work before the run, on a terminal only.
func (v *view) progress(what string, done, of int) {
	if v == nil || !v.terminal {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wipe()
	if done < of {
		v.draw([]string{fmt.Sprintf("%s: %d of %d", what, done, of)})
	}
}

func (v *view) clear() {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wipe()
	v.last = 0
}

// show draws the state of a run, if it is time to.
func (v *view) show(l load, at time.Duration, progress func() engine.Progress, sample report.Sample, wrong int64) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.terminal {
		v.wipe()
		v.draw(block(l, at, progress(), sample, wrong))
	} else if at-v.last >= v.every {
		v.last = at
		fmt.Fprintln(v.out, plainLine(at, progress(), sample, wrong))
	}
}

// wipe takes back what was drawn.
func (v *view) wipe() {
	if v.lines > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA\x1b[J", v.lines)
		v.lines = 0
	}
}

func (v *view) draw(lines []string) {
	width := 120
	if f, ok := v.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 10 {
			width = w
		}
	}
	for _, l := range lines {
		if r := []rune(l); len(r) >= width { // a line that wraps could not be taken back
			l = string(r[:width-1])
		}
		fmt.Fprintln(v.out, l)
	}
	v.lines = len(lines)
}

func perSecond(n int64, p engine.Point) float64 { return float64(n) / p.Seconds }

func plainLine(at time.Duration, s engine.Progress, sample report.Sample, wrong int64) string {
	p := s.Last
	parts := []string{
		fmt.Sprintf("%4.0fs  asked %.0f/s  reached %.0f/s", at.Seconds(), perSecond(p.Asked, p), perSecond(p.OK, p)),
		fmt.Sprintf("p50 %s  p99 %s  max %s", ms(p.Latency.P50), ms(p.Latency.P99), ms(p.Latency.Max)),
		fmt.Sprintf("errors %d", s.Failed),
	}
	if len(s.Errors) > 0 {
		parts[2] += " (" + errorsLine(s.Errors, ", ") + ")"
	}
	if wrong > 0 {
		parts = append(parts, fmt.Sprintf("WRONG %d", wrong))
	}
	parts = append(parts, service(sample)...)
	return strings.Join(append(parts, "cores: "+strings.Join(cores(sample), " ")), "  ")
}

func block(l load, at time.Duration, s engine.Progress, sample report.Sample, wrong int64) []string {
	p := s.Last
	const cells = 30
	filled := min(int(cells*at/l.duration), cells)
	head := fmt.Sprintf("%s%s  %.0f of %.0f s", strings.Repeat("█", filled), strings.Repeat("░", cells-filled), at.Seconds(), l.duration.Seconds())
	if l.title != "" {
		head += "  " + l.title
	}
	if at < l.warmup {
		head += "  warming up"
	}
	lines := []string{
		head,
		fmt.Sprintf("rate      asked %8.0f/s   reached %8.0f/s   so far %d", perSecond(p.Asked, p), perSecond(p.OK, p), s.OK),
		fmt.Sprintf("now       p50 %9s  p90 %9s  p99 %9s  p99.9 %9s  max %9s", ms(p.Latency.P50), ms(p.Latency.P90), ms(p.Latency.P99), ms(p.Latency.P999), ms(p.Latency.Max)),
		fmt.Sprintf("so far    p50 %9s  p90 %9s  p99 %9s  p99.9 %9s  max %9s", ms(s.Latency.P50), ms(s.Latency.P90), ms(s.Latency.P99), ms(s.Latency.P999), ms(s.Latency.Max)),
		"errors    " + errorsLine(s.Errors, "  "),
	}
	if parts := service(sample); len(parts) > 0 {
		lines = append(lines, "service   "+strings.Join(parts, "   "))
	}
	lines = append(lines, "cores     "+strings.Join(cores(sample), "  "))
	if wrong > 0 {
		lines = append(lines, fmt.Sprintf("\x1b[1;31mWRONG ANSWERS: %d\x1b[0m", wrong))
	}
	return lines
}

func errorsLine(errors []engine.Failure, between string) string {
	if len(errors) == 0 {
		return "none"
	}
	var parts []string
	for _, e := range errors {
		parts = append(parts, fmt.Sprintf("%s %d", e.Kind, e.Count))
	}
	return strings.Join(parts, between)
}

// service says how full the service is.
func service(s report.Sample) []string {
	var parts []string
	if s.Waiting != nil {
		parts = append(parts, fmt.Sprintf("waiting %.0f", *s.Waiting))
	}
	if s.Queued != nil {
		parts = append(parts, fmt.Sprintf("queued %.0f", *s.Queued))
	}
	if s.Busy != nil && s.Sessions != nil {
		parts = append(parts, fmt.Sprintf("HSM %.0f/%.0f busy", *s.Busy, *s.Sessions))
	}
	return parts
}

// cores says who uses how many: the generator, then the roles, the busiest first, which
// a narrow terminal cuts off last.
func cores(s report.Sample) []string {
	cpu := []string{fmt.Sprintf("generator %.2f", s.Own)}
	for _, name := range slices.SortedFunc(maps.Keys(s.Cores), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Cores[b], s.Cores[a]), strings.Compare(a, b))
	}) {
		if s.Cores[name] >= 0.005 {
			cpu = append(cpu, fmt.Sprintf("%s %.2f", name, s.Cores[name]))
		}
	}
	return cpu
}

// ms writes milliseconds with three digits.
func ms(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v >= 10_000:
		return fmt.Sprintf("%.3g s", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f ms", v)
	default:
		return fmt.Sprintf("%.3g ms", v)
	}
}
