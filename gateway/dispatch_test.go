package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// A mill is a broker, a dispatcher on it and the signers' side of the queue.
type mill struct {
	t        testing.TB
	dir      *local.Dir
	server   *local.NATS
	nats     config.NATS
	cfg      DispatcherConfig
	registry *prometheus.Registry
	signing  func() map[string]time.Time
	d        *Dispatcher
	stop     func() error
	signers  *queue.Conn
}

func newMill(t testing.TB, change func(*mill)) *mill {
	t.Helper()
	m := &mill{t: t, cfg: DefaultDispatcherConfig(), nats: config.DefaultNATS(), registry: prometheus.NewRegistry()}
	var err error
	m.dir, err = local.OpenDir(t.TempDir())
	m.check(err)
	m.startNATS()
	t.Cleanup(func() {
		m.server.Stop()
		m.dir.Close()
	})
	m.nats.URL, m.nats.NKeyFile = m.server.URL(), m.server.NKeyFile()
	m.nats.QueueKeyFile = filepath.Join(t.TempDir(), "queue.key")
	m.check(os.WriteFile(m.nats.QueueKeyFile, []byte(strings.Repeat("a1", 32)), 0o600))
	if change != nil {
		change(m)
	}
	m.signers = m.connect()
	m.start()
	return m
}

func (m *mill) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mill) startNATS() {
	m.t.Helper()
	var err error
	m.server, err = local.StartNATS(m.dir, local.NATSOptions{})
	m.check(err)
}

func (m *mill) connect() *queue.Conn {
	m.t.Helper()
	c, err := queue.Connect(m.nats, "test", nil)
	m.check(err)
	m.t.Cleanup(func() { c.Close(patience(m.t)) })
	m.check(c.Wait(patience(m.t)))
	return c
}

func (m *mill) start() {
	m.t.Helper()
	var err error
	m.d, err = NewDispatcher(m.cfg, DispatcherDeps{Conn: m.connect(), Registry: m.registry, Signing: m.signing})
	m.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.d.Run(ctx) }()
	m.stop = sync.OnceValue(func() error { cancel(); return <-done })
	m.t.Cleanup(func() { m.check(m.stop()) })
	until(m.t, "the dispatcher is ready", func() bool { return m.d.Ready() == nil })
}

// sign serves the queue with answer, one goroutine for each message, until the test ends.
func (m *mill) sign(answer func(r *queuev1.SignRequest) *queuev1.SignResult) {
	m.t.Helper()
	m.signFor("issuing", answer)
}

