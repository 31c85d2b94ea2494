package gateway

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// boundedListener bounds the connections of a listener, altogether and for each
// address. What is beyond is closed at once: whoever waited in the kernel's queue would
// learn nothing, and somebody who holds every connection would make all others wait.
type boundedListener struct {
	net.Listener
	max, perAddress int
	refused         atomic.Int64

	mu   sync.Mutex
	open int
	from map[netip.Addr]int // by address; never 0, so never more than max
}

func newBoundedListener(l net.Listener, limit, perAddress int) *boundedListener {
	return &boundedListener{Listener: l, max: limit, perAddress: perAddress, from: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := addressOf(conn)
		if l.enter(address) {
			return &boundedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(address) })}, nil
		}
		l.refused.Add(1)
		if tcp, ok := conn.(*net.TCPConn); ok {
			// A reset leaves nothing behind here, not even a TIME_WAIT.
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

func (l *boundedListener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max || l.from[a] >= l.perAddress {
		return false
	}
	l.open++
	l.from[a]++
	return true
}

func (l *boundedListener) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[a]--; l.from[a] == 0 {
		delete(l.from, a)
	}
}

// connections returns how many are open.
func (l *boundedListener) connections() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// addressOf returns the peer's address. An IPv6 peer is its /64: that much every
// customer of every network has to itself.
func addressOf(conn net.Conn) netip.Addr {
	peer, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	a := peer.Addr().Unmap().WithZone("")
	if a.Is6() {
		if prefix, err := a.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return a
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn; it may be called more than once.
func (c *boundedConn) Close() error {
	err := c.Conn.Close()
	c.leave()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
