// Package intake bounds the connections of a listener, altogether and by address.
package intake

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Listener bounds the connections of another, altogether and for each address. What is
// beyond is closed at once: whoever waited in the kernel's queue would learn nothing, and
// somebody who holds every connection would make all others wait. Safe for concurrent use.
type Listener struct {
	net.Listener
	max, perAddress int
	refused         atomic.Int64

	mu   sync.Mutex
	open int
	from map[netip.Addr]int // by address; never 0, so never more than max
}

// New bounds l. An IPv6 address stands for its /64: that much every customer of every
// network has to itself.
func New(l net.Listener, limit, perAddress int) *Listener {
	return &Listener{Listener: l, max: limit, perAddress: perAddress, from: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := addressOf(c)
		if l.enter(address) {
			return &conn{Conn: c, leave: sync.OnceFunc(func() { l.leave(address) })}, nil
		}
		l.refused.Add(1)
		if tcp, ok := c.(*net.TCPConn); ok {
			// A reset leaves nothing behind here, not even a TIME_WAIT.
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (l *Listener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max || l.from[a] >= l.perAddress {
		return false
	}
	l.open++
	l.from[a]++
	return true
}

func (l *Listener) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[a]--; l.from[a] == 0 {
		delete(l.from, a)
	}
}

// Refused returns how many connections were closed at once.
func (l *Listener) Refused() int64 { return l.refused.Load() }

// Connections returns how many are open.
func (l *Listener) Connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

func addressOf(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if a.Is6() {
		if prefix, err := a.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return a
}

type conn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn; it may be called more than once.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.leave()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// CloseWrite lets a server say goodbye before it closes with data unread, which the
// peer's kernel would otherwise answer by throwing the last answer away.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
