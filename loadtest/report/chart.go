package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
)

// chart is one plot, drawn as inline SVG. Colours are classes, so that light and dark
// are the style sheet's business.
type chart struct {
	title, note    string
	xLabel, yLabel string
	// yLog draws the y axis by decades. quantiles makes the x axis that of an HDR curve:
	// x is log10(1/(1-q)).
	yLog, quantiles bool
	// steps makes the x axis one of few numbers, each with its tick.
	steps  []float64
	series []series
	// until makes the x axis that of time, from 0 to here.
	until float64
	// warmup shades x from 0 to here.
	warmup float64
	// whole is true where y counts something that cannot be halved.
	whole  bool
	format func(float64) string // of y
}

// series is one line, area or set of dots. A y that is not a number is a gap in a line.
type series struct {
	name string
	x, y []float64
	// class picks the colour; see style.css.
	class string
	// stacked fills between this series and those before it; dashed and dots draw so.
	stacked, dashed, dots bool
}

// The plot's measures in units of the view box.
const (
	width, height            = 560.0, 250.0
	left, right, top, bottom = 52.0, 12.0, 24.0, 36.0
)

// HTML draws the chart with its title and legend. A chart without a point says so.
func (c *chart) HTML() template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<figure class="chart"><figcaption><h3>%s</h3>`, html.EscapeString(c.title))
	if c.note != "" {
		fmt.Fprintf(&b, `<p>%s</p>`, html.EscapeString(c.note))
	}
	b.WriteString(`</figcaption>`)
	if !c.hasPoints() {
		b.WriteString(`<p class="empty">no data</p></figure>`)
		return template.HTML(b.String()) //nolint:gosec // every text in it has been escaped
	}
	c.stack()
	a := c.axes()
	c.legend(&b)
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="%s">`, width, height, html.EscapeString(c.title))
	c.grid(&b, a)
	for i := len(c.series) - 1; i >= 0; i-- { // areas from the top of the stack down
		if c.series[i].stacked {
			c.area(&b, a, i)
		}
	}
	for _, s := range c.series {
		if !s.stacked {
			drawLine(&b, a, s)
		}
	}
	c.readout(&b, a)
	b.WriteString(`</svg></figure>`)
	return template.HTML(b.String()) //nolint:gosec // every text in it has been escaped
}

func (c *chart) hasPoints() bool {
	for _, s := range c.series {
		if slices.ContainsFunc(s.y, func(y float64) bool { return !math.IsNaN(y) }) {
			return true
		}
	}
	return false
}

// stack turns the values of stacked series into sums from the bottom. All of them have
// the same x.
func (c *chart) stack() {
	var below []float64
	for i := range c.series {
		s := &c.series[i]
		if !s.stacked {
			continue
		}
		if below == nil {
			below = make([]float64, len(s.y))
		}
		sums := make([]float64, len(s.y))
		for k := range s.y {
			sums[k] = below[k] + s.y[k]
		}
		s.y, below = sums, sums
	}
}

// axes maps values to the view box.
type axes struct {
	x0, x1, y0, y1 float64
	yLog           bool
	yTicks         []float64
}

func (a axes) px(x float64) float64 {
	return left + (x-a.x0)/(a.x1-a.x0)*(width-left-right)
}

func (a axes) py(y float64) float64 {
	v, v0, v1 := y, a.y0, a.y1
	if a.yLog {
		v, v0, v1 = math.Log10(math.Max(y, a.y0)), math.Log10(a.y0), math.Log10(a.y1)
	}
	return height - bottom - (v-v0)/(v1-v0)*(height-top-bottom)
}

