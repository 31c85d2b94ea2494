package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

const (
	// probeRate is small: the prober must find its own way free.
	probeRate        = 40
	probeConnections = 64
)

// probeOptions make this program the prober.
type probeOptions struct {
	on     bool
	place  place
	rate   float64
	length time.Duration
}

func (p *probeOptions) add(f *flag.FlagSet) {
	f.BoolVar(&p.on, "probe", false, "be the prober of another run; for its own use, as all flags that begin so")
	f.StringVar(&p.place.url, "probe-url", "", "where to ask")
	f.StringVar(&p.place.ca, "probe-ca", "", "roots for its certificate")
	f.StringVar(&p.place.cert, "probe-cert", "", "client certificate")
	f.StringVar(&p.place.key, "probe-key", "", "its key")
	f.Float64Var(&p.rate, "probe-rate", probeRate, "requests a second")
	f.DurationVar(&p.length, "probe-d", 30*time.Second, "how long")
}

// probe asks now and then and tells all that it got on the standard output.
func probe(ctx context.Context, o *probeOptions) error {
	c, err := newCaller(ctx, o.place, probeConnections, 64)
	if err != nil {
		return err
	}
	if _, err := c.open(ctx, o.rate, time.Second, probeConnections); err != nil { // its own start does not count
		return err
	}
	results, err := c.open(ctx, o.rate, o.length, probeConnections)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

// runProbe runs this program as the prober in a process of its own.
func runProbe(ctx context.Context, p place, d time.Duration) ([]result, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-probe", "-probe-url", p.url, "-probe-ca", p.ca, "-probe-cert", p.cert, "-probe-key", p.key,
		"-probe-rate", strconv.Itoa(probeRate), "-probe-d", d.String())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("the prober: %w\n%s", err, stderr.String())
	}
	var results []result
	return results, json.Unmarshal(stdout.Bytes(), &results)
}
