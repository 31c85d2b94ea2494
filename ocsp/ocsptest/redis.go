package ocsptest

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/testenv"
)

// startRedis starts a redis-server with these settings and returns its port. The
// test's end stops it.
func startRedis(t testing.TB, args ...string) (port int, stop func()) {
	t.Helper()
	path := testenv.Program(t, "redis-server", "redis-server")
	port = freePort(t)
	args = append([]string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", ""}, args...)
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	noError(t, cmd.Start())
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	}
	t.Cleanup(stop)
	c := redis.NewClient(&redis.Options{Addr: addrOf(port), MaxRetries: -1})
	defer func() { _ = c.Close() }()
	wait(t, "redis-server answers", func() bool { return c.Ping(t.Context()).Err() == nil })
	return port, stop
}

func addrOf(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		noError(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		noError(t, l.Close())
		if port < 55_000 { // the cluster bus is 10,000 above
			return port
		}
	}
	t.Fatal("no free port below 55000")
	return 0
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// Cluster starts a Redis Cluster of three masters and returns their addresses.
func Cluster(t testing.TB) []string {
	t.Helper()
	const nodes, slots = 3, 16384
	addrs := make([]string, nodes)
	clients := make([]*redis.Client, nodes)
	for i := range nodes {
		port, _ := startRedis(t, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
		addrs[i] = addrOf(port)
		clients[i] = redis.NewClient(&redis.Options{Addr: addrs[i]})
		defer func() { _ = clients[i].Close() }()
		noError(t, clients[i].ClusterAddSlotsRange(t.Context(), i*slots/nodes, (i+1)*slots/nodes-1).Err())
		noError(t, clients[i].Do(t.Context(), "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		host, p, err := net.SplitHostPort(addrs[0])
		noError(t, err)
		noError(t, clients[i].ClusterMeet(t.Context(), host, p).Err())
	}
	for _, c := range clients {
		wait(t, "the cluster stands", func() bool {
			info, err := c.ClusterInfo(t.Context()).Result()
			return err == nil && contains(info, "cluster_state:ok") && contains(info, fmt.Sprintf("cluster_known_nodes:%d", nodes))
		})
	}
	return addrs
}

func contains(text, part string) bool {
	for i := 0; i+len(part) <= len(text); i++ {
		if text[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

// Sentinel is a master with a replica and three sentinels.
type Sentinel struct {
	Addrs      []string // of the sentinels
	MasterName string
	KillMaster func()
}

// NewSentinel starts one.
func NewSentinel(t testing.TB) *Sentinel {
	t.Helper()
	const name = "ocsp"
	master, kill := startRedis(t)
	startRedis(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master))
	s := &Sentinel{MasterName: name, KillMaster: kill}
	for range 3 {
		s.Addrs = append(s.Addrs, startSentinel(t, name, master))
	}
	c := redis.NewSentinelClient(&redis.Options{Addr: s.Addrs[0]})
	defer func() { _ = c.Close() }()
	wait(t, "the sentinels know each other and the replica", func() bool {
		return c.CkQuorum(t.Context(), name).Err() == nil && ready(t.Context(), c, name)
	})
	return s
}

func ready(ctx context.Context, c *redis.SentinelClient, name string) bool {
	replicas, err := c.Replicas(ctx, name).Result()
	if err != nil || len(replicas) != 1 || replicas[0]["flags"] != "slave" || replicas[0]["master-link-status"] != "ok" {
		return false
	}
	others, err := c.Sentinels(ctx, name).Result()
	return err == nil && len(others) == 2
}

func startSentinel(t testing.TB, name string, master int) string {
	t.Helper()
	port := freePort(t)
	conf := write(t, "sentinel.conf", fmt.Appendf(nil,
		"port %d\nbind 127.0.0.1\nsentinel monitor %s 127.0.0.1 %d 2\nsentinel down-after-milliseconds %s 500\nsentinel failover-timeout %s 3000\n",
		port, name, master, name, name))
	path := testenv.Program(t, "redis-server", "redis-server")
	cmd := exec.Command(path, conf, "--sentinel")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	noError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	return addrOf(port)
}