// signFor is sign for one issuer, until the test or stop ends it.
func (m *mill) signFor(issuer string, answer func(r *queuev1.SignRequest) *queuev1.SignResult) (stop func()) {
	m.t.Helper()
	ctx := patience(m.t)
	m.check(queue.EnsureConsumers(ctx, m.signers.JetStream, m.signers.Settings, issuer))
	var ends []func()
	for _, p := range queue.Priorities {
		c, err := m.signers.JetStream.Consumer(ctx, queue.SignStream, queue.SignConsumer(issuer, p))
		m.check(err)
		cc, err := c.Consume(func(msg jetstream.Msg) { m.serve(msg, answer) })
		m.check(err)
		ends = append(ends, sync.OnceFunc(func() { cc.Stop(); <-cc.Closed() }))
		m.t.Cleanup(ends[len(ends)-1])
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

func (m *mill) serve(msg jetstream.Msg, answer func(*queuev1.SignRequest) *queuev1.SignResult) {
	var batch queuev1.SignBatch
	if err := m.signers.Keys.Open(msg.Subject(), msg.Data(), &batch); err != nil {
		m.t.Errorf("a message of the dispatcher: %v", err)
		return
	}
	var reply queuev1.SignReply
	for _, r := range batch.Requests {
		if res := answer(r); res != nil {
			reply.Results = append(reply.Results, res)
		}
	}
	if to := msg.Headers().Get(queue.HeaderReply); to != "" && len(reply.Results) > 0 {
		if err := m.signers.Publish(to, &reply); err != nil {
			m.t.Errorf("replying: %v", err)
		}
	}
	_ = msg.Ack() // a lost acknowledgement is a redelivery, which the tests allow
}

func millIssued(r *queuev1.SignRequest) *queuev1.SignResult {
	return &queuev1.SignResult{RequestKey: r.RequestKey, CsrSha256: r.CsrSha256, Serial: r.RequestKey, Der: []byte("certificate of " + r.CommonName)}
}

func millFailed(r *queuev1.SignRequest, err error) *queuev1.SignResult {
	return &queuev1.SignResult{RequestKey: r.RequestKey, CsrSha256: r.CsrSha256, Failure: problem.ToFailure(err)}
}

func asking(caller, id string) *queuev1.SignRequest {
	key := ledger.NewRequestKey(caller, id)
	csr := sha256.Sum256([]byte(id))
	return &queuev1.SignRequest{
		RequestKey: key[:], CsrSha256: csr[:], Spki: bytes.Repeat([]byte{1}, 91), Issuer: "issuing", Profile: "workload", CommonName: id,
		Uris: []string{"spiffe://certmill.test/ns/test/sa/" + id}, Caller: &queuev1.Caller{Id: caller},
	}
}

func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (m *mill) value(name string) (sum float64) {
	families, err := m.registry.Gather()
	m.check(err)
	for _, f := range families {
		if f.GetName() == name {
			for _, x := range f.Metric {
				sum += x.GetCounter().GetValue() + x.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// settled checks that nothing is counted any more when nobody waits.
func (m *mill) settled() {
	m.t.Helper()
	for _, g := range []string{"pending", "in_flight", "waiting"} {
		until(m.t, "no leak in "+g, func() bool { return m.value("certmill_gateway_dispatch_"+g) == 0 })
	}
}

func TestManyCallersGetTheirOwnAnswers(t *testing.T) {
	m := newMill(t, nil)
	m.sign(millIssued)
	var wait sync.WaitGroup
	for i := range 500 {
		wait.Go(func() {
			id := strconv.Itoa(i)
			res, err := m.d.Do(patience(t), asking("mtls:"+strconv.Itoa(i%7), id), queue.Priorities[i%2])
			if err != nil || string(res.Der) != "certificate of "+id {
				t.Errorf("%s: %v, %v", id, res, err)
			}
		})
	}
	wait.Wait()
	m.settled()
}

func TestWhatIsExpectedTravelsTogether(t *testing.T) {
	m := newMill(t, nil)
	m.d.cfg.Gather = 64 * time.Minute // as below
	m.sign(millIssued)
	const calls = 20
	m.d.Expect(calls)
	var wait sync.WaitGroup
	for i := range calls {
		wait.Go(func() {
			if _, err := m.d.Do(patience(t), asking("mtls:a", strconv.Itoa(i)), queue.First); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	until(t, "all wait in the lane", func() bool { return m.value("certmill_gateway_dispatch_waiting") == calls })
	m.d.Expect(-calls)
	wait.Wait()
	// A message is counted when the broker has acknowledged it, which may be after the answer.
	until(t, "one message is counted", func() bool { return m.messages() > 0 })
	if n := m.messages(); n != 1 {
		t.Errorf("%d messages for %d requests that were expected", n, calls)
	}
	// Nothing waits for ever for what does not come.
	m.d.cfg.Gather = time.Second
	m.d.Expect(1)
	if _, err := m.d.Do(patience(t), asking("mtls:a", "alone"), queue.First); err != nil {
		t.Error(err)
	}
	m.settled()
}

// While the signers have work a message waits until it is half as large as what they have.
func TestTheBusierTheSignersTheLargerTheMessages(t *testing.T) {
	m := newMill(t, nil)
	// Longer than may be configured, also for the share of it that few requests wait, so
	// that a slow machine changes nothing.
	m.d.cfg.Gather = 64 * time.Minute
	var wait sync.WaitGroup
	asked := 0
	ask := func(n int) {
		for range n {
			asked++
			name := strconv.Itoa(asked)
			wait.Go(func() {
				if _, err := m.d.Do(patience(t), asking("mtls:a", name), queue.First); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	waiting := func(n float64) func() bool {
		return func() bool { return m.value("certmill_gateway_dispatch_waiting") == n }
	}
	messages := uint64(0)
	goes := func(n int) {
		ask(n)
		messages++
		until(t, fmt.Sprintf("%d go together beside what is in flight", n), func() bool { return m.messages() == messages })
	}
	for range 3 { // the first alone, the others beside one and two
		goes(1)
	}
	ask(1)
	until(t, "one waits beside three in flight", waiting(1))
	goes(1)
	ask(2)
	until(t, "two wait beside five", waiting(2))
	goes(1)
	for _, n := range []int{4, 6, 9, 14, 21, 31} { // beside 8, 12, 18, 27, 41, 62
		goes(n)
	}
	goes(queue.MaxBatch)
	ask(queue.MaxBatch - 1)
	until(t, "one fewer than a full message wait beside 125", waiting(queue.MaxBatch-1))
	goes(1)
	ask(7)
	until(t, "seven wait beside 157", waiting(7))
	m.sign(millIssued) // and go when those are answered
	wait.Wait()
	until(t, "the last is counted", func() bool { return m.messages() == messages+1 })
	m.settled()
}

// The wait is for as much as two full messages under way, and a share of it for fewer.
func TestTheFewerAreUnderWayTheShorterAMessageWaits(t *testing.T) {
	d := &Dispatcher{cfg: DispatcherConfig{Gather: 64 * time.Millisecond, MaxBatch: 32}}
	for wait, want := range map[int]time.Duration{0: 0, 1: time.Millisecond, 16: 16 * time.Millisecond, 63: 63 * time.Millisecond, 64: 64 * time.Millisecond, 1000: 64 * time.Millisecond} {
		if d.wait = wait; d.patience() != want {
			t.Errorf("%d under way: %s, not %s", wait, d.patience(), want)
		}
	}
}

// What is expected keeps every lane waiting, and every one goes when it does not come.
func TestAllLanesGoWhenNothingMoreIsExpected(t *testing.T) {
	m := newMill(t, nil)
	m.d.cfg.Gather = 64 * time.Minute
	m.sign(millIssued)
	m.d.Expect(1)
	var wait sync.WaitGroup
	for _, p := range queue.Priorities {
		wait.Go(func() {
			if _, err := m.d.Do(patience(t), asking("mtls:a", string(p)), p); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		})
	}
	until(t, "all lanes wait", func() bool { return m.value("certmill_gateway_dispatch_waiting") == float64(len(queue.Priorities)) })
	m.d.Expect(-1)
	wait.Wait()
	m.settled()
}

// messages returns how many messages went into the queue.
func (m *mill) messages() (n uint64) {
	families, err := m.registry.Gather()
	m.check(err)
	for _, f := range families {
		if f.GetName() == "certmill_queue_batch_requests" {
			n += f.Metric[0].GetHistogram().GetSampleCount()
		}
	}
	return n
}

func TestEqualRequestsAreOneInTheQueue(t *testing.T) {
	m := newMill(t, nil)
	release := make(chan struct{})
	var seen atomic.Int64
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		seen.Add(1)
		<-release
		return millIssued(r)
	})
	var wait sync.WaitGroup
	for range 1000 {
		wait.Go(func() {
			if _, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "all wait", func() bool { return m.value("certmill_gateway_dispatch_pending") == 1000 })
	other := asking("mtls:a", "x")
	other.CsrSha256[0]++
	if _, err := m.d.Do(patience(t), other, queue.First); problem.KindOf(err) != problem.Conflict {
		t.Errorf("another CSR under the same key: %v", err)
	}
	close(release)
	wait.Wait()
	if n := seen.Load(); n != 1 {
		t.Errorf("the signer saw %d requests", n)
	}
	m.settled()
}

func TestWhatTheSignerStatesIsTheError(t *testing.T) {
	m := newMill(t, nil)
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		switch r.CommonName {
		case "denied":
			return millFailed(r, problem.Forbidden("csr.names", "allowed", "not yours"))
		case "duplicate of another CSR":
			res := millIssued(r)
			res.Duplicate, res.CsrSha256 = true, make([]byte, queue.DigestSize)
			return res
		}
		return &queuev1.SignResult{RequestKey: r.RequestKey, CsrSha256: r.CsrSha256}
	})
	for id, want := range map[string]*problem.Error{
		"denied":                   {Kind: problem.Denied, Field: "csr.names", Rule: "allowed"},
		"duplicate of another CSR": {Kind: problem.Conflict},
		"empty":                    {Kind: problem.Internal},
	} {
		if _, err := m.d.Do(patience(t), asking("mtls:a", id), queue.First); !errors.Is(err, want) {
			t.Errorf("%s: %v", id, err)
		}
	}
	m.settled()
}

func TestALateAnswerIsAskedForAgain(t *testing.T) {
	m := newMill(t, nil)
	var tries atomic.Int64
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		if n := tries.Add(1); n == 1 {
			if r.Seen {
				t.Error("the first try is marked as seen")
			}
			return nil // lost
		}
		if !r.Seen {
			t.Error("the second try is not marked as seen")
		}
		return millIssued(r)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := m.d.Do(ctx, asking("mtls:a", "x"), queue.First); err != nil {
		t.Fatal(err)
	}
	if n := m.value("certmill_gateway_dispatch_resends_total"); n != 1 {
		t.Errorf("%g resends", n)
	}
	m.settled()
}

func TestAnotherSignerIsTriedWhenOneCannot(t *testing.T) {
	m := newMill(t, nil)
	var tries atomic.Int64
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		if tries.Add(1) == 1 {
			// Late enough for the broker's acknowledgement to be read before.
			until(t, "the request counts as sent", func() bool {
				m.d.mu.Lock()
				defer m.d.mu.Unlock()
				return m.d.calls[[queue.RequestKeySize]byte(r.RequestKey)].state == sent
			})
			return millFailed(r, problem.Down("hsm", 0, nil))
		}
		return millIssued(r)
	})
	if _, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First); err != nil {
		t.Fatal(err)
	}
}

func TestTheDeadlineIsKept(t *testing.T) {
	m := newMill(t, nil) // no signer
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := m.d.Do(ctx, asking("mtls:a", "x"), queue.First)
	if !errors.Is(err, &problem.Error{Kind: problem.Unavailable, Rule: "deadline"}) {
		t.Errorf("error: %v", err)
	}
	m.settled()
	// What comes later is marked, so that the signer looks before it signs.
	var seen atomic.Bool
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		if r.DeadlineUnixMs < time.Now().UnixMilli() {
			return nil // the first request, which still lies in the queue
		}
		if r.CommonName == "x" {
			seen.Store(r.Seen)
		}
		return millIssued(r)
	})
	if _, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First); err != nil || !seen.Load() {
		t.Errorf("the retry: seen %v, %v", seen.Load(), err)
	}
}

func TestAFullQueueIsToldAtOnce(t *testing.T) {
	m := newMill(t, func(m *mill) { m.nats.MaxPending, m.cfg.MaxBatch = 12, 1 }) // three for each lane
	ctx, cancel := context.WithCancel(patience(t))
	defer cancel()
	var wait sync.WaitGroup
	for i := range 3 { // no signer takes them
		wait.Go(func() { _, _ = m.d.Do(ctx, asking("mtls:a", strconv.Itoa(i)), queue.First) })
	}
	until(t, "the stream is full", func() bool {
		s, err := m.signers.JetStream.Stream(ctx, queue.SignStream)
		return err == nil && s.CachedInfo().State.Msgs == 3
	})
	start := time.Now()
	_, err := m.d.Do(ctx, asking("mtls:a", "one too many"), queue.First)
	var p *problem.Error
	if !errors.As(err, &p) || p.Kind != problem.Overloaded || p.Rule != "queue_full" || p.RetryAfter == 0 {
		t.Errorf("error: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("told after %s", d)
	}
	cancel()
	wait.Wait()
	m.settled()
}

// What piles up at one priority, or for an issuer without a signer, keeps nobody else out.
func TestAFullLaneLeavesRoomForTheOthers(t *testing.T) {
	m := newMill(t, func(m *mill) { m.nats.MaxPending = 12 })
	for i := 0; ; i++ { // no signer takes them
		r := asking("mtls:a", strconv.Itoa(i))
		r.OrderId = "00000000-0000-4000-8000-000000000000"
		if err := m.d.Enqueue(patience(t), r, queue.Batch); errors.Is(err, &problem.Error{Kind: problem.Overloaded, Rule: "queue_full"}) {
			break
		} else if err != nil || i == 12 {
			t.Fatalf("order %d: %v", i, err)
		}
	}
	release := make(chan struct{})
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		if r.OrderId != "" {
			<-release
			return nil
		}
		return millIssued(r)
	})
	if _, err := m.d.Do(patience(t), asking("mtls:b", "x"), queue.First); err != nil {
		t.Errorf("a first certificate beside many orders: %v", err)
	}
	close(release)
}

func TestTheStreamIsMadeAgainWhenItIsGone(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.SampleInterval = 100 * time.Millisecond })
	m.check(m.signers.JetStream.DeleteStream(patience(t), queue.SignStream))
	until(t, "the stream is there again", func() bool {
		_, err := m.signers.JetStream.Stream(patience(t), queue.SignStream)
		return err == nil
	})
	m.sign(millIssued)
	if _, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First); err != nil {
		t.Error(err)
	}
}

// Callers with short patience come and go while the lane is blocked: what they leave
// behind is bounded too.
func TestWhatCallersLeaveBehindIsBounded(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.MaxInFlight, m.cfg.MaxPending = 1, 10 })
	plugged, cancel := context.WithCancel(patience(t))
	var wait sync.WaitGroup
	wait.Go(func() { _, _ = m.d.Do(plugged, asking("mtls:a", "plug"), queue.First) }) // no signer takes it
	until(t, "the plug is in", func() bool { return m.value("certmill_gateway_dispatch_in_flight") == 1 })
	for i := range 1000 {
		ctx, leave := context.WithTimeout(plugged, time.Nanosecond)
		_, _ = m.d.Do(ctx, asking("mtls:b"+strconv.Itoa(i%7), strconv.Itoa(i)), queue.First)
		leave()
	}
	if n := m.value("certmill_gateway_dispatch_waiting"); n > 100 {
		t.Errorf("%g calls that nobody waits for are still held", n)
	}
	cancel()
	wait.Wait()
	m.settled()
}

