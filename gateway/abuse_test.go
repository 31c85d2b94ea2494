package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"

	"github.com/certmill/certmill/internal/testenv"
)

// alive asks for the trust bundle over a new connection from an address of this machine.
func (w *world) alive(t *testing.T, from string) error {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	transport := &http.Transport{TLSClientConfig: w.clientTLS(), DialContext: dialer.DialContext}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("https://" + w.https + "/v1/trust-bundle")
	if err != nil {
		return err
	}
	defer func() { _ = r.Body.Close() }()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	return nil
}

// connect opens up to n connections from an address and says nothing on them.
func (w *world) connect(t *testing.T, from string, n int) (open []net.Conn) {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	for range n {
		c, err := dialer.DialContext(t.Context(), "tcp", w.https)
		if err != nil {
			continue // refused, which is an answer
		}
		t.Cleanup(func() { _ = c.Close() })
		open = append(open, c)
	}
	return open
}

func TestConnectionsOfOneAddressLeaveRoomForOthers(t *testing.T) {
	w := newWorld(t, crowd(time.Minute)) // none is cut meanwhile, however slow the machine is
	w.connect(t, "127.0.0.2", 60)
	eventually(t, "its bound is reached and the rest refused", func() bool { return w.gateway.https.Connections() == 20 && w.gateway.https.Refused() == 40 })
	must0(t, w.alive(t, "127.0.0.3"))
	eventually(t, "that one has left", func() bool { return w.gateway.https.Connections() == 20 })
	w.connect(t, "127.0.0.3", 20)
	eventually(t, "all are taken", func() bool { return w.gateway.https.Connections() == 30 })
	if err := w.alive(t, "127.0.0.4"); err == nil {
		t.Error("a connection beyond the bound is served")
	}
	// Half-open: nobody ever says anything on them.
	w = newWorld(t, crowd(time.Second))
	silent := append(w.connect(t, "127.0.0.2", 20), w.connect(t, "127.0.0.3", 10)...)
	if len(silent) != 30 {
		t.Fatalf("%d connections are open", len(silent))
	}
	for _, c := range silent {
		must0(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("one that says nothing is not cut: %v", err)
		}
	}
	eventually(t, "those who say nothing are cut", func() bool { return w.gateway.https.Connections() == 0 })
	must0(t, w.alive(t, "127.0.0.4"))
}

// crowd bounds connections, and how long one may say nothing.
func crowd(silence time.Duration) func(*Config, *Deps) {
	return func(c *Config, _ *Deps) {
		c.Limits.MaxConnections, c.Limits.MaxConnectionsPerAddress = 30, 20
		c.Limits.HeaderTimeout, c.Limits.ReadTimeout, c.Limits.IdleTimeout = silence, silence, silence
	}
}

