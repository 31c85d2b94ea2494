package queue_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/testenv"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var (
	keyA = strings.Repeat("a1", 32)
	keyB = strings.Repeat("b2", 32)
)

func keys(t testing.TB, text ...string) *queue.Keys {
	t.Helper()
	k, err := queue.ParseKeys(strings.Join(text, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func request(n byte) *queuev1.SignRequest {
	return &queuev1.SignRequest{
		RequestKey: bytes.Repeat([]byte{n}, queue.RequestKeySize), CsrSha256: bytes.Repeat([]byte{n}, queue.DigestSize),
		Spki: []byte{0x30, n}, Issuer: "issuing", Profile: "workload", Caller: &queuev1.Caller{Id: "mtls:a"},
		DnsNames: []string{"a.example.test"}, DeadlineUnixMs: 1000,
	}
}

func TestAnEnvelopeOpensOnlyAsItWasSealed(t *testing.T) {
	subject := queue.SignSubject("issuing", queue.First)
	k := keys(t, keyA)
	sealed, err := k.Seal(subject, &queuev1.SignBatch{Requests: []*queuev1.SignRequest{request(1)}})
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte { b := bytes.Clone(sealed); b[i] ^= 1; return b }
	for name, c := range map[string]struct {
		keys    *queue.Keys
		subject string
		data    []byte
		forged  bool
	}{
		"as sealed":             {k, subject, sealed, false},
		"after a key change":    {keys(t, keyB, keyA), subject, sealed, false},
		"by another key":        {keys(t, keyB), subject, sealed, true},
		"moved to an issuer":    {k, queue.SignSubject("other", queue.First), sealed, true},
		"moved to a priority":   {k, queue.SignSubject("issuing", queue.Batch), sealed, true},
		"another version":       {k, subject, flip(0), true},
		"another key id":        {k, subject, flip(1), true},
		"another code":          {k, subject, flip(5), true},
		"another message":       {k, subject, flip(len(sealed) - 1), true},
		"truncated":             {k, subject, sealed[:len(sealed)-1], true},
		"header alone":          {k, subject, sealed[:37], true},
		"shorter than that":     {k, subject, sealed[:10], true},
		"empty":                 {k, subject, nil, true},
		"longer than a message": {k, subject, append(bytes.Clone(sealed), make([]byte, queue.MaxMessageBytes)...), true},
	} {
		t.Run(name, func(t *testing.T) {
			var b queuev1.SignBatch
			err := c.keys.Open(c.subject, c.data, &b)
			if errors.Is(err, queue.ErrForged) != c.forged || (err == nil) == c.forged {
				t.Fatalf("Open: %v", err)
			}
			if err == nil && !proto.Equal(b.Requests[0], request(1)) {
				t.Fatalf("another request came out: %v", &b)
			}
		})
	}
}

func TestAMessageBeyondTheBoundIsNotSealed(t *testing.T) {
	k := keys(t, keyA)
	big := request(1)
	big.DnsNames = []string{strings.Repeat("a", queue.MaxMessageBytes)}
	if _, err := k.Seal("s", big); err == nil {
		t.Error("Seal takes a message beyond the bound")
	}
	r, err := queue.EncodeRequest(big)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.SealBatch("s", []queue.Request{r}); err == nil {
		t.Error("SealBatch takes a message beyond the bound")
	}
}

func TestABatchOfEncodedRequestsIsASignBatch(t *testing.T) {
	k := keys(t, keyA)
	subject := queue.SignSubject("issuing", queue.Renewal)
	a, err := queue.EncodeRequest(request(1))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := queue.EncodeRequest(request(2))
	b = b.SetSeen().SetDeadline(5000).SetTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	sealed, err := k.SealBatch(subject, []queue.Request{a, b})
	if err != nil {
		t.Fatal(err)
	}
	var got queuev1.SignBatch
	if err := k.Open(subject, sealed, &got); err != nil {
		t.Fatal(err)
	}
	second := request(2)
	second.Seen, second.DeadlineUnixMs, second.Traceparent = true, 5000, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if want := (&queuev1.SignBatch{Requests: []*queuev1.SignRequest{request(1), second}}); !proto.Equal(&got, want) {
		t.Fatalf("got %v, want %v", &got, want)
	}
	if n := a.BatchSize() + b.BatchSize() + 37; n != len(sealed) {
		t.Errorf("sizes add up to %d, the message has %d", n, len(sealed))
	}
}

// A presigner has the key for events alone: it can neither forge a request or a reply
// nor is it believed when it tries.
func TestAKeyForEventsServesNothingElse(t *testing.T) {
	both, events := keys(t, keyA, "events "+keyB), keys(t, "events "+keyB)
	event := &queuev1.RevokedEvent{}
	for _, subject := range []string{queue.RevokedSubject("issuing"), queue.IssuedSubject("issuing")} {
		sealed, err := both.Seal(subject, event)
		if err != nil {
			t.Fatal(err)
		}
		if err := events.Open(subject, sealed, &queuev1.RevokedEvent{}); err != nil {
			t.Errorf("an event on %s: %v", subject, err)
		}
		// An event by a gateway that has no key for events yet.
		if sealed, err = keys(t, keyA).Seal(subject, event); err != nil {
			t.Fatal(err)
		}
		if err := both.Open(subject, sealed, &queuev1.RevokedEvent{}); err != nil {
			t.Errorf("an event on %s by the general key: %v", subject, err)
		}
	}
	subject := queue.SignSubject("issuing", queue.First)
	if _, err := events.Seal(subject, &queuev1.SignBatch{}); err == nil {
		t.Error("a key for events seals a request")
	}
	if _, err := events.SealBatch(subject, nil); err == nil {
		t.Error("a key for events seals a batch of requests")
	}
	// The same secret taken for a general one makes what others must refuse.
	forged, err := keys(t, keyB).Seal(subject, &queuev1.SignBatch{})
	if err != nil {
		t.Fatal(err)
	}
	if err := both.Open(subject, forged, &queuev1.SignBatch{}); !errors.Is(err, queue.ErrForged) {
		t.Errorf("a request sealed by the key for events: %v", err)
	}
}

func TestKeyFiles(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "only a comment": "# nothing\n", "short": "abcd", "not hexadecimal": strings.Repeat("zz", 32), "long": keyA + "00",
		"another purpose": "replies " + keyA, "a purpose alone": "events",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := queue.ParseKeys(text); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

func TestRequestsOfAWrongShapeAreRefused(t *testing.T) {
	for name, change := range map[string]func(*queuev1.SignRequest){
		"request_key": func(r *queuev1.SignRequest) { r.RequestKey = r.RequestKey[1:] },
		"csr_sha256":  func(r *queuev1.SignRequest) { r.CsrSha256 = nil },
		"spki":        func(r *queuev1.SignRequest) { r.Spki = make([]byte, queue.MaxSPKI+1) },
		"issuer":      func(r *queuev1.SignRequest) { r.Issuer = "other" },
		"profile":     func(r *queuev1.SignRequest) { r.Profile = "" },
		"caller.id":   func(r *queuev1.SignRequest) { r.Caller = nil },
	} {
		t.Run(name, func(t *testing.T) {
			r := request(1)
			change(r)
			if err := queue.CheckRequest(r, "issuing"); !errors.Is(err, &problem.Error{Kind: problem.Invalid, Field: name}) {
				t.Fatalf("CheckRequest: %v", err)
			}
		})
	}
	if err := queue.CheckRequest(request(1), "issuing"); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if err := queue.CheckBatch(&queuev1.SignBatch{}); err == nil {
		t.Error("an empty batch is accepted")
	}
	if err := queue.CheckBatch(&queuev1.SignBatch{Requests: make([]*queuev1.SignRequest, queue.MaxBatch+1)}); err == nil {
		t.Error("a batch beyond the bound is accepted")
	}
}

func TestASignerSpeaksOnlyToReplySubjects(t *testing.T) {
	for subject, want := range map[string]bool{
		queue.ReplySubject("0a1b2c"): true, "": false, "certmill.reply.": false, "certmill.reply.a.b": false, "certmill.reply.*": false,
		"certmill.reply.>": false, "$JS.API.STREAM.DELETE.CERTMILL_SIGN": false, "certmill.event.revoked.issuing": false,
	} {
		if queue.ValidReply(subject) != want {
			t.Errorf("%q: want %v", subject, want)
		}
	}
}

func TestSignSubjectsParse(t *testing.T) {
	for _, p := range queue.Priorities {
		issuer, got, ok := queue.ParseSignSubject(queue.SignSubject("issuing", p))
		if issuer != "issuing" || got != p || !ok {
			t.Errorf("%s: %q %q %v", p, issuer, got, ok)
		}
	}
	for _, s := range []string{"", "certmill.sign.", "certmill.sign.issuing", "certmill.sign.issuing.fast", "certmill.sign.A.first", "certmill.sign.a.b.first", "x.issuing.first"} {
		if _, _, ok := queue.ParseSignSubject(s); ok {
			t.Errorf("%q parses", s)
		}
	}
}

func TestOnlySampledTracesCrossTheQueue(t *testing.T) {
	const tp = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	ctx, ok := queue.WithTraceParent(context.Background(), tp)
	if !ok || queue.TraceParent(ctx) != tp {
		t.Errorf("%q comes back as %q", tp, queue.TraceParent(ctx))
	}
	if !trace.SpanContextFromContext(ctx).IsRemote() {
		t.Error("the parent is not marked as remote")
	}
	for _, s := range []string{"", "garbage", strings.TrimSuffix(tp, "1") + "0"} {
		if ctx, ok := queue.WithTraceParent(context.Background(), s); ok || queue.TraceParent(ctx) != "" {
			t.Errorf("%q is taken for a sampled trace", s)
		}
	}
}

func connection(t testing.TB, url string) config.NATS {
	t.Helper()
	file := filepath.Join(t.TempDir(), "queue.key")
	if err := os.WriteFile(file, []byte(keyA+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.DefaultNATS()
	cfg.URL, cfg.QueueKeyFile = url, file
	return cfg
}

func connect(t testing.TB, cfg config.NATS) *queue.Conn {
	t.Helper()
	c, err := queue.Connect(cfg, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c.Close(ctx)
	})
	return c
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestManyStartersSettleTheStreams(t *testing.T) {
	cfg := connection(t, testenv.NATS(t))
	ctx := bounded(t)
	first := connect(t, cfg)
	if err := first.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	errs := make(chan error, 32)
	for range cap(errs) / 2 {
		wait.Go(func() {
			errs <- queue.EnsureStreams(ctx, first.JetStream, first.Settings)
			errs <- queue.EnsureConsumers(ctx, first.JetStream, first.Settings, "issuing")
		})
	}
	wait.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}

	// Other settings take effect; the same ones change nothing.
	s := first.Settings
	s.MaxPending, s.AckWait = 7, 9*time.Second
	for range 2 {
		if err := queue.EnsureStreams(ctx, first.JetStream, s); err != nil {
			t.Fatal(err)
		}
		if err := queue.EnsureConsumers(ctx, first.JetStream, s, "issuing"); err != nil {
			t.Fatal(err)
		}
	}
	st, err := first.JetStream.Stream(ctx, queue.SignStream)
	if err != nil || st.CachedInfo().Config.MaxMsgs != 7 || st.CachedInfo().Config.Discard != jetstream.DiscardNew {
		t.Fatalf("stream: %+v, %v", st.CachedInfo().Config, err)
	}
	c, err := first.JetStream.Consumer(ctx, queue.SignStream, queue.SignConsumer("issuing", queue.Renewal))
	if err != nil || c.CachedInfo().Config.AckWait != 9*time.Second {
		t.Fatalf("consumer: %v", err)
	}
}

func TestAConnectionOutlivesItsBroker(t *testing.T) {
	dir, err := local.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	server, err := local.StartNATS(dir, local.NATSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := connection(t, server.URL())
	cfg.NKeyFile = server.NKeyFile()
	server.Stop()

	c := connect(t, cfg) // the broker is away: Connect does not mind
	if err := c.Ready(); problem.KindOf(err) != problem.Unavailable || c.Away() == 0 {
		t.Fatalf("Ready while the broker is away: %v", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Wait(short); problem.KindOf(err) != problem.Unavailable {
		t.Fatalf("Wait while the broker is away: %v", err)
	}
	for round := range 2 {
		if server, err = local.StartNATS(dir, local.NATSOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(bounded(t)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		sub, err := c.NATS.SubscribeSync("echo")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Publish("echo", request(1)); err != nil {
			t.Fatal(err)
		}
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Keys.Open("echo", m.Data, new(queuev1.SignRequest)); err != nil {
			t.Fatal(err)
		}
		if c.Away() != 0 {
			t.Error("Away while the connection stands")
		}
		server.Stop()
	}
}

func TestConnectNamesTheFileThatIsWrong(t *testing.T) {
	good := connection(t, "nats://127.0.0.1:1")
	for key, change := range map[string]func(*config.NATS){
		"nats.queue_key_file": func(c *config.NATS) { c.QueueKeyFile = "/nowhere" },
		"nats.nkey_file":      func(c *config.NATS) { c.NKeyFile = "/nowhere" },
		"nats.ca_file":        func(c *config.NATS) { c.CAFile = c.QueueKeyFile },
		"nats.cert_file":      func(c *config.NATS) { c.CertFile = "/nowhere" },
	} {
		t.Run(key, func(t *testing.T) {
			cfg := good
			change(&cfg)
			if c, err := queue.Connect(cfg, "test", nil); err == nil {
				c.Close(context.Background())
				t.Fatal("connected")
			} else if !strings.Contains(err.Error(), key) {
				t.Fatalf("%v does not name %s", err, key)
			}
		})
	}
}

// A queue without an end, or a message that is handed out for ever, is not to be had.
func TestSettingsWithoutABoundAreRefused(t *testing.T) {
	for key, change := range map[string]func(*config.NATS){
		"nats.replicas":          func(c *config.NATS) { c.Replicas = 0 },
		"nats.max_pending":       func(c *config.NATS) { c.MaxPending = -1 },
		"nats.max_pending_bytes": func(c *config.NATS) { c.MaxPendingBytes = 0 },
		"nats.ack_wait":          func(c *config.NATS) { c.AckWait = 0 },
		"nats.max_deliver":       func(c *config.NATS) { c.MaxDeliver = 0 },
	} {
		cfg := connection(t, "nats://127.0.0.1:1")
		change(&cfg)
		if c, err := queue.Connect(cfg, "test", nil); err == nil {
			c.Close(context.Background())
			t.Errorf("%s is taken", key)
		} else if !strings.Contains(err.Error(), key+" ") {
			t.Errorf("%v does not name %s", err, key)
		}
	}
}

func TestNoErrorShowsTheCredentialsInTheURL(t *testing.T) {
	cfg := connection(t, "")
	for _, url := range []string{
		"nats://user:s3cret@broker:port", "nats://user:s3cret%zz@broker:4222", "nats://s3cret@broker:port",
		"nats://user:s3cret@127.0.0.1:1,nats://broker:port", "user:s3cret@broker:port",
	} {
		cfg.URL = url
		c, err := queue.Connect(cfg, "test", nil)
		if err == nil {
			c.Close(context.Background())
			t.Errorf("connected to %s", url)
		} else if strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "nats.url") {
			t.Errorf("%v", err)
		}
	}
}

func BenchmarkSealBatchOf32(b *testing.B) {
	k := keys(b, keyA)
	var rs []queue.Request
	for i := range queue.MaxBatch {
		r := request(byte(i))
		r.Spki = make([]byte, 91)
		e, err := queue.EncodeRequest(r)
		if err != nil {
			b.Fatal(err)
		}
		rs = append(rs, e)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.SealBatch("certmill.sign.issuing.first", rs); err != nil {
			b.Fatal(err)
		}
	}
}