func TestTheBoundOfWaitingCallsIsKept(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.MaxPending, m.cfg.MaxInFlight = 10, 2 })
	ctx, cancel := context.WithCancel(patience(t))
	defer cancel()
	var wait sync.WaitGroup
	for i := range 10 {
		wait.Go(func() { _, _ = m.d.Do(ctx, asking("mtls:a", strconv.Itoa(i)), queue.First) })
	}
	until(t, "all wait", func() bool { return m.value("certmill_gateway_dispatch_pending") == 10 })
	until(t, "two are sent", func() bool { return m.value("certmill_gateway_dispatch_in_flight") == 2 })
	if n := m.value("certmill_gateway_dispatch_waiting"); n != 8 {
		t.Errorf("%g wait to be sent", n)
	}
	if _, err := m.d.Do(ctx, asking("mtls:b", "x"), queue.First); !errors.Is(err, &problem.Error{Kind: problem.Overloaded, Rule: "gateway_pending"}) {
		t.Errorf("the eleventh: %v", err)
	}
	cancel()
	wait.Wait()
	m.settled()
}

// What is not sent when its caller leaves is never sent.
func TestNobodyIsServedWhoHasLeft(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.MaxInFlight = 1 })
	release := make(chan struct{})
	var served sync.Map
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		served.Store(r.CommonName, true)
		<-release
		return millIssued(r)
	})
	var wait sync.WaitGroup
	wait.Go(func() { _, _ = m.d.Do(patience(t), asking("mtls:a", "plug"), queue.First) })
	until(t, "the plug is in", func() bool { _, ok := served.Load("plug"); return ok })
	ctx, leave := context.WithCancel(patience(t))
	wait.Go(func() { _, _ = m.d.Do(ctx, asking("mtls:a", "gone"), queue.First) })
	until(t, "both wait", func() bool { return m.value("certmill_gateway_dispatch_pending") == 2 })
	leave()
	until(t, "one has left", func() bool { return m.value("certmill_gateway_dispatch_pending") == 1 })
	close(release)
	wait.Wait()
	if _, err := m.d.Do(patience(t), asking("mtls:a", "after"), queue.First); err != nil {
		t.Fatal(err)
	}
	if _, ok := served.Load("gone"); ok {
		t.Error("a request was sent whose caller had left")
	}
	m.settled()
}

