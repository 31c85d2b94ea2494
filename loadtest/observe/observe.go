// Package observe watches what serves the load: the roles' /metrics, their processes
// and the machine, so that a report can say where the time and the CPU went and what
// gave way first.
package observe

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

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

// Sample is the state at one moment.
type Sample struct {
	At time.Time
	// CPU is the seconds that the processes of each name are known to have used since the
	// observer's first look, those that have ended included; Own is the generator's.
	CPU map[string]float64
	Own float64
	// Machine is the CPU time that the machine has spent and Idle what it had left.
	Machine, Idle float64
	// RSS is the resident memory in bytes, by name. What processes of the tree may share,
	// such as PostgreSQL's buffers, counts once for a name: as that of the process with the
	// most of it. The exact share (smaps_rollup) takes milliseconds for each process.
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

// Observer takes samples. It is for one goroutine, but for Watch.
//
// To look costs the service CPU where it shares a machine with the generator, all at the
// moment of the look. So there a role is asked no more often than its answer is shown, no
// two at a time, and only those that have something to tell.
type Observer struct {
	cfg       Config
	client    *http.Client
	processes forest
	ledger    ledger
	first     moment     // of the first look
	roles     []roleSeen // what each role last said of its process

	mu   sync.Mutex
	told []map[string]float64 // what each role last said; nil where it did not answer
}

// New makes an observer.
func New(cfg Config) *Observer {
	o := &Observer{
		cfg:    cfg,
		client: &http.Client{Timeout: 900 * time.Millisecond, Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}},
		told:   make([]map[string]float64, len(cfg.Roles)),
		roles:  make([]roleSeen, len(cfg.Roles)),
	}
	if cfg.Tree != 0 {
		o.Follow(cfg.Tree)
	}
	return o
}

// Follow watches one process more, with its descendants.
func (o *Observer) Follow(pid int) { o.processes.follow(pid) }

// Close ends its connections.
func (o *Observer) Close() { o.client.CloseIdleConnections() }

// Watch asks the roles for their gauges, one after the other, each once in every, until ctx
// ends. It may run beside the other methods. Where no process tree is watched, and the
// roles are asked for their CPU too, each look asks all of them by itself: Watch does nothing.
func (o *Observer) Watch(ctx context.Context, every time.Duration) {
	if len(o.cfg.Roles) == 0 || o.cfg.Tree == 0 {
		return
	}
	turn := time.NewTicker(max(1, every/time.Duration(len(o.cfg.Roles))))
	defer turn.Stop()
	for i := 0; ; i = (i + 1) % len(o.cfg.Roles) {
		if o.mayTell(i) {
			_ = o.ask(ctx, i)
		}
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
		}
	}
}

// mayTell reports whether a role has, for all that is known, something to tell.
func (o *Observer) mayTell(role int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	told := o.told[role]
	if told == nil {
		return true
	}
	g := noGauges()
	for metric := range g.byMetric() {
		if _, ok := told[metric]; ok {
			return true
		}
	}
	return false
}

