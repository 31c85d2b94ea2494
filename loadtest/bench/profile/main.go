// Command profile records the profile by which the compiler optimises certmill
// (cmd/certmill/default.pgo, https://go.dev/doc/pgo): where the gateway and two signers of
// a stack of its own spend their time under several loads. `make pgo` runs it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/certmill/certmill/loadtest/bench/stack"
)

// A load runs for longer than its profile takes: it warms up, and ends in order.
const around = 6 * time.Second

// loads are what the service is for: many that wait for each other, independent clients,
// and a stream.
var loads = [][]string{
	{"--callers", "64"},
	{"--rate", "1500", "--connections", "128"},
	{"--target", "stream", "--callers", "64"},
}

// profiled are the processes whose time goes into certificates.
var profiled = []string{"gateway", "signer-1", "signer-2"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	binary := flag.String("bin", "bin/certmill", "the program to profile")
	out := flag.String("out", "cmd/certmill/default.pgo", "file for the profile")
	each := flag.Duration("each", 20*time.Second, "how long each load is profiled")
	flag.Parse()
	if *each < time.Second || *each%time.Second != 0 {
		return errors.New("-each is a whole number of seconds")
	}
	path, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	work, remove, err := stack.TempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	s, err := stack.Start(ctx, path, filepath.Join(work, "service"), nil, "--signers", "2")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	r := recorder{stack: s, dir: work, each: *each}
	var files []string
	for i, load := range loads {
		fmt.Printf("%s under %q\n", *each, load)
		more, err := r.record(ctx, strconv.Itoa(i), load)
		if err != nil {
			return err
		}
		files = append(files, more...)
	}
	merged := filepath.Join(work, "merged.pgo")
	if err := merge(ctx, merged, files); err != nil {
		return err
	}
	data, err := os.ReadFile(merged)
	if err != nil {
		return err
	}
	return os.WriteFile(*out, data, 0o644)
}

// recorder profiles the processes of a stack.
type recorder struct {
	stack *stack.Stack
	dir   string
	each  time.Duration
}

// record puts the stack under a load and profiles its processes meanwhile, into files
// whose names begin with the load's.
func (r *recorder) record(ctx context.Context, name string, load []string) (files []string, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	loaded := make(chan error, 1)
	go func() {
		run, err := r.stack.Load(ctx, slices.Concat(load, stack.Certificates, []string{"-d", (r.each + around).String(), "--warmup", "1s"})...)
		switch {
		case err != nil:
		case run.Ended != "":
			err = fmt.Errorf("the load %q ended early: %s", load, run.Ended)
		default:
			err = stack.AllAnswered(run)
		}
		loaded <- err
	}()
	select {
	case <-time.After(around / 2):
	case err := <-loaded:
		return nil, cmp.Or(err, fmt.Errorf("the load %q ended before it was profiled", load))
	}
	errs := make([]error, len(profiled))
	var all sync.WaitGroup
	for i, process := range profiled {
		file := filepath.Join(r.dir, name+"-"+process+".pprof")
		files = append(files, file)
		all.Go(func() { errs[i] = r.profile(ctx, process, file) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		stop()
		return nil, errors.Join(err, <-loaded)
	}
	return files, <-loaded
}

// profile fetches the CPU profile of a process from its operator's listener.
func (r *recorder) profile(ctx context.Context, process, file string) error {
	address, err := r.stack.Operator(process)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, r.each+around)
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%.0f", address, r.each.Seconds()), nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("reading the profile of %s: %w", process, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the profile of %s: %s: %s", process, answer.Status, data)
	}
	return os.WriteFile(file, data, 0o600)
}

// merge makes one profile of several.
func merge(ctx context.Context, out string, files []string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-proto", "-output", out}, files...)...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go tool pprof: %w\n%s", err, text)
	}
	return nil
}