func TestCallersTakeTurns(t *testing.T) {
	l := newLane("issuing", queue.First)
	made := func(caller string, n int) *call {
		return &call{caller: caller, encoded: make(queue.Request, 100), key: [16]byte{byte(n)}}
	}
	for i := range 100 {
		l.push(made("flood", i))
	}
	l.push(made("b", 0))
	l.push(made("c", 0))
	l.push(made("c", 1))
	who := func(batch []*call) (s string) {
		for _, c := range batch {
			s += c.caller[:1]
		}
		return s
	}
	if got := who(l.take(8, 1<<20)); got != "fbcfcfff" {
		t.Errorf("turns: %s", got)
	}
	// By size: 100 bytes and a frame of 2 each, so three fit and the fourth opens the next.
	if got := l.take(8, 3*102+50); len(got) != 3 {
		t.Errorf("%d calls in 356 bytes", len(got))
	}
	if got := l.take(8, 1); len(got) != 1 {
		t.Errorf("%d calls where none fits", len(got))
	}
	n := 0
	for batch := l.take(32, 1<<20); len(batch) > 0; batch = l.take(32, 1<<20) {
		n += len(batch)
	}
	if n != 103-8-3-1 || l.waiting != 0 || len(l.flows) != 0 {
		t.Errorf("%d left over, waiting %d, flows %d", n, l.waiting, len(l.flows))
	}
}

