package ocsp

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// front takes connections. It answers plain requests itself, which costs half of what
// net/http needs, and hands a connection over to net/http, with all that was read, as
// soon as a request is not of the plain form (wire.go): HTTP/1.0 and HTTP/2,
// conditions, oddities and errors are net/http's.
type front struct {
	r        *Responder
	listener net.Listener
	handed   *handedListener
	server   *http.Server

	stopping atomic.Bool
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool // served here, not handed over
	date     atomic.Pointer[dateText]
}

// dateText is the value of the Date field for one second.
type dateText struct {
	unix int64
	text string
}

func newFront(r *Responder, listener net.Listener, server *http.Server) *front {
	return &front{
		r: r, listener: listener, server: server, conns: map[net.Conn]bool{},
		handed: &handedListener{addr: listener.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})},
	}
}

// serve accepts until stop; it returns the error of the listener.
func (f *front) serve() error {
	f.wg.Go(func() { _ = f.server.Serve(f.handed) }) // it ends when stop closes handed
	for {
		c, err := f.listener.Accept()
		if err != nil {
			if passing(err) && !f.stopping.Load() {
				time.Sleep(5 * time.Millisecond) // out of descriptors: let connections end
				continue
			}
			return err
		}
		f.wg.Go(func() { f.conn(c) })
	}
}

func passing(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// stop ends: no new connections, idle ones closed, running requests until ctx ends.
func (f *front) stop(ctx context.Context) {
	f.stopping.Store(true)
	_ = f.listener.Close()
	f.mu.Lock()
	for c := range f.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0)) // wakes those that wait for a request
	}
	f.mu.Unlock()
	if err := f.server.Shutdown(ctx); err != nil {
		_ = f.server.Close()
	}
	f.handed.close()
	done := make(chan struct{})
	go func() { f.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		f.mu.Lock()
		for c := range f.conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		<-done
	}
}

func (f *front) add(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[c] = true
	return !f.stopping.Load()
}

func (f *front) remove(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// conn serves one connection until it ends or is handed over.
func (f *front) conn(c net.Conn) {
	handed := false
	defer func() {
		if v := recover(); v != nil {
			f.r.deps.Log.Error("a request ended in a panic", "panic", v)
		}
		f.remove(c)
		if !handed {
			_ = c.Close()
		}
	}()
	if !f.add(c) {
		return
	}
	s := wireScratches.Get().(*wireScratch)
	defer wireScratches.Put(s)
	s.in = s.in[:0]
	deadlines := deadlines{conn: c, cfg: &f.r.cfg}
	for {
		request, v := parseWire(s.in, f.r.cfg.Path)
		switch v {
		case wirePartial:
			if !f.read(s, &deadlines) {
				return
			}
			continue
		case wirePlain:
			if done, ok := f.plain(s, &request, &deadlines); ok {
				if done {
					return
				}
				continue
			}
		}
		handed = f.hand(c, s.in)
		return
	}
}

// wireScratch is the memory of one connection.
type wireScratch struct {
	scratch
	response []byte
}

var wireScratches = sync.Pool{New: func() any {
	return &wireScratch{scratch: scratch{in: make([]byte, 0, maxWire), out: make([]byte, 0, 2<<10)}, response: make([]byte, 0, 3<<10)}
}}

// read reads more of a request; false ends the connection.
func (f *front) read(s *wireScratch, d *deadlines) bool {
	d.read(len(s.in) == 0)
	if f.stopping.Load() { // after the deadline was set, which stop may have moved
		return false
	}
	n, err := d.conn.Read(s.in[len(s.in):cap(s.in)])
	s.in = s.in[:len(s.in)+n]
	return n > 0 && (err == nil || !f.stopping.Load())
}

// plain answers a plain request and removes it from the input. ok is false where it
// is net/http's to answer.
func (f *front) plain(s *wireScratch, request *wireRequest, d *deadlines) (done, ok bool) {
	der := request.body
	if !request.post {
		var space [1 << 10]byte
		var err error
		if der, err = decodeTarget(space[:0], request.target, f.r.cfg.Path); err != nil {
			return false, false
		}
	}
	now := f.r.deps.Now()
	a := f.r.answer(&s.scratch, der, now)
	f.r.metrics.requests[a.outcome].Inc()
	last := request.close || f.stopping.Load()
	s.response = f.r.appendAnswer(s.response[:0], &a, now.Unix(), f.dateText(), last)
	d.write()
	if _, err := d.conn.Write(s.response); err != nil {
		return true, true
	}
	s.in = s.in[:copy(s.in, s.in[request.size:])]
	return last, true
}

// hand gives a connection to net/http with what was read from it.
func (f *front) hand(c net.Conn, read []byte) bool {
	_ = c.SetDeadline(time.Time{})
	handed := &handedConn{Conn: c, read: append([]byte(nil), read...)}
	select {
	case f.handed.conns <- handed:
		return true
	case <-f.handed.closed:
		return false
	}
}

// dateText returns the present time for the Date field; it is made once a second.
func (f *front) dateText() string {
	now := time.Now().Unix()
	d := f.date.Load()
	if d == nil || d.unix != now {
		d = &dateText{unix: now, text: string(appendDate(nil, now))}
		f.date.Store(d)
	}
	return d.text
}

// deadlines keeps a connection's deadlines without moving them for every request,
// which would cost more than reading one: they are late by at most a quarter.
type deadlines struct {
	conn          net.Conn
	cfg           *Config
	readSet       time.Time
	idle          bool
	writeDeadline time.Time
}

// read sees to it that a request that has begun arrives within ReadTimeout, and that
// one begins within IdleTimeout.
func (d *deadlines) read(idle bool) {
	now := time.Now()
	limit := d.cfg.ReadTimeout
	if idle {
		limit = d.cfg.IdleTimeout
		if d.idle && now.Sub(d.readSet) < limit/4 {
			return
		}
	} else if !d.idle && !d.readSet.IsZero() {
		return // the request's deadline stands
	}
	d.idle, d.readSet = idle, now
	_ = d.conn.SetReadDeadline(now.Add(limit)) // on a closed connection the read says so
}

func (d *deadlines) write() {
	now := time.Now()
	if d.writeDeadline.Sub(now) >= d.cfg.WriteTimeout*3/4 {
		return
	}
	d.writeDeadline = now.Add(d.cfg.WriteTimeout)
	_ = d.conn.SetWriteDeadline(d.writeDeadline)
}

// handedListener gives net/http the connections that were handed over.
type handedListener struct {
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *handedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *handedListener) close() { l.once.Do(func() { close(l.closed) }) }

func (l *handedListener) Close() error   { l.close(); return nil }
func (l *handedListener) Addr() net.Addr { return l.addr }

// handedConn is a connection of which something was read.
type handedConn struct {
	net.Conn
	read []byte
}

func (c *handedConn) Read(b []byte) (int, error) {
	if len(c.read) > 0 {
		n := copy(b, c.read)
		c.read = c.read[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// CloseWrite passes on to the connection's.
func (c *handedConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
