package deploytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/deploy/secrets"
	"github.com/certmill/certmill/internal/queue"
)

// regions are three clusters of three nodes on loopback, with the configuration of
// deploy/config: eu takes connections, us connects to it, and ap to eu or us.
type regions struct {
	t       *testing.T
	dir     *local.Dir
	config  string // deploy/config
	secrets string
	ports   map[string]string
	nodes   map[string][]*local.Process
}

var regionNames = []string{"eu", "us", "ap"}

func startRegions(t *testing.T) *regions {
	t.Helper()
	dir, err := local.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	_, here, _, _ := runtime.Caller(0)
	r := &regions{t: t, dir: dir, config: filepath.Join(filepath.Dir(filepath.Dir(here)), "config"), secrets: dir.Path("secrets"), nodes: map[string][]*local.Process{}, ports: map[string]string{}}
	if _, err := secrets.Make(r.secrets, nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range regionNames {
			r.stop(name)
		}
		if t.Failed() {
			t.Log(logs(dir.Path()))
		}
	})
	for _, name := range regionNames {
		r.start(name)
	}
	return r
}

func (r *regions) address(region string, node int, what string) string {
	name := fmt.Sprintf("%s-%d-%s", region, node, what)
	if r.ports[name] == "" { // asked once: then it is the server's
		port, err := r.dir.Port(name, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		r.ports[name] = "127.0.0.1:" + strconv.Itoa(port)
	}
	return r.ports[name]
}

// all lists the URLs of a kind of the regions' nodes, as the configuration takes them.
func (r *regions) all(what string, regions ...string) string {
	var urls []string
	for _, region := range regions {
		for node := range 3 {
			urls = append(urls, "tls://"+r.address(region, node, what))
		}
	}
	return "[" + strings.Join(urls, ", ") + "]"
}

// start starts a region's nodes.
func (r *regions) start(region string) {
	r.t.Helper()
	file, remotes := "nats-region.conf", ""
	if region != "eu" {
		file, remotes = "nats-region-joined.conf", r.all("leaf", "eu")
	}
	if region == "ap" {
		remotes = r.all("leaf", "eu", "us")
	}
	r.nodes[region] = nil
	for node := range 3 {
		name := fmt.Sprintf("nats-%s-%d", region, node)
		folder := r.dir.Path(name)
		if _, err := os.Stat(folder); err != nil {
			links := []error{os.MkdirAll(filepath.Join(folder, "secrets"), 0o700), os.Symlink(filepath.Join(r.secrets, "nats"), filepath.Join(folder, "secrets", "nats"))}
			for _, conf := range []string{"nats.conf", "nats-region.conf", "nats-region-joined.conf"} {
				links = append(links, os.Symlink(filepath.Join(r.config, conf), filepath.Join(folder, conf)))
			}
			if err := errors.Join(links...); err != nil {
				r.t.Fatal(err)
			}
		}
		log, err := r.dir.Log(name)
		if err != nil {
			r.t.Fatal(err)
		}
		env := []string{
			"NATS_NAME=" + name, "NATS_REGION=" + region, "NATS_LISTEN=" + r.address(region, node, "client"), "NATS_MONITOR=" + r.address(region, node, "monitor"),
			"NATS_CLUSTER_LISTEN=" + r.address(region, node, "cluster"), "NATS_ROUTES=" + r.all("cluster", region),
			"NATS_LEAF_LISTEN=" + r.address(region, node, "leaf"), "NATS_LEAF_REMOTES=" + remotes,
		}
		for _, what := range []string{"client", "monitor", "cluster", "leaf"} {
			r.dir.Release(fmt.Sprintf("%s-%d-%s", region, node, what))
		}
		p, err := local.Start(local.Command{Name: name, Path: binaries.NATS, Args: []string{"-c", file}, Env: env, Dir: folder, Log: log})
		if err != nil {
			r.t.Fatal(err)
		}
		r.nodes[region] = append(r.nodes[region], p)
	}
}

// stop ends a region's nodes at once: nobody hands anything over.
func (r *regions) stop(region string) {
	for _, p := range r.nodes[region] {
		_ = p.Stop(syscall.SIGKILL, 10*time.Second)
	}
	r.nodes[region] = nil
}

// user connects a part to its region's cluster, as the roles do.
func (r *regions) user(region, part string) (*nats.Conn, jetstream.JetStream) {
	r.t.Helper()
	in := func(name string) string { return filepath.Join(r.secrets, part, name) }
	pair, err := tls.LoadX509KeyPair(in("tls.pem"), in("tls.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	ca, err := os.ReadFile(in("ca.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	nkey, err := nats.NkeyOptionFromSeed(in("nats.nk"))
	if err != nil {
		r.t.Fatal(err)
	}
	var o nats.Options
	if err := nkey(&o); err != nil {
		r.t.Fatal(err)
	}
	urls := strings.Trim(strings.ReplaceAll(r.all("client", region), " ", ""), "[]")
	conn, err := nats.Connect(urls, nkey, nats.CustomInboxPrefix(queue.InboxPrefix(o.Nkey)), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true),
		nats.Secure(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		r.t.Fatal(err)
	}
	return conn, js
}

// TestThreeRegionsShareEventsAndNothingElse starts docs/operations.md's three regions: work
// stays where it was accepted, events are heard everywhere, and when the region that the
// others connect to is cut off the others go on and still hear each other.
func TestThreeRegionsShareEventsAndNothingElse(t *testing.T) {
	long(t)
	r := startRegions(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	gateways, streams := map[string]*nats.Conn{}, map[string]jetstream.JetStream{}
	for _, region := range regionNames {
		gateways[region], _ = r.user(region, "gateway")
		_, streams[region] = r.user(region, "signer")
	}
	for _, region := range regionNames {
		until(t, region+" has its streams", func() error {
			try, end := context.WithTimeout(ctx, 5*time.Second)
			defer end()
			return queue.EnsureStreams(try, streams[region], queue.Settings{Replicas: 3, MaxPending: 100, MaxPendingBytes: 1 << 20, AckWait: time.Second, MaxDeliver: 5})
		})
	}
	held := func(region, stream string) (uint64, error) {
		try, end := context.WithTimeout(ctx, 2*time.Second)
		defer end()
		s, err := streams[region].Stream(try, stream)
		if err != nil {
			return 0, err
		}
		if cluster := s.CachedInfo().Cluster; cluster == nil || cluster.Name != region {
			return 0, fmt.Errorf("the stream of %s lies in %+v", region, cluster)
		}
		return s.CachedInfo().State.Msgs, nil
	}
	// heard sends marks from one region until another has one: what reaches a stream
	// says that the regions are joined.
	heard := func(from, at string) {
		t.Helper()
		before, err := held(at, queue.EventsStream)
		if err != nil {
			t.Fatal(err)
		}
		until(t, at+" hears "+from, func() error {
			if err := gateways[from].Publish(queue.RevokedSubject("issuing"), []byte("mark")); err != nil {
				return err
			}
			now, err := held(at, queue.EventsStream)
			if err == nil && now == before {
				err = errors.New("nothing came")
			}
			return err
		})
	}
	for _, from := range regionNames {
		for _, at := range regionNames {
			heard(from, at)
		}
	}

	// Work and presence of us stay in us. The event sent after them, on the same
	// connection, is there: so would they be.
	presence, err := gateways["eu"].SubscribeSync(queue.PresenceSubject("*"))
	if err != nil {
		t.Fatal(err)
	}
	if err := gateways["eu"].Flush(); err != nil {
		t.Fatal(err)
	}
	before := map[string]uint64{}
	for _, region := range regionNames {
		if before[region], err = held(region, queue.SignStream); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(gateways["us"].Publish(queue.SignSubject("issuing", queue.First), []byte("work")), gateways["us"].Publish(queue.PresenceSubject("gateway"), []byte("here"))); err != nil {
		t.Fatal(err)
	}
	heard("us", "eu")
	heard("us", "ap")
	for _, region := range regionNames {
		want := before[region]
		if region == "us" {
			want++
		}
		until(t, "work is where it was accepted", func() error {
			n, err := held(region, queue.SignStream)
			if err == nil && n != want {
				err = fmt.Errorf("%s holds %d messages of work, not %d", region, n, want)
			}
			return err
		})
	}
	if n, _, err := presence.Pending(); err != nil || n != 0 {
		t.Errorf("eu hears of %d processes of us: %v", n, err)
	}

	// eu is cut off. ap goes over to us.
	lost, err := held("eu", queue.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	r.stop("eu")
	heard("us", "ap")
	heard("ap", "us")
	if err := gateways["us"].Publish(queue.SignSubject("issuing", queue.First), []byte("work")); err != nil {
		t.Fatal(err)
	}
	until(t, "us takes work without eu", func() error {
		n, err := held("us", queue.SignStream)
		if err == nil && n != before["us"]+2 {
			err = fmt.Errorf("us holds %d messages of work", n)
		}
		return err
	})

	// It comes back with what it had. What was told in between it was not told: presigners
	// there find that in the ledger.
	r.start("eu")
	var after uint64
	until(t, "eu has its streams again", func() (err error) {
		after, err = held("eu", queue.EventsStream)
		return err
	})
	if after < lost {
		t.Errorf("eu had %d events and has %d", lost, after)
	}
	heard("us", "eu")
	heard("ap", "eu")
	heard("eu", "ap")
}

// until waits for a condition.
func until(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