func TestABrokerThatComesBackIsABlip(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.DownGrace, m.cfg.PublishTimeout = 10*time.Second, 500*time.Millisecond })
	m.sign(millIssued)
	if _, err := m.d.Do(patience(t), asking("mtls:a", "before"), queue.First); err != nil {
		t.Fatal(err)
	}
	m.server.Stop()
	got := make(chan error, 1)
	go func() {
		_, err := m.d.Do(patience(t), asking("mtls:a", "during"), queue.First)
		got <- err
	}()
	until(t, "the call waits", func() bool { return m.value("certmill_gateway_dispatch_pending") == 1 })
	m.startNATS()
	if err := <-got; err != nil {
		t.Errorf("the call during the restart: %v", err)
	}
	m.settled()
}

func TestABrokerThatStaysAwayIsToldAtOnce(t *testing.T) {
	m := newMill(t, func(m *mill) { m.cfg.DownGrace = 0 })
	m.server.Stop()
	until(t, "the connection is lost", func() bool { return m.d.conn.Ready() != nil })
	start := time.Now()
	_, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First)
	if !errors.Is(err, &problem.Error{Kind: problem.Unavailable, Rule: "nats"}) || time.Since(start) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	if m.d.Ready() == nil {
		t.Error("ready without a broker")
	}
}

