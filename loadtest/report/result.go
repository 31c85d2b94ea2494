// Package report is what a load test leaves behind: JSON, a table, one HTML file, and
// the comparison of two such results.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/certmill/certmill/loadtest/check"
	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/observe"
)

// Format is the version of the JSON; Read refuses others.
const Format = 1

// Result is one load test. Its JSON is for machines and for `compare`.
type Result struct {
	Format  int             `json:"format"`
	Started time.Time       `json:"started"`
	Label   string          `json:"label,omitempty"`
	Machine observe.Machine `json:"machine"`
	Plan    Plan            `json:"plan"`
	// Runs were made one after the other with the same plan.
	Runs []Run `json:"runs"`
	// Objective is what was to be held.
	Objective string `json:"objective,omitempty"`
	// Missed says which conditions were not met, in any run.
	Missed []string `json:"missed,omitempty"`
	// Capacity and Scale are set by the commands of these names.
	Capacity *Capacity `json:"capacity,omitempty"`
	Scale    []Step    `json:"scale,omitempty"`
}

// Plan is what was to be done.
type Plan struct {
	Target  string `json:"target"`
	Summary string `json:"summary"`
	URL     string `json:"url"`
	// Unit is what is counted: certificates or OCSP answers.
	Unit string `json:"unit"`
	// Loop is "open" or "closed"; Schedule is that of the open one.
	Loop     string `json:"loop"`
	Schedule string `json:"schedule,omitempty"`
	// Durations are in seconds.
	Seconds float64 `json:"seconds"`
	Warmup  float64 `json:"warmup_seconds"`
	Timeout float64 `json:"timeout_seconds"`
	// InFlight bounds the calls under way, for a closed loop it is the callers.
	InFlight    int `json:"in_flight"`
	Connections int `json:"connections"`
	Batch       int `json:"batch,omitempty"`
	// Keys says which keys and CSRs were used and how often.
	Keys string `json:"keys,omitempty"`
	// What was asked for: the lifetime in seconds, 0 is the profile's.
	Profile  string  `json:"profile,omitempty"`
	Lifetime float64 `json:"lifetime_seconds,omitempty"`
	Name     string  `json:"name,omitempty"`
	KeyTypes string  `json:"key_types,omitempty"`
	// Check is the share of the answers that was checked in full, CheckRow and CheckOCSP
	// whether against the ledger and the responder too.
	Check     float64 `json:"check"`
	CheckRow  bool    `json:"check_row,omitempty"`
	CheckOCSP bool    `json:"check_ocsp,omitempty"`
	// Seed is that of the first run's arrivals; each run after it has the next.
	Seed uint64 `json:"seed,omitempty"`
}

// Interrupted is why a run or a search ended that a person ended.
const Interrupted = "interrupted"

// Run is one run of the plan.
type Run struct {
	engine.Summary
	Checks check.Summary `json:"checks"`
	Use    observe.Use   `json:"use"`
	// Samples are what the service told of itself over time.
	Samples []Sample `json:"samples,omitempty"`
	// Reuse is how often one CSR, or one serial, was asked for on average.
	Reuse     float64   `json:"reuse"`
	Generator Generator `json:"generator"`
	// Ended says why the run ended early, if it did.
	Ended string `json:"ended,omitempty"`
}

// Empty reports whether the run has measured nothing: it ended before a request was due.
func (r *Run) Empty() bool { return r.Asked == 0 && r.Checks.Wrong == 0 }

// Sample is one look at the service.
type Sample struct {
	At float64 `json:"at"`
	// The gauges are absent where nobody told them.
	Waiting  *float64           `json:"waiting,omitempty"`
	Queued   *float64           `json:"queued,omitempty"`
	Busy     *float64           `json:"busy,omitempty"`
	Sessions *float64           `json:"sessions,omitempty"`
	Cores    map[string]float64 `json:"cores,omitempty"`
	Own      float64            `json:"own_cores"`
	Machine  float64            `json:"machine_cores"`
	RSS      map[string]float64 `json:"rss_bytes,omitempty"`
}

// Generator says whether the generator itself was in the way.
type Generator struct {
	// Cores is its own CPU use.
	Cores float64 `json:"cores"`
	// Limit is true when the figures are the generator's limit rather than the service's;
	// Why says how that is known.
	Limit bool   `json:"limit"`
	Why   string `json:"why,omitempty"`
}

// CPUPerUnit returns the CPU milliseconds that all watched roles and processes spent
// for one unit, without the generator's; 0 where none was watched.
func (r *Run) CPUPerUnit() float64 {
	if r.RateReached == 0 {
		return 0
	}
	cores := 0.0
	for _, role := range r.Use.Roles {
		cores += role.Cores
	}
	return 1000 * cores / r.RateReached
}

// Capacity is the outcome of a search for the highest rate that holds an objective.
type Capacity struct {
	// Rate is the highest that held, per second; 0 if none did.
	Rate float64 `json:"rate"`
	// Ceiling is set where that was the highest that might be tried.
	Ceiling bool `json:"ceiling,omitempty"`
	// Ended says why the search ended early, if it did: Rate has then held, once at least.
	Ended string `json:"ended,omitempty"`
	// GaveWay says what broke first just above it.
	GaveWay []string `json:"gave_way"`
	Trials  []Trial  `json:"trials"`
}

// Trial is one rate that was tried.
type Trial struct {
	Rate    float64          `json:"rate"`
	Held    bool             `json:"held"`
	Missed  []string         `json:"missed,omitempty"`
	Reached float64          `json:"reached"`
	Latency engine.Quantiles `json:"latency_ms"`
	Errors  float64          `json:"error_share"`
	Own     float64          `json:"own_cores"`
	Machine float64          `json:"machine_cores"`
}

// Step is the capacity with a number of signers.
type Step struct {
	Signers  int      `json:"signers"`
	Capacity Capacity `json:"capacity"`
	// Linear is Rate over the first step's rate times the signers' ratio: 1 is linear, 0
	// unknown.
	Linear float64 `json:"linear"`
}

// Wrong returns how many wrong answers there were in all runs.
func (r *Result) Wrong() int64 {
	n := int64(0)
	for i := range r.Runs {
		n += r.Runs[i].Checks.Wrong
	}
	return n
}

// WriteFile writes the result as JSON; a file is there whole or not at all.
func (r *Result) WriteFile(path string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	return writeFile(path, append(data, '\n'))
}

func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".loadtest-*")
	if err != nil {
		if p, ok := errors.AsType[*os.PathError](err); ok {
			err = p.Err // the path in it is not the one that was asked for
		}
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// maxFile bounds a result file: an hour's run has some 300 KB.
const maxFile = 256 << 20

// ReadFile reads a result that WriteFile wrote.
func ReadFile(path string) (*Result, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r Result
	if err := json.NewDecoder(io.LimitReader(f, maxFile)).Decode(&r); err != nil {
		return nil, fmt.Errorf("%s is not the result of a load test: %w", path, err)
	}
	if r.Format != Format || len(r.Runs) == 0 && r.Capacity == nil && r.Scale == nil {
		return nil, fmt.Errorf("%s is not the result of a load test of this version", path)
	}
	for i := range r.Runs {
		if r.Runs[i].Empty() {
			return nil, fmt.Errorf("%s: runs[%d] asked for nothing", path, i)
		}
	}
	return &r, nil
}
