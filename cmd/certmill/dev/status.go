package dev

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	// liveEvery is how often the live line changes on a terminal; elsewhere a line is
	// written every plainEvery.
	liveEvery  = time.Second
	plainEvery = 30 * time.Second
)

// sample is what the roles said of themselves at one time.
type sample struct {
	at             time.Time
	issued, ocsp   float64 // totals since the roles' starts
	waiting        float64 // calls that have no answer yet
	signers, ready int
	sessions, busy float64
	hsm            string // the worst condition of a token
	notReady       []string
}

// follow shows how the service is doing until ctx ends.
func (d *dev) follow(ctx context.Context) {
	if d.Quiet {
		<-ctx.Done()
		return
	}
	every := plainEvery
	if d.Terminal {
		every = liveEvery
		defer d.print("")
	}
	before := d.take(ctx)
	for pause(ctx, every) {
		now := d.take(ctx)
		if ctx.Err() != nil {
			return
		}
		line := now.since(before)
		if d.Terminal {
			d.print(line)
		} else {
			d.say("%s", line)
		}
		before = now
	}
}

// since is the live line: rates since an earlier sample.
func (s sample) since(before sample) string {
	seconds := s.at.Sub(before.at).Seconds()
	rate := func(now, then float64) float64 {
		if now < then { // a role has started anew
			then = 0
		}
		return (now - then) / seconds
	}
	// Short enough for a terminal of 80 columns, where \r cannot go back over a wrap.
	line := fmt.Sprintf("%s %.0f certs/s · queue %.0f · signers %d/%d · HSM %s %.0f/%.0f · OCSP %.0f/s",
		s.at.Format(time.TimeOnly), rate(s.issued, before.issued), s.waiting, s.ready, s.signers, s.hsm, s.busy, s.sessions, rate(s.ocsp, before.ocsp))
	if len(s.notReady) > 0 {
		line += " · not ready: " + strings.Join(s.notReady, ", ")
	}
	return line
}

// take asks every role.
func (d *dev) take(ctx context.Context) sample {
	s := sample{at: time.Now(), hsm: "unknown"}
	for _, c := range d.roles {
		signer := strings.HasPrefix(c.name, "signer")
		if signer {
			s.signers++
		}
		if ask(ctx, c.operator) != nil {
			s.notReady = append(s.notReady, c.name)
		} else if signer {
			s.ready++
		}
		families, err := scrape(ctx, c.operator)
		if err != nil {
			continue
		}
		s.issued += sum(families, "certmill_signer_requests_total", "kind", "ok")
		s.ocsp += sum(families, "certmill_ocsp_requests_total", "", "")
		s.waiting += sum(families, "certmill_gateway_dispatch_pending", "", "")
		if signer {
			s.sessions += sum(families, "certmill_hsm_sessions", "", "")
			s.busy += sum(families, "certmill_hsm_sessions_busy", "", "")
			if condition := hsmCondition(families); condition != "ready" || s.hsm == "unknown" {
				s.hsm = condition
			}
		}
	}
	return s
}

// scrape reads a role's metrics.
func scrape(ctx context.Context, operator string) (map[string]*dto.MetricFamily, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+operator+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := operators.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(response.Body)
}

// sum adds up a metric over all labels, or over those where label has the value.
func sum(families map[string]*dto.MetricFamily, name, label, value string) float64 {
	var total float64
	for _, m := range families[name].GetMetric() {
		if label == "" || labelOf(m, label) == value {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return total
}

// hsmCondition returns the condition of a signer's tokens, the worst of them.
func hsmCondition(families map[string]*dto.MetricFamily) string {
	found := "unknown"
	for _, m := range families["certmill_hsm_condition"].GetMetric() {
		if m.GetGauge().GetValue() != 1 {
			continue
		}
		if condition := labelOf(m, "condition"); found == "unknown" || found == "ready" {
			found = condition
		}
	}
	return found
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