func TestForgedAndStrayRepliesAreIgnored(t *testing.T) {
	m := newMill(t, nil)
	asked, release := make(chan struct{}), make(chan struct{})
	m.sign(func(r *queuev1.SignRequest) *queuev1.SignResult {
		close(asked)
		<-release
		return millIssued(r)
	})
	got := make(chan *queuev1.SignResult, 1)
	go func() {
		res, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First)
		if err != nil {
			t.Error(err)
		}
		got <- res
	}()
	<-asked
	evil := millIssued(asking("mtls:a", "x"))
	evil.Der = []byte("evil")
	stranger, err := queue.ParseKeys(strings.Repeat("ee", 32))
	m.check(err)
	forged, err := stranger.Seal(m.d.reply, &queuev1.SignReply{Results: []*queuev1.SignResult{evil}})
	m.check(err)
	m.check(m.signers.NATS.Publish(m.d.reply, forged))
	m.check(m.signers.Publish(m.d.reply, &queuev1.SignReply{Results: []*queuev1.SignResult{millIssued(asking("mtls:b", "stray")), {RequestKey: []byte("short")}}}))
	until(t, "they are counted", func() bool {
		return m.value("certmill_gateway_dispatch_forged_total") == 1 && m.value("certmill_gateway_dispatch_strays_total") == 2
	})
	close(release)
	if res := <-got; string(res.GetDer()) != "certificate of x" {
		t.Errorf("result: %v", res)
	}
}

