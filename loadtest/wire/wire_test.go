package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T, address string, connections int) *Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(u, nil, connections, http.Header{"X-Fixed": {"yes"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func soon() time.Time { return time.Now().Add(10 * time.Second) }

// counting serves h and counts the connections made.
func counting(t *testing.T, h http.HandlerFunc) (address string, conns *atomic.Int64) {
	t.Helper()
	conns = new(atomic.Int64)
	s := httptest.NewUnstartedServer(h)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.URL, conns
}

func TestRequestsShareConnections(t *testing.T) {
	address, conns := counting(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL.RequestURI(), r.Header.Get("X-Fixed")+r.Header.Get("X-Mine"), body)
	})
	c := client(t, address, 3)
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			res, err := c.Do(t.Context(), &Request{Method: "POST", Target: "/a?b=c", Header: "X-Mine: too\r\n", Body: fmt.Append(nil, i), Deadline: soon()})
			if err != nil || res.Status != 200 || string(res.Body) != fmt.Sprintf("POST /a?b=c yestoo %d", i) {
				t.Errorf("%v %+v", err, res)
			}
		})
	}
	all.Wait()
	if conns.Load() != 3 || c.Opened() != 3 {
		t.Errorf("%d connections for 200 requests with a bound of 3", conns.Load())
	}
}

func TestAllFormsOfAnswerAreRead(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	address, conns := counting(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunked":
			for i := range 10 {
				_, _ = io.WriteString(w, long[i*10_000:(i+1)*10_000])
				w.(http.Flusher).Flush()
			}
		case "/close":
			w.Header().Set("Connection", "close")
			_, _ = io.WriteString(w, long)
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/large":
			w.Header().Set("Content-Length", "99999999")
		}
	})
	c := client(t, address, 1)
	for _, path := range []string{"/close", "/chunked", "/empty"} {
		want := long
		if path == "/empty" {
			want = ""
		}
		res, err := c.Do(t.Context(), &Request{Method: "GET", Target: path, Deadline: soon()})
		if err != nil || string(res.Body) != want {
			t.Fatalf("%s: %v, %d bytes", path, err, len(res.Body))
		}
	}
	if conns.Load() != 2 {
		t.Errorf("%d connections; one answer of three asked for a new one", conns.Load())
	}
	if _, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/large", Deadline: soon()}); err == nil {
		t.Error("an answer of 100 MB was taken")
	}
}

func TestAConnectionThatTheServerClosedIsReplaced(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	c := client(t, s.URL, 1)
	for range 3 {
		if _, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/", Deadline: soon()}); err != nil {
			t.Fatal(err)
		}
		s.CloseClientConnections()
	}
	if c.Opened() != 3 {
		t.Errorf("%d connections opened, want 3", c.Opened())
	}
}

func TestADeadlineAndACancelEndTheWait(t *testing.T) {
	release := make(chan struct{})
	address, _ := counting(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	c := client(t, address, 1)
	_, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/", Deadline: time.Now().Add(30 * time.Millisecond)})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Do(ctx, &Request{Method: "GET", Target: "/", Deadline: soon()}); err == nil || ctx.Err() == nil {
		t.Errorf("cancel: %v", err)
	}
	// With the only connection in use, others wait for it no longer than their deadline.
	held := make(chan struct{})
	go func() {
		defer close(held)
		_, _ = c.Do(t.Context(), &Request{Method: "GET", Target: "/", Deadline: time.Now().Add(300 * time.Millisecond)})
	}()
	for len(c.slots) > 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/", Deadline: time.Now().Add(20 * time.Millisecond)}); !errors.Is(err, ErrNoConnection) {
		t.Errorf("no connection: %v", err)
	}
	<-held
}

func TestAnAddressMustBeOne(t *testing.T) {
	for _, s := range []string{"ftp://a", "localhost:8443", "https://"} {
		u, err := url.Parse(s)
		if err != nil {
			continue
		}
		if _, err := New(u, nil, 1, nil); err == nil {
			t.Errorf("%q was taken for the address of a server", s)
		}
	}
}

// raw serves one connection after the other with answer, once a request has come.
func raw(t *testing.T, answer func(io.Writer) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for in := bufio.NewReader(c); ; {
				if _, err := http.ReadRequest(in); err != nil {
					break
				}
				if err := answer(c); err != nil {
					break
				}
			}
			_ = c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

func TestAnEndlessHeaderIsGivenUp(t *testing.T) {
	for name, tc := range map[string]struct{ start, again, want string }{
		"header":           {"HTTP/1.1 200 OK\r\n", "X-A: " + strings.Repeat("a", 1000) + "\r\n", "the header has more than 65536 bytes"},
		"status line":      {"HTTP/1.1 200 ", strings.Repeat("O", 1000), "the header has more than 65536 bytes"},
		"interim answers":  {"", "HTTP/1.1 103 Early Hints\r\n\r\n", "more than 5 interim responses"},
		"interim's header": {"HTTP/1.1 103 Early Hints\r\n", "X-A: a\r\n", "the header has more than 65536 bytes"},
	} {
		var sent atomic.Int64
		address := raw(t, func(w io.Writer) error {
			_, err := io.WriteString(w, tc.start)
			for err == nil && sent.Load() < 64<<20 {
				var n int
				n, err = io.WriteString(w, tc.again)
				sent.Add(int64(n))
			}
			return errors.New("enough")
		})
		_, err := client(t, address, 1).Do(t.Context(), &Request{Method: "GET", Target: "/", Deadline: soon()})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
		if n := sent.Load(); n >= 64<<20 {
			t.Errorf("%s: all %d bytes were taken", name, n)
		}
	}
}

func TestInterimResponsesArePassedOver(t *testing.T) {
	header := "X-Long: " + strings.Repeat("a", 60_000) + "\r\n"
	body := strings.Repeat("b", 1<<20) // the bound is on the header alone
	address := raw(t, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", header, len(body), body)
		return err
	})
	c := client(t, address, 1)
	for range 2 {
		res, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/", Deadline: soon()})
		if err != nil || res.Status != 200 || string(res.Body) != body || len(res.Header.Get("X-Long")) != 60_000 {
			t.Fatalf("%v, %+v", err, res)
		}
	}
	if c.Opened() != 1 {
		t.Errorf("%d connections", c.Opened())
	}
}