func (c *chart) axes() axes {
	a := axes{x0: math.Inf(1), x1: math.Inf(-1), y0: math.Inf(1), y1: math.Inf(-1), yLog: c.yLog}
	for _, s := range c.series {
		for i := range s.x {
			a.x0, a.x1 = math.Min(a.x0, s.x[i]), math.Max(a.x1, s.x[i])
			if y := s.y[i]; y > 0 || !c.yLog && !math.IsNaN(y) {
				a.y0, a.y1 = math.Min(a.y0, y), math.Max(a.y1, y)
			}
		}
	}
	if c.until > 0 {
		a.x0, a.x1 = 0, c.until
	}
	for _, s := range c.series {
		if s.dots && len(s.x) > 0 { // a dot at the edge would be cut in half
			pad := (a.x1 - a.x0) * 0.04
			a.x0, a.x1 = math.Max(a.x0-pad, 0), a.x1+pad
			break
		}
	}
	if a.x1 == a.x0 {
		a.x0, a.x1 = a.x0-0.5, a.x1+0.5
	}
	switch {
	case math.IsInf(a.y0, 0):
		a.y0, a.y1 = 0.1, 1
		if !c.yLog {
			a.y0 = 0
		}
		a.yTicks = []float64{a.y0, a.y1}
	case c.yLog:
		a.y0, a.y1 = math.Pow(10, math.Floor(math.Log10(a.y0))), math.Pow(10, math.Ceil(math.Log10(a.y1*1.0001)))
		for v := a.y0; v < a.y1*1.5; v *= 10 {
			a.yTicks = append(a.yTicks, v)
			if a.y1/a.y0 <= 1000 && v < a.y1*0.9 {
				a.yTicks = append(a.yTicks, 2*v, 5*v)
			}
		}
	default:
		step := 1.0 // of what is 0 throughout
		if a.y1 > 0 {
			step = niceStep(a.y1 / 4)
		}
		if c.whole {
			step = math.Max(step, 1)
		}
		a.y0, a.y1 = 0, step*math.Max(math.Ceil(a.y1/step), 1)
		for i := 0; float64(i)*step <= a.y1*1.001; i++ {
			a.yTicks = append(a.yTicks, float64(i)*step)
		}
	}
	return a
}

// niceStep returns 1, 2 or 5 times a power of ten, at least v.
func niceStep(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*p >= v*0.999 {
			return m * p
		}
	}
	return 10 * p
}

