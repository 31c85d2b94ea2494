package staple

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	fetches, pushes, reloads *prometheus.CounterVec
	written                  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Stapler) *metrics {
	vec := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_staple_" + name, Help: help}, []string{"result"})
		reg.MustRegister(v)
		return v
	}
	m := &metrics{
		fetches: vec("fetches_total", "Answers asked for, by whether they were taken."),
		pushes:  vec("pushes_total", "Staples handed to HAProxy's runtime socket."),
		reloads: vec("reloads_total", "Runs of the reload command."),
		written: prometheus.NewCounter(prometheus.CounterOpts{Name: "certmill_staple_written_total", Help: "Staple files written."}),
	}
	reg.MustRegister(m.written, &collector{s})
	return m
}

func result(err error) string {
	if err != nil {
		return "failed"
	}
	return "done"
}

func (m *metrics) fetched(err error)  { m.fetches.WithLabelValues(result(err)).Inc() }
func (m *metrics) push(err error)     { m.pushes.WithLabelValues(result(err)).Inc() }
func (m *metrics) reloaded(err error) { m.reloads.WithLabelValues(result(err)).Inc() }

var (
	descStates  = prometheus.NewDesc("certmill_staple_certificates", "Certificates by the state of their staple; alarm on all but fresh.", []string{"state"}, nil)
	descNearest = prometheus.NewDesc("certmill_staple_nearest_next_update_timestamp_seconds", "The earliest nextUpdate of all staples.", nil, nil)
)

// collector reads the stapler when it is scraped.
type collector struct{ s *Stapler }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descStates
	ch <- descNearest
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	now := c.s.deps.Now()
	count := map[State]int{}
	var nearest int64
	c.s.mu.Lock()
	for _, e := range c.s.entries {
		count[c.s.state(e.staple, now)]++
		if e.staple != nil && (nearest == 0 || e.staple.NextUpdate.Unix() < nearest) {
			nearest = e.staple.NextUpdate.Unix()
		}
	}
	c.s.mu.Unlock()
	for _, state := range states {
		ch <- prometheus.MustNewConstMetric(descStates, prometheus.GaugeValue, float64(count[state]), string(state))
	}
	if nearest > 0 {
		ch <- prometheus.MustNewConstMetric(descNearest, prometheus.GaugeValue, float64(nearest))
	}
}

// DescribeMetrics registers the metrics of a stapler that is not there, for their
// reference. They must not be asked for values.
func DescribeMetrics(r prometheus.Registerer) { newMetrics(r, &Stapler{}) }
