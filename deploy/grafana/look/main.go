// Command look asks a Prometheus for every query of the dashboards, draws the answers
// into one HTML page, and fails where a query has no data. It shows the panels where
// there is no Grafana.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// dashboard is the part of Grafana's model that is drawn.
type dashboard struct {
	Title  string
	Panels []*panel
}

type panel struct {
	Title   string
	Targets []struct{ Expr, LegendFormat string }
	Lines   []line `json:"-"`
}

// line is one series as an SVG polyline of 400 by 100.
type line struct{ Name, Last, Points string }

type answer struct {
	Status, Error string
	Data          struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
}

func main() {
	prometheus := flag.String("prometheus", "http://127.0.0.1:9090", "the Prometheus to ask")
	folder := flag.String("dashboards", "deploy/grafana", "where the dashboards are")
	out := flag.String("out", "panels.html", "the page to write")
	span := flag.Duration("span", 5*time.Minute, "how far to look back")
	flag.Parse()
	if err := run(*prometheus, *folder, *out, *span); err != nil {
		fmt.Fprintln(os.Stderr, "look:", err)
		os.Exit(1)
	}
}

func run(prometheus, folder, out string, span time.Duration) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no dashboards in %s: %w", folder, err)
	}
	var all []*dashboard
	var empty []error
	queries := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		d := &dashboard{}
		if err := json.Unmarshal(data, d); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				queries++
				if err := p.ask(prometheus, strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"), span); err != nil {
					empty = append(empty, fmt.Errorf("%s, %s: %w", d.Title, p.Title, err))
				}
			}
		}
		all = append(all, d)
	}
	if err := draw(out, all); err != nil {
		return err
	}
	fmt.Printf("%d dashboards, %d queries, %d without data; see %s\n", len(all), queries, len(empty), out)
	return errors.Join(empty...)
}

// ask adds a query's series to the panel; the error says that there are none.
func (p *panel) ask(prometheus, expr string, span time.Duration) error {
	now := time.Now()
	v := url.Values{"query": {expr}, "start": {unix(now.Add(-span))}, "end": {unix(now)}, "step": {strconv.FormatFloat(span.Seconds()/100, 'f', -1, 64)}}
	response, err := http.Get(prometheus + "/api/v1/query_range?" + v.Encode())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var a answer
	if err := json.NewDecoder(response.Body).Decode(&a); err != nil {
		return err
	}
	if a.Status != "success" {
		return fmt.Errorf("%s: %s", expr, a.Error)
	}
	drawn := 0
	for _, series := range a.Data.Result {
		var values []float64
		top := 0.0
		for _, pair := range series.Values {
			text, _ := pair[1].(string)
			if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
				values = append(values, f)
				top = max(top, f)
			}
		}
		if len(values) == 0 {
			continue
		}
		drawn++
		if top == 0 {
			top = 1
		}
		var points strings.Builder
		for i, f := range values {
			fmt.Fprintf(&points, "%.1f,%.1f ", 400*float64(i)/float64(max(1, len(values)-1)), 98-95*f/top)
		}
		delete(series.Metric, "__name__")
		p.Lines = append(p.Lines, line{Name: fmt.Sprint(series.Metric), Last: strconv.FormatFloat(values[len(values)-1], 'g', 4, 64), Points: points.String()})
	}
	if drawn == 0 {
		return fmt.Errorf("no data for %s", expr)
	}
	return nil
}

func unix(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

var pageTemplate = template.Must(template.New("").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Panels</title>
<style>body{font:14px system-ui;margin:1rem;background:#f6f8fa}section{display:grid;grid-template-columns:repeat(3,1fr);gap:.7rem}article{background:#fff;border:1px solid #ccd;padding:.5rem}h3{margin:0;font-size:14px}svg{width:100%;height:90px}polyline{fill:none;stroke:#0a58a8;vector-effect:non-scaling-stroke}small{color:#456;word-break:break-all}</style>
{{range .}}<h2>{{.Title}}</h2><section>{{range .Panels}}<article><h3>{{.Title}}</h3>{{if .Lines}}<svg viewBox="0 0 400 100" preserveAspectRatio="none">{{range .Lines}}<polyline points="{{.Points}}"/>{{end}}</svg>{{range .Lines}}<div><b>{{.Last}}</b> <small>{{.Name}}</small></div>{{end}}{{else}}<p>no data</p>{{end}}</article>{{end}}</section>{{end}}</html>
`))

func draw(out string, all []*dashboard) (err error) {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return pageTemplate.Execute(f, all)
}