// ask takes in what a role says now.
func (o *Observer) ask(ctx context.Context, role int) error {
	told, err := o.scrape(ctx, o.cfg.Roles[role].Metrics)
	if ctx.Err() != nil { // not the role's silence
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told[role] = told
	return err
}

// Sample looks at everything once. What does not answer is left out. The gauges are those
// that Watch saw last, where no CPU is to be had from the roles.
func (o *Observer) Sample(ctx context.Context) Sample {
	o.processes.forget()
	return o.Glance(ctx)
}

// Glance is a cheaper Sample, in which a process may be missing that a program of several
// threads has started in the last 10 s.
func (o *Observer) Glance(ctx context.Context) Sample {
	if o.cfg.Tree == 0 {
		var all sync.WaitGroup
		for i := range o.cfg.Roles {
			all.Go(func() { _ = o.ask(ctx, i) })
		}
		all.Wait()
	}
	s := Sample{At: time.Now(), RSS: map[string]float64{}, Gauges: noGauges()}
	if o.first == (moment{}) {
		o.first = moment{sinceBoot(), float64(s.At.UnixMilli()) / 1e3}
	}
	s.Own = ownCPU()
	s.Machine, s.Idle = machineCPU()
	o.mu.Lock()
	for i, told := range o.told {
		s.addGauges(told)
		if o.cfg.Tree == 0 {
			o.addRole(&s, i, told)
		}
	}
	o.mu.Unlock()
	o.addProcesses(&s, o.processes.look(s.At))
	s.CPU = maps.Clone(o.ledger.used)
	return s
}

// roleSeen is what a role last said of its process.
type roleSeen struct{ started, cpu float64 }

// addRole takes in what a role says of its process.
func (o *Observer) addRole(s *Sample, i int, told map[string]float64) {
	name := o.cfg.Roles[i].Name
	if cpu, ok := told[processCPU]; ok {
		started := told[processStart]
		// It is told to the second, and moves by one when the clock is set.
		if r := o.roles[i]; math.Abs(started-r.started) <= roleStep && cpu >= r.cpu {
			started = r.started
		}
		o.roles[i] = roleSeen{started, cpu}
		o.ledger.enter(name, identity{-1 - i, started}, cpu, started > o.first.unix)
	}
	if rss, ok := told[processRSS]; ok {
		s.RSS[name] += rss
	}
}

// addProcesses takes in processes of the tree.
func (o *Observer) addProcesses(s *Sample, processes []process) {
	shared := map[string]float64{}
	for _, p := range processes {
		o.ledger.enter(p.name, identity{p.pid, p.started}, p.cpu, p.started >= o.first.boot)
		s.RSS[p.name] += p.rss - p.shared
		shared[p.name] = max(shared[p.name], p.shared)
	}
	for name, v := range shared {
		s.RSS[name] += v
	}
}

func noGauges() Gauges {
	return Gauges{Waiting: math.NaN(), Queued: math.NaN(), Busy: math.NaN(), Sessions: math.NaN()}
}

// byMetric names the gauges as the roles do.
func (g *Gauges) byMetric() map[string]*float64 {
	return map[string]*float64{
		"certmill_gateway_dispatch_pending": &g.Waiting,
		"certmill_queue_depth_messages":     &g.Queued,
		"certmill_hsm_sessions_busy":        &g.Busy,
		"certmill_hsm_sessions":             &g.Sessions,
	}
}

// The metrics of a process by the conventions of Prometheus.
const (
	processCPU   = "process_cpu_seconds_total"
	processRSS   = "process_resident_memory_bytes"
	processStart = "process_start_time_seconds"
)

// wanted are the first letters of all that is read of a role's metrics.
var wanted = [][]byte{[]byte("certmill_gateway_dispatch_pending"), []byte("certmill_queue_depth_messages"), []byte("certmill_hsm_sessions"), []byte("process_")}

// scrape returns the sums of what is wanted of a role's metrics, by name.
func (o *Observer) scrape(ctx context.Context, url string) (map[string]float64, error) {
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
	// To parse all of a gateway's thousand lines would take longer than all else here.
	var kept bytes.Buffer
	lines := bufio.NewScanner(io.LimitReader(res.Body, 64<<20))
	for lines.Scan() {
		if slices.ContainsFunc(wanted, func(w []byte) bool { return bytes.HasPrefix(lines.Bytes(), w) }) {
			kept.Write(lines.Bytes())
			kept.WriteByte('\n')
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(&kept)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	sums := make(map[string]float64, len(families))
	for name, f := range families {
		for _, m := range f.GetMetric() { // without a # TYPE
			sums[name] += m.GetUntyped().GetValue()
		}
	}
	return sums, nil
}

// Check asks every role once and says which do not answer.
func (o *Observer) Check(ctx context.Context) error {
	var silent []string
	for i, r := range o.cfg.Roles {
		if err := o.ask(ctx, i); err != nil {
			silent = append(silent, fmt.Sprintf("%s (%v)", r.Name, err))
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("no metrics from %s", strings.Join(silent, ", "))
	}
	return nil
}

// addGauges takes in the gauges of one role.
func (s *Sample) addGauges(told map[string]float64) {
	for metric, gauge := range s.Gauges.byMetric() {
		v, ok := told[metric]
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
	// RSS is its memory in bytes at the end; see Sample.
	RSS float64 `json:"rss_bytes"`
}

// Between says what was used between two samples of one observer.
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
		if _, runs := b.RSS[name]; !runs && used == 0 {
			continue // it had ended before
		}
		u.Roles = append(u.Roles, RoleUse{Name: name, CPUSeconds: used, Cores: used / d, RSS: b.RSS[name]})
	}
	slices.SortFunc(u.Roles, func(x, y RoleUse) int { return strings.Compare(x.Name, y.Name) })
	return u
}
