package main

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/certmill/certmill/loadtest/engine"
	"github.com/certmill/certmill/loadtest/material"
	"github.com/certmill/certmill/loadtest/schedule"
	"github.com/certmill/certmill/loadtest/target"
	"github.com/certmill/certmill/loadtest/wire"
)

const (
	// patience is how long a caller waits: above every queue of the service.
	patience = 15 * time.Second
	path     = "/v1/certificates?profile=short&lifetime=86400s"
)

// place is where a caller asks, and as whom.
type place struct {
	url, ca, cert, key string
}

// caller asks for certificates and keeps what became of each request.
type caller struct {
	client *wire.Client
	csrs   *material.Pool
	run    string

	mu      sync.Mutex
	results []result
}

// result is one request. Its JSON is what the prober tells.
type result struct {
	Due  time.Time `json:"due"`
	Sent time.Time `json:"sent"`
	Done time.Time `json:"done"`
	// Status is 0 where no answer came.
	Status int `json:"status"`
	// Hinted says that there was a Retry-After.
	Hinted bool `json:"hinted"`
	// Served is the service's own time in milliseconds, by Server-Timing; negative where
	// it said none.
	Served float64 `json:"served_ms"`
}

func (r *result) ok() bool      { return r.Status == http.StatusOK }
func (r *result) refused() bool { return r.Status == http.StatusTooManyRequests }

// took is from the moment it was due where the request was paced.
func (r *result) took() time.Duration { return r.Done.Sub(r.Due) }

func newCaller(ctx context.Context, p place, connections, csrs int) (*caller, error) {
	u, err := url.Parse(p.url)
	if err != nil {
		return nil, err
	}
	tls, err := target.Config{CAFile: p.ca, CertFile: p.cert, KeyFile: p.key, ServerName: "localhost"}.TLS()
	if err != nil {
		return nil, err
	}
	c := &caller{}
	if c.run, err = material.RunID(); err != nil {
		return nil, err
	}
	if c.client, err = wire.New(u, tls, connections, http.Header{"Content-Type": {"application/x-pem-file"}, "Accept": {"application/pem-certificate-chain"}}); err != nil {
		return nil, err
	}
	if c.csrs, err = material.Make(ctx, material.Config{CSRs: csrs, MaxReuse: 1_000_000, Name: "w{n}.load.test"}, nil); err != nil {
		return nil, err
	}
	return c, c.client.Warm(ctx)
}

// do is the engine's Op.
func (c *caller) do(ctx context.Context, call engine.Call) engine.Outcome {
	r := result{Due: call.Due, Sent: time.Now(), Served: -1}
	response, err := c.client.Do(ctx, &wire.Request{
		Method: http.MethodPost, Target: path, Body: c.csrs.Get(call.Seq).PEM, Deadline: call.Deadline,
		Header: "Idempotency-Key: " + c.run + "-" + strconv.FormatInt(call.Due.UnixNano(), 36) + "-" + strconv.FormatInt(call.Seq, 10) + "\r\n",
	})
	r.Done = time.Now()
	if err == nil {
		r.Status, r.Hinted, r.Served = response.Status, response.Header.Get("Retry-After") != "", served(response.Header.Get("Server-Timing"))
	}
	c.mu.Lock()
	c.results = append(c.results, r)
	c.mu.Unlock()
	if r.ok() {
		return engine.Outcome{OK: 1}
	}
	return engine.Outcome{Failed: 1, Kind: strconv.Itoa(r.Status)}
}

// served reads the total of a Server-Timing header in milliseconds, or -1.
func served(header string) float64 {
	for part := range strings.SplitSeq(header, ",") {
		if value, ok := strings.CutPrefix(strings.TrimSpace(part), "total;dur="); ok {
			if ms, err := strconv.ParseFloat(value, 64); err == nil {
				return ms
			}
		}
	}
	return -1
}

// open asks at a rate, whatever comes of it, and returns what became of it.
func (c *caller) open(ctx context.Context, rate float64, d time.Duration, inFlight int) ([]result, error) {
	plan := schedule.Constant(rate, schedule.Poisson).Arrivals(1)
	err := engine.Open(ctx, engine.Config{Duration: d, Timeout: patience, InFlight: inFlight}, plan, c.do, engine.NewRecorder())
	return c.take(), err
}

// closed keeps so many callers busy.
func (c *caller) closed(ctx context.Context, callers int, d time.Duration) ([]result, error) {
	err := engine.Closed(ctx, engine.Config{Duration: d, Timeout: patience, InFlight: callers}, c.do, engine.NewRecorder())
	return c.take(), err
}

func (c *caller) take() []result {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.results
	c.results = nil
	return all
}
