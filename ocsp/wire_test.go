package ocsp

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// get is the request of a usual client, with more fields.
func get(target string, fields ...string) string {
	out := "GET " + target + " HTTP/1.1\r\nHost: ocsp.test\r\n"
	for _, f := range fields {
		out += f + "\r\n"
	}
	return out + "\r\n"
}

func post(body []byte, fields ...string) string {
	out := "POST / HTTP/1.1\r\nHost: ocsp.test\r\n"
	for _, f := range fields {
		out += f + "\r\n"
	}
	return out + "Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + string(body)
}

// exchange sends text and reads one response; an error is a closed connection.
func exchange(t *testing.T, addr, text string) (*http.Response, []byte, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	noError(t, err)
	defer func() { _ = c.Close() }()
	noError(t, c.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = io.WriteString(c, text)
	noError(t, err)
	method, _, _ := strings.Cut(text, " ") // the answer to HEAD has no body
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// Each request gets the same answer, to the last field, from the responder's port and
// from net/http alone; and the plain ones are answered by the short way.
func TestTheShortWayAgreesWithNetHTTP(t *testing.T) {
	s := newService(t)
	good, bad := testSerial(t), testSerial(t)
	s.put(good, testGood)
	s.put(bad, revoked(testGood, 1))
	r := s.start(func(c *Config) { c.ReadTimeout = time.Second })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	noError(t, err)
	reference := r.httpServer()
	done := make(chan error, 1)
	go func() { done <- reference.Serve(l) }()
	defer func() { noError(t, reference.Close()); <-done }()

	der := r.request(good)
	encoded := "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(der))
	for _, c := range []struct {
		name, text string
		plain      bool
	}{
		{"GET", get(encoded), true},
		{"GET of a revoked one", get("/" + base64.StdEncoding.EncodeToString(r.request(bad))), true},
		{"GET with a browser's fields", get(encoded, "User-Agent: x/1 (y)", "Accept: */*", "Accept-Language: de", "Accept-Encoding: gzip", "Connection: keep-alive"), true},
		{"GET that closes", get(encoded, "connection: Close"), true},
		{"GET unknown", get("/" + url.QueryEscape(base64.StdEncoding.EncodeToString(r.request(testSerial(t))))), true},
		{"GET of DER that is no request", get("/MAA="), true},
		{"POST", post(der, "Content-Type: application/ocsp-request"), true},
		{"POST that closes", post(der, "Connection: close"), true},
		{"POST of nothing", post(nil), true},
		{"POST of garbage", post([]byte("garbage")), true},
		{"GET with a condition", get(encoded, `If-None-Match: "x"`), false},
		{"GET of a file", get("/favicon.ico"), true}, // plain in form; decoding it is net/http's
		{"GET with a query", get(encoded + "?x"), false},
		{"GET of *", get("*"), false},
		{"HEAD", strings.Replace(get(encoded), "GET", "HEAD", 1), false},
		{"PUT", strings.Replace(post(der), "POST", "PUT", 1), false},
		{"lower-case method", strings.Replace(get(encoded), "GET", "get", 1), false},
		{"HTTP/1.0", strings.Replace(get(encoded), "HTTP/1.1", "HTTP/1.0", 1), false},
		{"HTTP/1.2", strings.Replace(get(encoded), "HTTP/1.1", "HTTP/1.2", 1), false},
		{"HTTP/3.0", strings.Replace(get(encoded), "HTTP/1.1", "HTTP/3.0", 1), false},
		{"no version", "GET " + encoded + "\r\n\r\n", false},
		{"no Host", strings.Replace(get(encoded), "Host: ocsp.test\r\n", "", 1), false},
		{"two Hosts", get(encoded, "Host: other.test"), false},
		{"a bad Host", strings.Replace(get(encoded), "ocsp.test", "a b", 1), false},
		{"a space before the colon", get(encoded, "Accept : x"), false},
		{"a folded field", get(encoded, "Accept: a", " b"), false},
		{"a NUL", get(encoded, "Accept: \x00"), false},
		{"a bare LF", strings.ReplaceAll(get(encoded), "\r\n", "\n"), false},
		{"a bare CR in a value", get(encoded, "Accept: a\rb"), false},
		{"two lengths", post(der, "Content-Length: 5"), false},
		{"a length and chunks", post([]byte("0\r\n\r\n"), "Transfer-Encoding: chunked"), false},
		{"a negative length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", false},
		{"a length with a sign", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx", false},
		{"chunks", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(der), der), false},
		{"an unknown encoding", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: cool\r\n\r\n", false},
		{"an expectation", post(der, "Expect: 200-ok"), false},
		{"POST without a length", "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false},
		{"POST to another path", strings.Replace(post(der), "POST /", "POST /x", 1), false},
		{"a large POST", post(make([]byte, 6<<10)), false},
		{"too large a POST", post(make([]byte, MaxRequestBytes+1)), false},
		{"too long a header", get(encoded, "Accept: "+strings.Repeat("a", 32<<10)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, v := parseWire([]byte(c.text), "/"); (v == wirePlain) != c.plain {
				t.Errorf("the short way says %d", v)
			}
			got, gotBody, gotErr := exchange(t, strings.TrimPrefix(r.url, "http://"), c.text)
			want, wantBody, wantErr := exchange(t, l.Addr().String(), c.text)
			if (gotErr == nil) != (wantErr == nil) {
				t.Fatalf("%v, and net/http %v", gotErr, wantErr)
			}
			if gotErr != nil {
				return
			}
			got.Header.Del("Date")
			want.Header.Del("Date")
			if got.StatusCode != want.StatusCode || got.Close != want.Close || !reflect.DeepEqual(got.Header, want.Header) || !bytes.Equal(gotBody, wantBody) {
				t.Errorf("%d %v %x\nnet/http: %d %v %x", got.StatusCode, got.Header, gotBody, want.StatusCode, want.Header, wantBody)
			}
		})
	}
}

// Requests that come in pieces, several at once, and of both kinds, on one connection.
func TestOneConnectionManyRequests(t *testing.T) {
	s := newService(t)
	n := testSerial(t)
	s.put(n, testGood)
	r := s.start()
	der := r.request(n)
	plain := get("/"+base64.StdEncoding.EncodeToString(der)) + post(der)
	text := plain + plain + get("/"+base64.StdEncoding.EncodeToString(der), `If-None-Match: "x"`) + plain
	for _, step := range []int{1, 7, 100, 1 << 20} {
		c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		noError(t, err)
		sent := make(chan error, 1)
		go func() {
			for rest := text; rest != ""; {
				k := min(step, len(rest))
				if _, err := io.WriteString(c, rest[:k]); err != nil {
					sent <- err
					return
				}
				rest = rest[k:]
			}
			sent <- nil
		}()
		in := bufio.NewReader(c)
		for i := range 7 {
			resp, err := http.ReadResponse(in, nil)
			noError(t, err)
			if got := r.read(resp); got != "good" {
				t.Errorf("in pieces of %d, answer %d: %s", step, i, got)
			}
		}
		noError(t, <-sent)
		noError(t, c.Close())
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	s := newService(t)
	r := s.start(func(c *Config) { c.ReadTimeout, c.IdleTimeout = 200*time.Millisecond, 400*time.Millisecond })
	for name, c := range map[string]struct {
		text string
		wait time.Duration
	}{
		"half a request":             {"GET /MFQ", 200 * time.Millisecond},
		"a body that does not come":  {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", 200 * time.Millisecond},
		"nothing":                    {"", 400 * time.Millisecond},
		"half a request of net/http": {"HEAD / HTTP/1.1\r\nHo", 200 * time.Millisecond},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		noError(t, err)
		_, err = io.WriteString(conn, c.text)
		noError(t, err)
		start := time.Now()
		noError(t, conn.SetReadDeadline(start.Add(5*time.Second)))
		_, err = io.Copy(io.Discard, conn)
		if took := time.Since(start); err != nil || took < c.wait/2 || took > 4*time.Second {
			t.Errorf("%s: cut after %s, %v", name, took, err)
		}
		noError(t, conn.Close())
	}
}

func FuzzWire(f *testing.F) {
	f.Add([]byte(get("/MFQ%2B")))
	f.Add([]byte(post([]byte("0\x82"), "Connection: close", "User-Agent: x")))
	f.Add([]byte("POST / HTTP/1.1\r\nContent-Length: 1\r\nHost: [::1]:80\r\n\r\nxGET /"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, v := parseWire(data, "/")
		if v != wirePlain {
			return
		}
		in := bufio.NewReader(bytes.NewReader(data))
		want, err := http.ReadRequest(in)
		if err != nil {
			// A GET of a target that is no URL is given to net/http by its decoding.
			if _, bad := decodeTarget(nil, got.target, "/"); !got.post && bad != nil {
				return
			}
			t.Fatalf("net/http refuses it: %v", err)
		}
		body, err := io.ReadAll(want.Body)
		if err != nil {
			t.Fatalf("net/http does not read the body: %v", err)
		}
		if (want.Method == http.MethodPost) != got.post || want.RequestURI != got.target || want.Close != got.close ||
			!bytes.Equal(body, got.body) || len(want.TransferEncoding) != 0 || want.Host == "" {
			t.Errorf("%+v, and net/http %+v with %x", got, want, body)
		}
		if rest, err := io.ReadAll(in); err != nil || len(data)-len(rest) != got.size {
			t.Errorf("%d octets, and net/http %d", got.size, len(data)-len(rest))
		}
	})
}
