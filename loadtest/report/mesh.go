package report

import (
	"bytes"
	"fmt"
	"html/template"
	"strings"
	"time"
)

// Mesh is the report of a mesh that restarted, in what its page needs.
type Mesh struct {
	Title, Summary string
	Started        time.Time
	// Failed says why it must not pass.
	Failed []string
	// Tiles are the figures at the top: value and what it is.
	Tiles [][2]string
	// Wanted, Tries, Served and Refused are counts of each second.
	Wanted, Tries, Served, Refused []int64
	// Mean is the rate of a mesh without a herd, Period the seconds between two renewals,
	// Herd the peak of each period as a multiple of Mean.
	Mean, Period float64
	Herd         []float64
}

var meshTemplate = template.Must(template.New("mesh").Funcs(template.FuncMap{
	"style": func() template.CSS { return template.CSS(style) }, //nolint:gosec // our own file
	"when":  func(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") },
}).Parse(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}} – load test</title>
<style>{{style}}</style>
</head>
<body>
<main>
<header>
  <h1>{{.Title}}</h1>{{if .Failed}}<span class="badge bad">failed</span>{{else}}<span class="badge good">everybody served, nobody twice</span>{{end}}
  <p class="sub">{{.Summary}} · {{when .Started}}</p>
</header>
{{if .Failed}}<p class="notice bad">{{range $i, $m := .Failed}}{{if $i}}<br>{{end}}{{$m}}{{end}}</p>{{end}}
<div class="tiles">{{range .Tiles}}<div class="tile"><b>{{index . 0}}</b><span>{{index . 1}}</span></div>{{end}}</div>
<h2>The herd</h2>
<div class="grid">{{range .Charts}}{{.}}{{end}}</div>
</main>
</body>
</html>
`))

// WriteHTML writes the report as one HTML file that loads nothing.
func (m *Mesh) WriteHTML(path string) error {
	var b bytes.Buffer
	if err := meshTemplate.Execute(&b, m); err != nil {
		return fmt.Errorf("drawing the report: %w", err)
	}
	return writeFile(path, b.Bytes())
}

// Charts are its plots.
func (m *Mesh) Charts() []template.HTML {
	seconds := func(name, class string, counts []int64) series {
		s := series{name: name, class: class}
		for i, n := range counts {
			s.x, s.y = append(s.x, float64(i)), append(s.y, float64(n))
		}
		return s
	}
	mean := series{name: "without a herd", class: "c0", dashed: true, x: []float64{0, float64(len(m.Wanted))}, y: []float64{m.Mean, m.Mean}}
	peaks := series{name: "busiest second of each period", class: "c1"}
	for i, h := range m.Herd {
		peaks.x, peaks.y = append(peaks.x, float64(i+1)), append(peaks.y, h)
	}
	level := series{name: "without a herd", class: "c0", dashed: true, x: []float64{1, float64(max(len(m.Herd), 1))}, y: []float64{1, 1}}
	charts := []*chart{
		{title: "Certificates wanted", note: "agents that begin to ask, first certificates and renewals", xLabel: "s", yLabel: "per second", series: []series{seconds("wanted", "c1", m.Wanted), mean}},
		{title: "Tries, answers, refusals", note: "what the agents send and what becomes of it", xLabel: "s", yLabel: "per second",
			series: []series{seconds("tries", "c4", m.Tries), seconds("served", "c2", m.Served), seconds("refused", "c3", m.Refused)}},
		{title: "How the herd dissolves", note: fmt.Sprintf("peaks in periods of %.1f s, as multiples of the mean", m.Period), xLabel: "period", yLabel: "× mean", steps: peaks.x, series: []series{peaks, level}},
	}
	var out []template.HTML
	for _, c := range charts {
		out = append(out, c.HTML())
	}
	return out
}

// Spark draws counts with block characters, the largest eighth highest, for a terminal
// and for plain text.
func Spark(counts []int64, columns int) string {
	if len(counts) == 0 || columns < 1 {
		return ""
	}
	columns = min(columns, len(counts))
	sums := make([]float64, columns)
	most := 0.0
	for c := range sums {
		from, to := c*len(counts)/columns, (c+1)*len(counts)/columns
		for _, n := range counts[from:to] {
			sums[c] = max(sums[c], float64(n))
		}
		most = max(most, sums[c])
	}
	var b strings.Builder
	for _, v := range sums {
		b.WriteRune([]rune("▁▂▃▄▅▆▇█")[min(int(v/max(most, 1)*8), 7)])
	}
	return b.String()
}