func TestAnOrderIsHandedOver(t *testing.T) {
	m := newMill(t, nil)
	r := asking("mtls:a", "order")
	if err := m.d.Enqueue(patience(t), r, queue.Batch); problem.KindOf(err) != problem.Internal {
		t.Errorf("without an order: %v", err)
	}
	r.OrderId = "o1"
	m.check(m.d.Enqueue(patience(t), r, queue.Batch))
	m.settled()
	took := make(chan *queuev1.SignRequest, 1)
	c := func(r *queuev1.SignRequest) *queuev1.SignResult { took <- r; return nil }
	m.sign(c)
	if got := <-took; got.OrderId != "o1" || got.DeadlineUnixMs != 0 {
		t.Errorf("order: %v", got)
	}
	// A broker that does not answer: the caller learns that the order may not be there.
	m.server.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := m.d.Enqueue(ctx, r, queue.Batch); problem.KindOf(err) != problem.Unavailable {
		t.Errorf("without a broker: %v", err)
	}
}

func TestShutdownAnswersEverybody(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Run("", func(t *testing.T) {
		m := newMill(t, func(m *mill) { m.cfg.MaxInFlight = 5 })
		errs := make(chan error, 20)
		for i := range cap(errs) {
			go func() {
				_, err := m.d.Do(patience(t), asking("mtls:a", strconv.Itoa(i)), queue.First)
				errs <- err
			}()
		}
		until(t, "all wait", func() bool { return m.value("certmill_gateway_dispatch_pending") == 20 })
		m.check(m.stop())
		for range cap(errs) {
			if err := <-errs; problem.KindOf(err) != problem.Unavailable {
				t.Errorf("a waiter: %v", err)
			}
		}
		if _, err := m.d.Do(patience(t), asking("mtls:a", "x"), queue.First); problem.KindOf(err) != problem.Unavailable {
			t.Errorf("after the end: %v", err)
		}
		m.settled()
	})
	goleak.VerifyNone(t, ignore)
}

func TestRecentKeysAreBounded(t *testing.T) {
	r := newRecentKeys(10)
	key := func(i int) (k [queue.RequestKeySize]byte) { k[0], k[1] = byte(i>>8), byte(i); return k }
	for i := range 1000 {
		if r.add(key(i)) {
			t.Fatalf("%d is known", i)
		}
		if n := len(r.young) + len(r.old); n > 10 {
			t.Fatalf("%d keys are held", n)
		}
	}
	if !r.add(key(999)) || !r.add(key(996)) || r.add(key(1)) {
		t.Error("the last ones are not the known ones")
	}
}

func TestDispatcherConfigNamesEveryWrongKey(t *testing.T) {
	err := DispatcherConfig{ResendBudget: 2, Gather: -1}.Validate()
	for _, key := range []string{"max_pending", "max_in_flight", "max_batch", "max_batch_bytes", "gather", "publishers", "publish_timeout", "call_timeout", "resend_budget", "retry_after", "recent_keys", "sample_interval"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not named in %v", key, err)
		}
	}
	if err := DefaultDispatcherConfig().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

// BenchmarkRoundTrip measures Do against a signer that does nothing, over the real
// broker in the same process.
func BenchmarkRoundTrip(b *testing.B) {
	for _, outstanding := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("outstanding=%d", outstanding), func(b *testing.B) {
			m := newMill(b, nil)
			m.sign(millIssued)
			var next atomic.Int64
			var wait sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range outstanding {
				wait.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
						if _, err := m.d.Do(ctx, asking("mtls:a", strconv.FormatInt(n, 10)), queue.First); err != nil {
							b.Error(err)
						}
						cancel()
					}
				})
			}
			wait.Wait()
		})
	}
}