func (c *chart) grid(b *strings.Builder, a axes) {
	if c.warmup > 0 {
		fmt.Fprintf(b, `<rect class="warmup" x="%.1f" y="%g" width="%.1f" height="%g"><title>warm-up, not counted</title></rect>`,
			a.px(a.x0), top, a.px(math.Min(c.warmup, a.x1))-a.px(a.x0), height-top-bottom)
	}
	for _, y := range a.yTicks {
		fmt.Fprintf(b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/><text class="tick" x="%g" y="%.1f" text-anchor="end">%s</text>`,
			left, width-right, a.py(y), a.py(y), left-7, a.py(y)+4, c.show(y))
	}
	const character = 7.0 // at most, of a tick's text
	for _, t := range c.xTicks(a) {
		fmt.Fprintf(b, `<line class="tickmark" x1="%.1f" x2="%.1f" y1="%g" y2="%g"/><text class="tick" x="%.1f" y="%g" text-anchor="middle">%s</text>`,
			a.px(t.at), a.px(t.at), height-bottom, height-bottom+4, math.Min(a.px(t.at), width-character*float64(len(t.text))/2), height-bottom+17, html.EscapeString(t.text))
	}
	fmt.Fprintf(b, `<text class="axis" x="%g" y="%g" text-anchor="end">%s</text>`, width-right, height-4, html.EscapeString(c.xLabel))
	fmt.Fprintf(b, `<text class="axis" x="%g" y="12">%s</text>`, left, html.EscapeString(c.yLabel))
}

func (c *chart) show(y float64) string {
	if c.format != nil {
		return c.format(y)
	}
	return short(y)
}

// short writes a number in few characters.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + "M"
	case v >= 1e4:
		return strconv.FormatFloat(v/1e3, 'g', 3, 64) + "k"
	default:
		return strconv.FormatFloat(v, 'g', 4, 64)
	}
}

type tick struct {
	at   float64
	text string
}

func (c *chart) xTicks(a axes) []tick {
	var out []tick
	switch {
	case c.quantiles:
		for i, text := range []string{"0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"} {
			if float64(i) <= a.x1+0.01 {
				out = append(out, tick{float64(i), text})
			}
		}
	case c.steps != nil:
		for _, s := range c.steps {
			out = append(out, tick{s, short(s)})
		}
	default:
		step := niceStep((a.x1 - a.x0) / 8)
		for i := math.Ceil(a.x0 / step); i*step <= a.x1*1.0001; i++ {
			out = append(out, tick{i * step, short(i * step)})
		}
	}
	return out
}

func (c *chart) legend(b *strings.Builder) {
	b.WriteString(`<ul class="legend">`)
	for _, s := range c.series {
		kind := "line"
		switch {
		case s.stacked:
			kind = "fill"
		case s.dashed:
			kind = "dash"
		case s.dots:
			kind = "dot"
		}
		fmt.Fprintf(b, `<li><i class="%s %s"></i>%s</li>`, kind, s.class, html.EscapeString(s.name))
	}
	b.WriteString(`</ul>`)
}

// area fills from series i down to the stacked one below it.
func (c *chart) area(b *strings.Builder, a axes, i int) {
	s := c.series[i]
	var d strings.Builder
	for k := range s.x {
		fmt.Fprintf(&d, "%s%.1f %.1f", move(k), a.px(s.x[k]), a.py(s.y[k]))
	}
	lower := -1
	for k := i - 1; k >= 0 && lower < 0; k-- {
		if c.series[k].stacked {
			lower = k
		}
	}
	for k := len(s.x) - 1; k >= 0; k-- {
		y := 0.0
		if lower >= 0 {
			y = c.series[lower].y[k]
		}
		fmt.Fprintf(&d, "L%.1f %.1f", a.px(s.x[k]), a.py(y))
	}
	fmt.Fprintf(b, `<path class="area %s" d="%sZ"/>`, s.class, d.String())
}

func move(k int) string {
	if k == 0 {
		return "M"
	}
	return "L"
}

func drawLine(b *strings.Builder, a axes, s series) {
	if s.dots {
		for k := range s.x {
			fmt.Fprintf(b, `<circle class="point %s" cx="%.1f" cy="%.1f" r="4.5"/>`, s.class, a.px(s.x[k]), a.py(s.y[k]))
		}
		return
	}
	there := func(k int) bool { return k >= 0 && k < len(s.y) && !math.IsNaN(s.y[k]) }
	var d strings.Builder
	for k := range s.x {
		switch {
		case !there(k):
		case there(k - 1):
			fmt.Fprintf(&d, "L%.1f %.1f", a.px(s.x[k]), a.py(s.y[k]))
		default:
			fmt.Fprintf(&d, "M%.1f %.1f", a.px(s.x[k]), a.py(s.y[k]))
			if !there(k + 1) { // no line
				fmt.Fprintf(b, `<circle class="point %s" cx="%.1f" cy="%.1f" r="3"/>`, s.class, a.px(s.x[k]), a.py(s.y[k]))
			}
		}
	}
	class := "plot " + s.class
	if s.dashed {
		class += " dashed"
	}
	fmt.Fprintf(b, `<path class="%s" d="%s"/>`, class, d.String())
}

// maxReadout bounds the columns that tell their values under the pointer.
const maxReadout = 300

// readout lays invisible columns over the plot that tell the values at their x; no
// script is needed for it.
func (c *chart) readout(b *strings.Builder, a axes) {
	base := 0
	for i := range c.series {
		if len(c.series[i].x) > len(c.series[base].x) {
			base = i
		}
	}
	xs := c.series[base].x
	stride := (len(xs) + maxReadout - 1) / maxReadout
	for k := 0; k < len(xs); k += stride {
		from, to := left, width-right
		if k > 0 {
			from = (a.px(xs[k]) + a.px(xs[k-stride])) / 2
		}
		if k+stride < len(xs) {
			to = (a.px(xs[k]) + a.px(xs[k+stride])) / 2
		}
		fmt.Fprintf(b, `<g class="read"><rect x="%.1f" y="%g" width="%.1f" height="%g"/><line x1="%.1f" x2="%.1f" y1="%g" y2="%g"/><title>%s</title></g>`,
			from, top, math.Max(to-from, 0.5), height-top-bottom, a.px(xs[k]), a.px(xs[k]), top, height-bottom, html.EscapeString(c.tell(xs[k])))
	}
}

// tell says what every series has at x.
func (c *chart) tell(x float64) string {
	var b strings.Builder
	if c.quantiles {
		fmt.Fprintf(&b, "%.6g %%", 100*(1-math.Pow(10, -x)))
	} else {
		fmt.Fprintf(&b, "%s %s", short(x), c.xLabel)
	}
	below := map[float64]float64{}
	for _, s := range c.series {
		for k := range s.x {
			if s.x[k] != x {
				continue
			}
			v := s.y[k]
			if math.IsNaN(v) {
				break
			}
			if s.stacked {
				v, below[x] = v-below[x], v
			}
			fmt.Fprintf(&b, "\n%s: %s", s.name, c.show(v))
			break
		}
	}
	return b.String()
}
