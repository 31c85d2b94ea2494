// Package wire is an HTTP/1.1 client for load generators: keep-alive connections in
// a bounded pool, one goroutine and two system calls a request.
//
// net/http's Transport costs two more goroutines a connection and 20–30 µs a request,
// which on a machine shared with the service under test would be measured as part of
// it. What comes back is read by net/http's own parser, so that no server is
// misunderstood.
package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// MaxBody bounds an answer in bytes.
const MaxBody = 4 << 20

const (
	// maxHeader bounds an answer's status line and header, those of interim responses
	// before it included.
	maxHeader  = 64 << 10
	maxInterim = 5
)

var (
	errHeader  = fmt.Errorf("the header has more than %d bytes", maxHeader)
	errInterim = fmt.Errorf("more than %d interim responses (1xx) without an answer", maxInterim)
)

// Client sends requests to one server. It is safe for concurrent use.
type Client struct {
	address string // host:port to connect to
	host    string // the Host header
	tls     *tls.Config
	fixed   string // header lines that every request has
	slots   chan *conn
	opened  atomic.Int64
	closing sync.Once
}

// New makes a client for base (http:// or https://, host and port) with at most
// connections connections. headers go with every request. tlsConfig is needed for
// https and is not changed afterwards.
func New(base *url.URL, tlsConfig *tls.Config, connections int, headers http.Header) (*Client, error) {
	if connections < 1 {
		return nil, errors.New("at least one connection is needed")
	}
	port := base.Port()
	switch {
	case base.Hostname() == "" || base.Scheme != "https" && base.Scheme != "http":
		return nil, fmt.Errorf("%q is not the address of an HTTP server; it looks like https://host:port", base)
	case port == "" && base.Scheme == "https":
		port = "443"
	case port == "":
		port = "80"
	}
	c := &Client{address: net.JoinHostPort(base.Hostname(), port), host: base.Host, slots: make(chan *conn, connections)}
	if base.Scheme == "https" {
		c.tls = tlsConfig.Clone()
		c.tls.NextProtos = []string{"http/1.1"}
		if c.tls.ServerName == "" {
			c.tls.ServerName = base.Hostname()
		}
	}
	for name, values := range headers {
		for _, v := range values {
			c.fixed += name + ": " + v + "\r\n"
		}
	}
	for range connections {
		c.slots <- nil
	}
	return c, nil
}

// Request is one request.
type Request struct {
	Method string
	// Target is the path with its query, sent as it stands.
	Target string
	// Header is further header lines, each ended by \r\n.
	Header string
	Body   []byte
	// Deadline is when it is given up.
	Deadline time.Time
}

// Response is one answer.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Warm opens every connection, so that no handshake falls into the measured time.
func (c *Client) Warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	all := make([]*conn, 0, cap(c.slots))
	defer func() {
		for _, k := range all {
			c.slots <- k
		}
	}()
	for range cap(c.slots) {
		select {
		case k := <-c.slots:
			all = append(all, k)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for i, k := range all {
		if k != nil {
			continue
		}
		k, err := c.connect(ctx)
		if err != nil {
			return err
		}
		all[i] = k
	}
	return nil
}

// Opened returns how many connections have been made.
func (c *Client) Opened() int64 { return c.opened.Load() }

// Close closes the connections, when those in use have come back.
func (c *Client) Close() error {
	c.closing.Do(func() {
		for range cap(c.slots) {
			if k := <-c.slots; k != nil {
				_ = k.Close()
			}
		}
	})
	return nil
}

// ErrNoConnection says that no connection of the pool came free before the deadline.
var ErrNoConnection = errors.New("all connections were busy until the deadline")

// Do sends a request and reads its answer. A request that a server refused to read,
// since it had closed an idle connection, is sent once more on a new one.
func (c *Client) Do(ctx context.Context, r *Request) (*Response, error) {
	k, err := c.take(ctx, r.Deadline)
	if err != nil {
		return nil, err
	}
	defer func() { c.slots <- k }()
	reused := k != nil
	for {
		if k == nil {
			dialing, cancel := context.WithDeadline(ctx, r.Deadline)
			k, err = c.connect(dialing)
			cancel()
			if err != nil {
				return nil, err
			}
		}
		res, keep, err := k.exchange(ctx, c, r)
		if err == nil && keep {
			return res, nil
		}
		untouched := k.untouched
		_ = k.Close()
		k = nil
		if err == nil || !reused || !untouched || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return res, err
		}
		reused = false
	}
}

