package gateway

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// frames is a gRPC client that keeps to HTTP/2 and to nothing else.
type frames struct {
	t      testing.TB
	conn   *tls.Conn
	framer *http2.Framer // writing; mu guards it
	mu     sync.Mutex
	window int64 // of the connection
	stream map[uint32]int64
	first  int64
	ended  map[uint32]string // the gRPC status of streams that the server has ended
	done   chan struct{}
}

func (w *world) frames(t testing.TB) *frames {
	t.Helper()
	return w.framesAt(t, w.grpc)
}

func (w *world) framesAt(t testing.TB, address string) *frames {
	t.Helper()
	config := w.clientTLS()
	config.NextProtos = []string{"h2"}
	f := &frames{
		t: t, conn: must(tls.Dial("tcp", address, config))(t), window: 65_535, first: 65_535,
		stream: map[uint32]int64{}, ended: map[uint32]string{}, done: make(chan struct{}),
	}
	must(f.conn.Write([]byte(http2.ClientPreface)))(t)
	f.framer = http2.NewFramer(f.conn, nil)
	must0(t, f.framer.WriteSettings())
	go f.read()
	t.Cleanup(func() {
		_ = f.conn.Close()
		<-f.done
	})
	return f
}

func (f *frames) read() {
	defer close(f.done)
	in := http2.NewFramer(nil, f.conn)
	in.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := in.ReadFrame()
		if err != nil {
			return
		}
		f.mu.Lock()
		switch x := frame.(type) {
		case *http2.SettingsFrame:
			if v, ok := x.Value(http2.SettingInitialWindowSize); ok {
				f.first = int64(v)
			}
			if !x.IsAck() {
				_ = f.framer.WriteSettingsAck()
			}
		case *http2.WindowUpdateFrame:
			if x.StreamID == 0 {
				f.window += int64(x.Increment)
			} else {
				f.stream[x.StreamID] += int64(x.Increment)
			}
		case *http2.MetaHeadersFrame:
			for _, h := range x.Fields {
				if h.Name == "grpc-status" {
					f.ended[x.StreamID] = h.Value
				}
			}
		}
		f.mu.Unlock()
	}
}

// open begins a call and sends no message.
func (f *frames) open(id uint32, method, token string) {
	f.t.Helper()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	fields := [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"}}
	if token != "" {
		fields = append(fields, [2]string{"authorization", "Bearer " + token})
	}
	for _, h := range fields {
		must0(f.t, e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	must0(f.t, f.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}))
}

// push sends as much of one endless message as the server lets through, and returns it.
func (f *frames) push(id uint32) (sent int64) {
	for idle := 0; idle < 20; {
		f.mu.Lock()
		n := min(f.first+f.stream[id]-sent, f.window, 16_000)
		_, ended := f.ended[id]
		if ended {
			f.mu.Unlock()
			return sent
		}
		if n <= 5 {
			f.mu.Unlock()
			idle++
			time.Sleep(2 * time.Millisecond) // for the window to open, which it should not
			continue
		}
		idle = 0
		data := make([]byte, n)
		if sent == 0 {
			copy(data, []byte{0, 0, 0x1f, 0xff, 0xf0}) // a message of just under 2 MiB
		}
		err := f.framer.WriteData(id, false, data)
		f.window -= n
		sent += n
		f.mu.Unlock()
		if err != nil {
			return sent
		}
	}
	return sent
}

func (f *frames) status(id uint32) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.ended[id]
	return s, ok
}

// gRPC must do as HTTP does: nothing of a message is taken in for a caller who is not
// known, and a message that does not come does not hold its place for long.
func TestAGRPCMessageIsReadForKnownCallersAndNotForLong(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Limits.ReadTimeout, c.Limits.HeaderTimeout = 300*time.Millisecond, 300*time.Millisecond
	})
	f := w.frames(t)
	t.Run("a stranger is refused before the message", func(t *testing.T) {
		f.open(1, certmillv1.CertificateAuthority_Issue_FullMethodName, "")
		eventually(t, "it ends", func() bool { s, ok := f.status(1); return ok && s == "16" })
		f.open(3, certmillv1.Operations_ListAudit_FullMethodName, "")
		eventually(t, "it ends", func() bool { s, ok := f.status(3); return ok && s == "16" })
	})
	t.Run("a slow caller is cut", func(t *testing.T) {
		f.open(5, certmillv1.CertificateAuthority_Issue_FullMethodName, w.idp.token(t, "alice"))
		if _, ok := f.status(5); ok {
			t.Error("a known caller was refused before the message")
		}
		eventually(t, "it ends", func() bool { s, ok := f.status(5); return ok && s == "1" })
		eventually(t, "its place is free", func() bool { return w.gateway.service.inFlight.used.Load() == 0 })
	})
	t.Run("an open method is cut too", func(t *testing.T) {
		f.open(7, certmillv1.CertificateAuthority_GetTrustBundle_FullMethodName, "")
		eventually(t, "it ends", func() bool { _, ok := f.status(7); return ok })
	})
	t.Run("what nobody reads does not grow", func(t *testing.T) {
		release := w.signer.block()
		defer release()
		f.open(9, certmillv1.CertificateAuthority_Issue_FullMethodName, w.idp.token(t, "alice"))
		f.send(9, armour(newCSR(t, nil, "a.example.test")))
		eventually(t, "it is at work", func() bool { return w.gateway.service.inFlight.used.Load() == 1 })
		if sent := f.push(9); sent > 4*streamWindow {
			t.Errorf("a stream that nobody reads took %d bytes", sent)
		}
	})
	t.Run("unguarded calls are few and short", func(t *testing.T) {
		g := w.frames(t)
		for k := range uint32(maxUnguarded + 1) {
			g.open(2*k+1, "/grpc.health.v1.Health/Check", "")
		}
		eventually(t, "the last is refused", func() bool { s, ok := g.status(2*maxUnguarded + 1); return ok && s == "8" })
		eventually(t, "the first has ended", func() bool { _, ok := g.status(1); return ok })
		must0(t, healthy(t, w))
	})
}

// healthy asks once.
func healthy(t *testing.T, w *world) error {
	_, err := healthv1.NewHealthClient(w.dial(t)).Check(t.Context(), &healthv1.HealthCheckRequest{})
	return err
}

// send sends one whole IssueRequest.
func (f *frames) send(id uint32, csr []byte) {
	f.t.Helper()
	m := must(proto.Marshal(&certmillv1.IssueRequest{Csr: csr}))(f.t)
	data := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.window -= int64(len(data))
	f.stream[id] -= int64(len(data))
	must0(f.t, f.framer.WriteData(id, false, data))
}

func TestFiltersThatNoColumnCanHoldAreTheCallersMistake(t *testing.T) {
	w := newWorld(t)
	viewer := w.idp.token(t, "viewer")
	for _, filter := range []string{"name", "owner", "caller"} {
		for _, value := range []string{"\x00", "a\x00b", "\xff", "dns:\n"} {
			r := w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates?" + filter + "=" + url.QueryEscape(value), token: viewer})
			if p := r.problem(t); r.status != 400 || p.Field != filter || p.Rule != "filter_text" {
				t.Errorf("%s=%q: %d %s %s", filter, value, r.status, p.Field, p.Rule)
			}
		}
	}
}
