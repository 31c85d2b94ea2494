package ledgertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Fault is what a Wire does to a statement.
type Fault struct {
	// Executed tells whether the statement reaches the server and takes effect.
	Executed bool
	// Code is the SQLSTATE that the client gets instead of the server's answer. Empty
	// cuts the connection.
	Code string
}

// Wire is a proxy that speaks the PostgreSQL protocol and fails on demand, at one
// statement and on a chosen side of its effect.
type Wire struct {
	// URL leads to the database through the wire.
	URL string

	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	match  string
	fault  Fault
	left   int
	fired  int
	closed bool
}

// NewWire returns a wire to the database at target, which takes connections without
// TLS. It is closed when the test ends.
func NewWire(t testing.TB, target string) *Wire {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	if m := u.Query().Get("sslmode"); m != "" && m != "disable" && m != "prefer" && m != "allow" {
		t.Skip("a wire carries no TLS")
	}
	w := &Wire{target: u.Host, conns: map[net.Conn]struct{}{}}
	if w.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = w.listener.Addr().String()
	q := u.Query()
	q.Set("sslmode", "disable")
	u.RawQuery = q.Encode()
	w.URL = u.String()
	w.wg.Go(w.accept)
	t.Cleanup(w.close)
	return w
}

// Fail applies the fault to the next times statements whose text contains match.
func (w *Wire) Fail(match string, f Fault, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.match, w.fault, w.left, w.fired = match, f, times, 0
}

// Heal ends the fault and returns how many statements had it.
func (w *Wire) Heal() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = 0
	return w.fired
}

// faultFor takes one fault for a statement, if it is due one.
func (w *Wire) faultFor(sql string) *Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left == 0 || !strings.Contains(sql, w.match) {
		return nil
	}
	w.left--
	w.fired++
	f := w.fault
	return &f
}

func (w *Wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.wg.Go(func() {
			// Whatever ends a connection, the client sees it cut: that is the point.
			_ = w.serve(client)
			_ = client.Close()
			w.forget(client)
		})
	}
}

func (w *Wire) remember(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[c] = struct{}{}
	return !w.closed
}

func (w *Wire) forget(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
}

func (w *Wire) close() {
	_ = w.listener.Close()
	w.mu.Lock()
	w.closed = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *Wire) serve(client net.Conn) error {
	server, err := net.Dial("tcp", w.target)
	if err != nil {
		return err
	}
	defer func() {
		_ = server.Close()
		w.forget(server)
	}()
	if !w.remember(client) || !w.remember(server) {
		return net.ErrClosed
	}
	hello, err := startup(client)
	if err != nil {
		return err
	}
	if _, err := server.Write(hello); err != nil {
		return err
	}
	l := &line{wire: w, client: client, server: server, statements: map[string]string{}}
	w.wg.Go(func() {
		_ = l.down()
		_ = client.Close()
		_ = server.Close()
	})
	return l.up()
}

// startup reads the client's first message and refuses encryption.
func startup(client net.Conn) ([]byte, error) {
	b := pgproto3.NewBackend(client, client)
	for {
		m, err := b.ReceiveStartupMessage()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := client.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		case *pgproto3.StartupMessage:
			return m.Encode(nil)
		case *pgproto3.CancelRequest:
			return m.Encode(nil)
		default:
			return nil, fmt.Errorf("unexpected %T", m)
		}
	}
}

// line is one connection through the wire.
type line struct {
	wire           *Wire
	client, server net.Conn
	statements     map[string]string // prepared statements by name

	mu sync.Mutex
	// swallow is the fault that takes the place of the server's next answer.
	swallow *Fault
}

var errCut = errors.New("cut")

// up carries messages to the server. A client of ours sends a statement and waits
// for the answer, so at the start of each the server is idle.
func (l *line) up() error {
	var skip *Fault // until Sync: the rest of a statement that is not to be executed
	for {
		kind, frame, err := readFrame(l.client)
		if err != nil {
			return err
		}
		if skip != nil {
			if kind == 'S' {
				if err := l.refuse(skip); err != nil {
					return err
				}
				skip = nil
			}
			continue
		}
		sql, starts := l.statement(kind, frame[5:])
		if starts {
			f := l.wire.faultFor(sql)
			switch {
			case f == nil:
			case f.Executed:
				l.swallowing(f)
			case kind == 'Q':
				if err := l.refuse(f); err != nil {
					return err
				}
				continue
			default:
				skip = f
				continue
			}
		}
		if _, err := l.server.Write(frame); err != nil {
			return err
		}
	}
}

// refuse fails a statement that the server never sees. A refused statement has ended
// its transaction, so the server is told that instead.
func (l *line) refuse(f *Fault) error {
	if f.Code == "" {
		return errCut
	}
	rollback, err := (&pgproto3.Query{String: "ROLLBACK"}).Encode(nil)
	if err != nil {
		return err
	}
	l.swallowing(f)
	_, err = l.server.Write(rollback)
	return err
}

func (l *line) swallowing(f *Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.swallow = f
}

// statement returns the text of the statement that a message starts to execute.
func (l *line) statement(kind byte, body []byte) (sql string, starts bool) {
	switch kind {
	case 'P':
		var m pgproto3.Parse
		if m.Decode(body) == nil {
			l.statements[m.Name] = m.Query
		}
	case 'B':
		var m pgproto3.Bind
		if m.Decode(body) == nil {
			return l.statements[m.PreparedStatement], true
		}
	case 'Q':
		var m pgproto3.Query
		if m.Decode(body) == nil {
			return m.String, true
		}
	}
	return "", false
}

// down carries messages to the client. The whole answer to a statement with a fault,
// up to ReadyForQuery, gives way to the fault.
func (l *line) down() error {
	for {
		kind, frame, err := readFrame(l.server)
		if err != nil {
			return err
		}
		l.mu.Lock()
		f := l.swallow
		if f != nil && kind == 'Z' {
			l.swallow = nil
		}
		l.mu.Unlock()
		switch {
		case f == nil:
			_, err = l.client.Write(frame)
		case kind == 'Z':
			err = l.answer(*f)
		}
		if err != nil {
			return err
		}
	}
}

// answer gives the client the fault.
func (l *line) answer(f Fault) error {
	if f.Code == "" {
		return errCut
	}
	out, err := (&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: f.Code, Message: "made by the wire"}).Encode(nil)
	if err != nil {
		return err
	}
	if out, err = (&pgproto3.ReadyForQuery{TxStatus: 'I'}).Encode(out); err != nil {
		return err
	}
	_, err = l.client.Write(out)
	return err
}

// readFrame reads one message: its type, its length, its body.
func readFrame(r io.Reader) (kind byte, frame []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n > 64<<20 {
		return 0, nil, fmt.Errorf("a message of %d bytes", n)
	}
	frame = make([]byte, 1+n)
	copy(frame, head[:])
	_, err = io.ReadFull(r, frame[5:])
	return head[0], frame, err
}
