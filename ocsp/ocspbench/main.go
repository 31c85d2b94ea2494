// Command ocspbench measures the OCSP responder beside a bare net/http handler that
// answers from a map, in one run on one machine: a million certificates in a real
// Redis, 64 keep-alive connections, random serials of which 90 % are from one tenth.
// Responder, handler and Redis are processes of their own; the load comes from this
// one. It ends with a line of ratios.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/ocsp"
)

func main() {
	n := flag.Int("n", 1_000_000, "certificates")
	d := flag.Duration("d", 5*time.Second, "duration of one measurement")
	connections := flag.Int("c", 64, "connections")
	role := flag.String("role", "", "internal: what a child process is")
	address := flag.String("redis", "", "internal: where Redis is")
	cache := flag.Int64("cache", 1<<30, "internal: cache_bytes of the responder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch *role {
	case "responder":
		err = runResponder(ctx, *address, *cache)
	case "map":
		err = runMap(ctx, os.Stdin)
	default:
		err = run(ctx, *n, *connections, *d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ocspbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, n, connections int, d time.Duration) (err error) {
	path, err := os.MkdirTemp("", "certmill-ocspbench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(path)) }()
	dir, err := local.OpenDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	redis, err := local.StartRedis(ctx, dir, local.RedisOptions{Throwaway: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, redis.Stop()) }()
	store, err := ocsp.OpenStore(config.Redis{Addresses: []string{redis.Addr()}}, ocsp.DefaultNamespace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	w, err := newWorld(n)
	if err != nil {
		return err
	}
	bytes, err := w.measureMemory(ctx, store)
	if err != nil {
		return err
	}
	return w.measureSpeed(ctx, redis.Addr(), connections, d, bytes)
}

// measureMemory fills Redis and returns the bytes of a certificate.
func (w *world) measureMemory(ctx context.Context, store *ocsp.Store) (float64, error) {
	if _, err := store.Compact(ctx); err != nil {
		return 0, err
	}
	before, err := store.Health(ctx)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := w.share(ctx, store); err != nil {
		return 0, err
	}
	if err := w.fill(ctx, store); err != nil {
		return 0, err
	}
	after, err := store.Health(ctx)
	if err != nil {
		return 0, err
	}
	each := float64(after.UsedBytes-before.UsedBytes) / float64(len(w.serials))
	fmt.Printf("%d certificates in Redis in %s: %.0f bytes each, with the answers for SHA-1 and for SHA-256\n", len(w.serials), time.Since(start).Round(time.Second), each)
	return each, nil
}

func (w *world) measureSpeed(ctx context.Context, redis string, connections int, d time.Duration, bytes float64) error {
	bare, err := startChild(ctx, w.children(), "-role", "map")
	if err != nil {
		return err
	}
	defer bare.stop()
	hot, err := startChild(ctx, nil, "-role", "responder", "-redis", redis)
	if err != nil {
		return err
	}
	defer hot.stop()
	cold, err := startChild(ctx, nil, "-role", "responder", "-redis", redis, "-cache", "1048576")
	if err != nil {
		return err
	}
	defer cold.stop()
	if err := w.check(hot.addr); err != nil {
		return err
	}
	n := len(w.serials)
	// Every answer into the cache once; it is bounded at 1 GiB, which a million fit.
	if _, err := load(hot.addr, connections, 2*d, uniform(n), w.get); err != nil {
		return err
	}
	rates := map[string]float64{}
	for _, m := range []struct {
		name    string
		child   *child
		request func(int) []byte
		uniform bool
	}{
		{"map GET", bare, w.get, false}, {"hot GET", hot, w.get, false}, {"cold GET", cold, w.get, true},
		{"map POST", bare, w.post, false}, {"hot POST", hot, w.post, false}, {"cold POST", cold, w.post, true},
	} {
		pick := skewed(n)
		if m.uniform {
			pick = uniform(n)
		}
		cpu := m.child.cpu()
		r, err := load(m.child.addr, connections, d, pick, m.request)
		if err != nil {
			return err
		}
		if r.wrong != 0 {
			return fmt.Errorf("%s: %d answers were errors", m.name, r.wrong)
		}
		used := (m.child.cpu() - cpu).Seconds() / (r.rate * d.Seconds() * 1.2)
		fmt.Printf("%-10s %8.0f/s  p50 %8s  p99 %8s  %5.1f µs of CPU\n", m.name, r.rate, r.p50.Round(time.Microsecond), r.p99.Round(time.Microsecond), used*1e6)
		rates[m.name] = r.rate
	}
	fmt.Printf("ocsp_hot_ratio=%.2f ocsp_cold_ratio=%.2f redis_bytes_per_cert=%.0f ready_seconds=%.2f\n",
		min(rates["hot GET"]/rates["map GET"], rates["hot POST"]/rates["map POST"]),
		min(rates["cold GET"]/rates["map GET"], rates["cold POST"]/rates["map POST"]), bytes, hot.ready.Seconds())
	return nil
}

// runResponder is the responder's process.
func runResponder(ctx context.Context, redis string, cache int64) error {
	start := time.Now()
	cfg := ocsp.DefaultConfig()
	cfg.Listen, cfg.CacheBytes, cfg.Redis = "127.0.0.1:0", cache, config.Redis{Addresses: []string{redis}}
	r, err := ocsp.New(cfg, ocsp.Deps{})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	addr, err := r.Addr(ctx)
	if err != nil {
		return err
	}
	for r.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(addr, time.Since(start))
	return <-done
}

// runMap is the bare handler's process: it reads pairs of request and answer, base64,
// from in, and answers from two maps, by target and by body.
func runMap(ctx context.Context, in io.Reader) error {
	start := time.Now()
	byTarget, byBody := map[string][]byte{}, map[string][]byte{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		target, answer, _ := strings.Cut(lines.Text(), " ")
		request, err := base64.StdEncoding.DecodeString(target)
		if err != nil {
			return err
		}
		body, err := base64.StdEncoding.DecodeString(answer)
		if err != nil {
			return err
		}
		byBody[string(request)] = body
		byTarget["/"+target] = body
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := byTarget[r.URL.Path]
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			answer = byBody[string(body)]
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(answer)
	})}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Println(l.Addr(), time.Since(start))
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// child is a process of this program.
type child struct {
	cmd   *exec.Cmd
	addr  string
	ready time.Duration
}

func startChild(ctx context.Context, in io.Reader, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, self, args...)}
	c.cmd.Stdin, c.cmd.Stderr = in, os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("%v: %w", args, err)
	}
	addr, ready, _ := strings.Cut(strings.TrimSpace(line), " ")
	c.addr = addr
	c.ready, err = time.ParseDuration(ready)
	return c, err
}

func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	_ = c.cmd.Wait() // it was told to end
}

// cpu is the CPU time that the child has used, in user and kernel mode (proc(5)).
func (c *child) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	var user, system int64
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	_, _ = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}
