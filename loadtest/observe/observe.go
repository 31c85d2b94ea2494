// Package observe watches what serves the load: the roles' /metrics, their processes
// and the machine, so that a report can say where the time and the CPU went and what
// gave way first.
package observe

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Role is a process that tells of itself.
type Role struct {
	// Name is what the report calls it; several processes may share one.
	Name string
	// Metrics is the URL of its Prometheus metrics.
	Metrics string
}

// Config says what to watch. The generator's own process and the machine are always
// watched.
type Config struct {
	Roles []Role
	// Tree is the process whose descendants are watched too, for servers that have no
	// metrics of ours (PostgreSQL, Redis). 0: none.
	Tree int
}

// Sample is the state at one moment. CPU is in seconds since the start of each process.
type Sample struct {
	At time.Time
	// CPU is by name of role or process; Own is the generator's.
	CPU map[string]float64
	Own float64
	// Machine is the CPU time that the machine has spent and Idle what it had left.
	Machine, Idle float64
	// RSS is in bytes, by name.
	RSS map[string]float64
	// Gauges are those of the service; NaN where no role has them.
	Gauges Gauges
}

// Gauges say how full the service is.
type Gauges struct {
	// Waiting is calls that wait in the gateways, Queued messages in the queue.
	Waiting, Queued float64
	// Busy of Sessions HSM sessions are in use.
	Busy, Sessions float64
}

// Observer takes samples. It is for one goroutine.
type Observer struct {
	cfg    Config
	client *http.Client
	trees  []int
}

// New makes an observer.
func New(cfg Config) *Observer {
	o := &Observer{cfg: cfg, client: &http.Client{Timeout: 900 * time.Millisecond, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}}
	if cfg.Tree != 0 {
		o.Follow(cfg.Tree)
	}
	return o
}

// Follow watches one process more, with its descendants.
func (o *Observer) Follow(pid int) { o.trees = append(o.trees, pid) }

// Close ends its connections.
func (o *Observer) Close() { o.client.CloseIdleConnections() }

// Sample looks at everything once. What does not answer is left out.
func (o *Observer) Sample(ctx context.Context) Sample {
	s := Sample{At: time.Now(), CPU: map[string]float64{}, RSS: map[string]float64{}, Gauges: noGauges()}
	s.Own = ownCPU()
	s.Machine, s.Idle = machineCPU()
	scraped := make([]map[string]*dto.MetricFamily, len(o.cfg.Roles))
	var all sync.WaitGroup
	for i, r := range o.cfg.Roles {
		all.Go(func() { scraped[i], _ = o.scrape(ctx, r.Metrics) })
	}
	all.Wait()
	for i, families := range scraped {
		s.add(o.cfg.Roles[i].Name, families, o.cfg.Tree == 0)
	}
	for _, p := range trees(o.trees) {
		s.CPU[p.name] += p.cpu
		s.RSS[p.name] += p.rss
	}
	return s
}

func noGauges() Gauges {
	return Gauges{Waiting: math.NaN(), Queued: math.NaN(), Busy: math.NaN(), Sessions: math.NaN()}
}

func (o *Observer) scrape(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(res.Body)
}

// Check asks every role once and says which do not answer.
func (o *Observer) Check(ctx context.Context) error {
	var silent []string
	for _, r := range o.cfg.Roles {
		if _, err := o.scrape(ctx, r.Metrics); err != nil {
			silent = append(silent, fmt.Sprintf("%s (%v)", r.Name, err))
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("no metrics from %s", strings.Join(silent, ", "))
	}
	return nil
}

// add takes one role's metrics in. CPU and memory come from its process where the
// process tree is watched.
func (s *Sample) add(name string, families map[string]*dto.MetricFamily, process bool) {
	if families == nil {
		return
	}
	if process {
		if v, ok := sum(families, "process_cpu_seconds_total"); ok {
			s.CPU[name] += v
		}
		if v, ok := sum(families, "process_resident_memory_bytes"); ok {
			s.RSS[name] += v
		}
	}
	for metric, gauge := range map[string]*float64{
		"certmill_gateway_dispatch_pending": &s.Gauges.Waiting,
		"certmill_queue_depth_messages":     &s.Gauges.Queued,
		"certmill_hsm_sessions_busy":        &s.Gauges.Busy,
		"certmill_hsm_sessions":             &s.Gauges.Sessions,
	} {
		v, ok := sum(families, metric)
		switch {
		case !ok:
		case math.IsNaN(*gauge):
			*gauge = v
		case gauge == &s.Gauges.Queued: // every gateway reports the one queue
			*gauge = max(*gauge, v)
		default:
			*gauge += v
		}
	}
}

func sum(families map[string]*dto.MetricFamily, name string) (float64, bool) {
	f := families[name]
	if f == nil {
		return 0, false
	}
	total := 0.0
	for _, m := range f.GetMetric() {
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
	}
	return total, true
}

// Use is what was used between two samples.
type Use struct {
	// Seconds between them.
	Seconds float64 `json:"seconds"`
	// Roles are by name.
	Roles []RoleUse `json:"roles,omitempty"`
	// Own is the generator's CPU in cores, Machine that of everything on this machine, of
	// so many Cores.
	Own     float64 `json:"own_cores"`
	Machine float64 `json:"machine_cores"`
	Cores   int     `json:"cores"`
}

// RoleUse is what one role used.
type RoleUse struct {
	Name string `json:"name"`
	// Cores is its CPU time per second.
	Cores float64 `json:"cores"`
	// CPUSeconds is its CPU time.
	CPUSeconds float64 `json:"cpu_seconds"`
	// RSS is its resident memory in bytes at the end.
	RSS float64 `json:"rss_bytes"`
}

// Between says what was used between two samples. Counters that went back, since a
// process has started anew, count from 0.
func Between(a, b Sample) Use {
	d := b.At.Sub(a.At).Seconds()
	if d <= 0 {
		return Use{}
	}
	u := Use{Seconds: d, Own: (b.Own - a.Own) / d, Cores: cores()}
	if busy := b.Machine - a.Machine; busy > 0 {
		u.Machine = busy / d
	}
	for name, v := range b.CPU {
		used := v - a.CPU[name]
		if used < 0 {
			used = v
		}
		u.Roles = append(u.Roles, RoleUse{Name: name, CPUSeconds: used, Cores: used / d, RSS: b.RSS[name]})
	}
	slices.SortFunc(u.Roles, func(x, y RoleUse) int { return strings.Compare(x.Name, y.Name) })
	return u
}