func TestTenThousandIdleConnectionsCostLittle(t *testing.T) {
	var files unix.Rlimit
	must0(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	n := int(min(10_000, (files.Cur-500)/2)) // both ends are in this process
	if n < 1000 {
		testenv.Lacking(t, "only %d open files are allowed: run `ulimit -n 32768`", files.Cur)
	}
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.MaxConnections, c.Limits.MaxConnectionsPerAddress = n+100, n/2
		c.Limits.HeaderTimeout, c.Limits.ReadTimeout = time.Minute, time.Minute
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w.connect(t, "127.0.0.2", n/2)
	w.connect(t, "127.0.0.3", n/2)
	eventually(t, "they are open", func() bool { return w.gateway.https.Connections() >= n/2*2 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / float64(n)
	t.Logf("%d idle connections take %.1f KiB each, both ends", n, each/1024)
	if each > 64<<10 {
		t.Errorf("an idle connection takes %.0f bytes", each)
	}
	must0(t, w.alive(t, "127.0.0.4"))
}

func TestACompressedBodyIsRefusedUnread(t *testing.T) {
	w := newWorld(t)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	must(io.CopyN(z, zeros{}, 4<<20))(t)
	must0(t, z.Close())
	for _, encoding := range []string{"gzip", "deflate", "br", "zstd", "gzip, gzip"} {
		r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: typeJSON, token: w.idp.token(t, "alice"), header: http.Header{"Content-Encoding": {encoding}}, body: bomb.Bytes()[:1000]})
		r.expect(t, http.StatusUnsupportedMediaType, "content-encoding", "content_encoding")
	}
}

// HTTP/2 rapid reset (CVE-2023-44487): streams that are opened and reset at once must
// not pile up work behind the bound of streams.
func TestRapidResetPilesNothingUp(t *testing.T) {
	w := newWorld(t)
	alice := w.idp.token(t, "alice")
	release := w.signer.block()
	defer release()
	before := runtime.NumGoroutine()
	f := w.frames(t)
	id := uint32(1)
	for range 5000 {
		f.open(id, certmillv1.CertificateAuthority_Issue_FullMethodName, alice)
		f.mu.Lock()
		err := f.framer.WriteRSTStream(id, http2.ErrCodeCancel)
		f.mu.Unlock()
		if err != nil {
			break // the server has had enough, which is an answer
		}
		id += 2
	}
	if n := runtime.NumGoroutine() - before; n > 1000 {
		t.Errorf("%d goroutines are at work", n)
	}
	release()
	eventually(t, "every place is free", func() bool {
		n, _ := w.gateway.service.admission.calls.callers()
		return w.gateway.service.inFlight.used.Load() == 0 && n == 0
	})
	must0(t, healthy(t, w))
}

// The same on the HTTPS listener, whose HTTP/2 is another implementation.
func TestRapidResetOverHTTPS(t *testing.T) {
	w := newWorld(t)
	before := runtime.NumGoroutine()
	f := w.framesAt(t, w.https)
	for id := uint32(1); id < 10_000; id += 2 {
		f.open(id, "/v1/trust-bundle", "")
		f.mu.Lock()
		err := f.framer.WriteRSTStream(id, http2.ErrCodeCancel)
		f.mu.Unlock()
		if err != nil {
			break
		}
	}
	if n := runtime.NumGoroutine() - before; n > 1000 {
		t.Errorf("%d goroutines are at work", n)
	}
	eventually(t, "every place is free", func() bool { return w.gateway.service.inFlight.used.Load() == 0 })
	must0(t, w.alive(t, "127.0.0.2"))
}

// A stream whose caller sends and never stops holds no more than its places.
func TestAFloodOfMessagesOnOneStreamIsHeldBack(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.Limits.StreamConcurrency = 8 })
	release := w.signer.block()
	defer release()
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
	ctx, hangUp := context.WithCancel(as(t.Context(), w.idp.token(t, "alice")))
	s := must(ca.IssueStream(ctx))(t)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		m := &certmillv1.IssueRequest{Csr: armour(newCSR(t, nil, "a.example.test"))}
		for i := range 20_000 {
			m.RequestId = fmt.Sprint(i)
			if s.Send(m) != nil {
				return // the stream has ended
			}
		}
	}()
	eventually(t, "the places of the stream are taken", func() bool { return w.gateway.service.inFlight.used.Load() == 8 })
	select {
	case <-sent:
		t.Error("20,000 messages went through to a gateway that works on 8")
	case <-time.After(300 * time.Millisecond): // for more to come, which must not
	}
	if used := w.gateway.service.inFlight.used.Load(); used != 8 {
		t.Errorf("%d are in work", used)
	}
	release()
	must(s.Recv())(t)
	hangUp()
	<-sent
}

// A client that never finishes its handshake is cut.
func TestAHandshakeThatDoesNotEndIsCut(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.HeaderTimeout, c.Limits.ReadTimeout = 300*time.Millisecond, 300*time.Millisecond
	})
	for _, address := range []string{w.https, w.grpc} {
		c := must(net.Dial("tcp", address))(t)
		must(c.Write([]byte{22, 3, 1, 1, 0}))(t) // the beginning of a ClientHello
		must0(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		if _, err := io.ReadAll(c); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("%s: the connection is open after 10 s", address)
			}
		}
		_ = c.Close()
	}
}
