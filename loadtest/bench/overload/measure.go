package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
	"golang.org/x/sync/errgroup"

	"github.com/certmill/certmill/loadtest/bench/stack"
	"github.com/certmill/certmill/loadtest/observe"
)

const (
	// calmFor is how long capacity and calm are measured, after is how long the polite
	// caller goes on after the flood.
	calmFor = 6 * time.Second
	after   = 6 * time.Second
	// politeShare is what the polite caller asks for, of the capacity.
	politeShare = 0.1
	// floodConnections are more than the gateway takes of one caller, so that those that
	// wait leave connections for those that are refused.
	floodConnections = 1400
	mebibyte         = 1 << 20
)

// bench measures one running stack.
type bench struct {
	*options
	stack           *stack.Stack
	flooder, polite place
}

// enroll gets the callers their certificates.
func (b *bench) enroll(ctx context.Context) error {
	address, err := gatewayAddress(b.stack.Dir)
	if err != nil {
		return err
	}
	for name, p := range map[string]*place{"flood": &b.flooder, "polite": &b.polite} {
		in := func(file string) string { return filepath.Join(b.stack.Dir, file) }
		*p = place{url: "https://" + address, ca: in("root.pem"), cert: in(name + ".pem"), key: in(name + ".key")}
		cmd := b.stack.Command("issue", "--context", in("cli.yaml"), "--profile", "workload", "--uri", "spiffe://certmill.test/ns/bench/sa/"+name, "--out", p.cert, "--key-out", p.key)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("a certificate for the caller %s: %w\n%s", name, err, out)
		}
	}
	return ctx.Err()
}

// gatewayAddress reads where the gateway of a stack listens.
func gatewayAddress(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "config", "gateway.yaml"))
	if err != nil {
		return "", err
	}
	var c struct {
		Listen string `yaml:"listen"`
	}
	if err := yaml.Unmarshal(data, &c); err != nil { // the gateway checks it strictly
		return "", err
	}
	return c.Listen, nil
}

// measure goes through capacity, calm, flood and recovery.
func (b *bench) measure(ctx context.Context) (*figures, error) {
	flood, err := newCaller(ctx, b.flooder, floodConnections, 4096)
	if err != nil {
		return nil, err
	}
	polite, err := newCaller(ctx, b.polite, 256, 1024)
	if err != nil {
		return nil, err
	}
	f := &figures{Machine: observe.Here(), Nominal: b.nominal(), Factor: b.factor, Roles: map[string]memory{}}
	// A stack that has just started is slower: once without counting.
	callers := 16 * b.signers * b.cores // every core finds work whenever it looks
	if _, err := flood.closed(ctx, callers, 2*time.Second); err != nil {
		return nil, err
	}
	began := time.Now()
	all, err := flood.closed(ctx, callers, calmFor)
	if err != nil {
		return nil, err
	}
	f.Capacity = float64(count(all, (*result).ok)) / time.Since(began).Seconds()
	calm, err := polite.open(ctx, politeShare*f.Capacity, calmFor, 256)
	if err != nil {
		return nil, err
	}
	if f.Calm = newCalm(calm); f.Calm.P99 == 0 {
		return nil, fmt.Errorf("nothing was answered before the flood")
	}
	return f, b.flood(ctx, f, flood, polite)
}

// flood runs the three callers beside each other and looks at the memory meanwhile.
func (b *bench) flood(ctx context.Context, f *figures, flood, polite *caller) error {
	before, err := b.stack.Memory()
	if err != nil {
		return err
	}
	watching, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	most := map[string]int64{}
	watch.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-watching.Done():
				return
			case <-tick.C:
			}
			now, err := b.stack.Memory()
			if err != nil {
				continue // a role that is being replaced; its successor is looked at
			}
			for name, m := range now {
				most[name] = max(most[name], m.Now)
			}
		}
	})
	watcher := observe.New(observe.Config{Tree: b.stack.PID()})
	defer watcher.Close()
	from := watcher.Sample(ctx)
	var flooded, politely, probed []result
	probing, err := startProbe(ctx, b.flooder, b.length-2*time.Second)
	if err != nil {
		stopWatching()
		watch.Wait()
		return err
	}
	if err := stepBack(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-overload:", err) // the figures are worse for it, and no others
	}
	began := time.Now()
	end := began.Add(b.length)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		flooded, err = flood.open(gctx, b.factor*f.Capacity, b.length, floodConnections)
		return err
	})
	g.Go(func() (err error) {
		politely, err = polite.open(gctx, politeShare*f.Capacity, b.length+after, 256)
		return err
	})
	g.Go(func() (err error) {
		probed, err = probing()
		return err
	})
	err = g.Wait()
	f.use(observe.Between(from, watcher.Sample(ctx)))
	stopWatching()
	watch.Wait()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(most)) {
		f.Roles[name] = memory{Before: before[name].Now / mebibyte, Peak: most[name] / mebibyte}
	}
	f.judge(began, end, flooded, politely, probed)
	return nil
}

func count(all []result, what func(*result) bool) int {
	n := 0
	for i := range all {
		if what(&all[i]) {
			n++
		}
	}
	return n
}