// take waits for a place in the pool.
func (c *Client) take(ctx context.Context, deadline time.Time) (*conn, error) {
	select {
	case k := <-c.slots:
		return k, nil
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case k := <-c.slots:
		return k, nil
	case <-timer.C:
		return nil, ErrNoConnection
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// conn is one connection with its buffers.
type conn struct {
	net.Conn
	in        *bufio.Reader
	out       []byte
	untouched bool // no byte of the answer to the last request has come
	left      int  // how many bytes the header may still have; below zero: none is being read
}

// Read is what in reads by. It bounds a header, which net/http's parser does not.
func (k *conn) Read(p []byte) (int, error) {
	if k.left < 0 {
		return k.Conn.Read(p)
	}
	if k.left == 0 {
		return 0, errHeader
	}
	n, err := k.Conn.Read(p[:min(len(p), k.left)])
	k.left -= n
	return n, err
}

func (c *Client) connect(ctx context.Context) (*conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, err
	}
	if c.tls != nil {
		t := tls.Client(nc, c.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		nc = t
	}
	c.opened.Add(1)
	k := &conn{Conn: nc, left: -1}
	k.in = bufio.NewReaderSize(k, 8<<10)
	return k, nil
}

// exchange sends one request and reads one answer; keep says whether the connection
// may carry another.
func (k *conn) exchange(ctx context.Context, c *Client, r *Request) (res *Response, keep bool, err error) {
	k.untouched = true
	if err := k.SetDeadline(r.Deadline); err != nil {
		return nil, false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = k.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			keep = false // its deadline may be set at any moment now
		}
	}()
	b := append(k.out[:0], r.Method...)
	b = append(b, ' ')
	b = append(b, r.Target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, c.host...)
	b = append(b, "\r\n"...)
	b = append(b, c.fixed...)
	b = append(b, r.Header...)
	if r.Method != http.MethodGet {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(r.Body)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	k.out = append(b, r.Body...)
	if _, err := k.Write(k.out); err != nil {
		return nil, false, err
	}
	k.left = maxHeader
	if _, err := k.in.Peek(1); err != nil {
		return nil, false, err
	}
	k.untouched = false
	h, err := k.header(r.Method)
	k.left = -1
	if err != nil {
		return nil, false, fmt.Errorf("reading the answer: %w", err)
	}
	res = &Response{Status: h.StatusCode, Header: h.Header}
	if n := h.ContentLength; n >= 0 && n <= MaxBody {
		res.Body = make([]byte, n)
		_, err = io.ReadFull(h.Body, res.Body)
	} else if res.Body, err = io.ReadAll(io.LimitReader(h.Body, MaxBody+1)); err == nil && len(res.Body) > MaxBody {
		err = fmt.Errorf("the answer has more than %d bytes", MaxBody)
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading the answer: %w", err)
	}
	// What comes unasked after the answer would be taken for that to the next request.
	keep = !h.Close && h.StatusCode != http.StatusSwitchingProtocols && k.in.Buffered() == 0
	return res, keep, nil
}

// header reads an answer up to its body, past interim responses (RFC 9110 section 15.2).
func (k *conn) header(method string) (*http.Response, error) {
	for range maxInterim + 1 {
		h, err := http.ReadResponse(k.in, &http.Request{Method: method})
		if err != nil || h.StatusCode/100 != 1 || h.StatusCode == http.StatusSwitchingProtocols {
			return h, err
		}
	}
	return nil, errInterim
}
