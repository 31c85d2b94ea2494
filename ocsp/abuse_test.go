package ocsp

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/certmill/certmill/internal/testenv"
)

// connect opens up to n connections from an address and says nothing on them.
func (r *running) connect(from string, n int) {
	r.s.t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	for range n {
		c, err := dialer.DialContext(r.s.ctx(), "tcp", r.url[len("http://"):])
		if err != nil {
			continue // refused, which is an answer
		}
		r.s.t.Cleanup(func() { _ = c.Close() })
	}
}

// alive asks over a new connection from an address of this machine.
func (r *running) alive(from string) error {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(r.url + "/")
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK { // OCSP says malformedRequest with 200
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

func TestConnectionsOfOneAddressLeaveRoomForOthers(t *testing.T) {
	r := newService(t).start(func(c *Config) {
		c.MaxConnections, c.MaxConnectionsPerAddress, c.IdleTimeout, c.ReadTimeout = 30, 20, time.Second, time.Second
	})
	in := r.intake.Load()
	r.connect("127.0.0.2", 60)
	eventually(t, "its bound is reached and the rest refused", func() bool { return in.Refused() == 40 && in.Connections() <= 20 })
	noError(t, r.alive("127.0.0.3"))
	// Half-open: nobody ever says anything on them.
	eventually(t, "those who say nothing are cut", func() bool { return in.Connections() == 0 })
	r.connect("127.0.0.2", 20)
	r.connect("127.0.0.3", 20)
	eventually(t, "the bound of all holds", func() bool { return in.Refused() == 50 })
	eventually(t, "they are cut too", func() bool { return in.Connections() == 0 })
	noError(t, r.alive("127.0.0.4"))
}

func TestTenThousandIdleConnectionsCostLittle(t *testing.T) {
	var files unix.Rlimit
	noError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	n := int(min(10_000, (files.Cur-500)/2)) // both ends are in this process
	if n < 1000 {
		testenv.Lacking(t, "only %d open files are allowed: run `ulimit -n 32768`", files.Cur)
	}
	s := newService(t)
	live := testSerial(t)
	s.put(live, testGood)
	r := s.start(func(c *Config) {
		c.MaxConnections, c.MaxConnectionsPerAddress, c.IdleTimeout = n+100, n/2, 5*time.Minute
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r.connect("127.0.0.2", n/2)
	r.connect("127.0.0.3", n/2)
	open := func() bool { return r.intake.Load().Connections() >= n/2*2 }
	for end := time.Now().Add(30 * time.Second); !open() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if !open() {
		t.Fatalf("%d of %d connections are open", r.intake.Load().Connections(), n)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / float64(n)
	t.Logf("%d idle connections take %.1f KiB each, both ends", n, each/1024)
	if each > 32<<10 {
		t.Errorf("an idle connection takes %.0f bytes", each)
	}
	noError(t, r.alive("127.0.0.4"))
	if got := r.ask(live); got != "good" {
		t.Errorf("an OCSP client beside them gets %q", got)
	}
}
