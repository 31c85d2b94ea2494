package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
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

// startProbe runs this program as the prober in a process of its own; wait returns what
// it got.
func startProbe(ctx context.Context, p place, d time.Duration) (wait func() ([]result, error), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-probe", "-probe-url", p.url, "-probe-ca", p.ca, "-probe-cert", p.cert, "-probe-key", p.key,
		"-probe-rate", strconv.Itoa(probeRate), "-probe-d", d.String())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the prober: %w", err)
	}
	return func() ([]result, error) {
		if err := cmd.Wait(); err != nil {
			return nil, fmt.Errorf("the prober: %w\n%s", err, stderr.String())
		}
		var results []result
		return results, json.Unmarshal(stdout.Bytes(), &results)
	}, nil
}

// stepBack lowers the priority of this process, whose flood would come from another
// machine in life: what it takes of this one's cores the service and the prober need not
// wait for. Threads that come inherit it. Where there is no /proc nothing is lowered.
func stepBack() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	const nice = 10
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("lowering the generator's priority: %w", err)
		}
	}
	return nil
}
