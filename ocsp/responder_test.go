package ocsp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	xocsp "golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// service is a responder on a Redis, and what a presigner would have there.
type service struct {
	*rig
	t     testing.TB
	store *Store
	proxy *ocsptest.Proxy // between the responders and Redis
	clock clock
}

// clock is the time of the responders: the real one, moved.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time                  { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) Advance(d time.Duration)         { c.ahead.Add(int64(d)) }
func redisConfig(addr string) config.Redis       { return config.Redis{Addresses: []string{addr}} }
func (s *service) ctx() context.Context          { return s.t.Context() }
func (s *service) must(err error)                { s.t.Helper(); noError(s.t, err) }
func (s *service) client() redis.UniversalClient { return s.store.client }

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newService(t testing.TB) *service {
	t.Helper()
	addr := testenv.Redis(t)
	s := &service{rig: newRig(t, "p256"), t: t, proxy: ocsptest.NewProxy(t, addr)}
	var err error
	s.store, err = OpenStore(redisConfig(addr), DefaultNamespace)
	noError(t, err)
	t.Cleanup(func() { noError(t, s.store.Close()) })
	s.share()
	return s
}

// share writes the shared entries, and that Redis is complete.
func (s *service) share() {
	s.t.Helper()
	s.must(s.store.PutShared(s.ctx(), &Shared{
		Issuers: map[int32][]byte{1: s.ca.Certificate.Raw},
		Signers: map[int32]SharedSigner{7: {Issuer: 1, DER: s.template.Signer.Raw}},
		Epochs:  map[uint32]int32{testEpoch: 1, testEpoch + 1: 2},
	}))
	s.must(s.store.setComplete(s.ctx(), true))
}

// put writes a record and returns what became of it.
func (s *service) put(n serial.Number, st Status) Written {
	s.t.Helper()
	rec := s.record(s.t, n, st)
	items := []Item{{Serial: n, Record: encode(s.t, &rec)}}
	s.must(s.store.Put(s.ctx(), items))
	return items[0].Written
}

// revoke writes a revoked record and announces it.
func (s *service) revoke(n serial.Number) {
	s.t.Helper()
	rec := s.record(s.t, n, revoked(testGood, 1))
	items := []Item{{Serial: n, Record: encode(s.t, &rec)}}
	s.must(s.store.Put(s.ctx(), items))
	s.must(s.store.AnnounceRevoked(s.ctx(), []Revoked{{Serial: n, Record: items[0].Record, AcknowledgedMS: time.Now().UnixMilli()}}))
}

// running is one responder with its address.
type running struct {
	*Responder
	s   *service
	url string
}

// start runs a responder and waits until it is ready.
func (s *service) start(change ...func(*Config)) *running {
	s.t.Helper()
	cfg := DefaultConfig()
	cfg.Listen, cfg.Redis = "127.0.0.1:0", redisConfig(s.proxy.Addr())
	for _, c := range change {
		c(&cfg)
	}
	r, err := New(cfg, Deps{Now: s.clock.Now})
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		noError(s.t, <-done)
	})
	addr, err := r.Addr(s.ctx())
	s.must(err)
	eventually(s.t, "the responder is ready", func() bool { return r.Ready() == nil })
	return &running{Responder: r, s: s, url: "http://" + addr.String()}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (r *running) request(n serial.Number) []byte {
	return requestSpec{ids: []CertID{r.s.issuer.certID(SHA1, n)}}.der(r.s.t)
}

func (r *running) post(der []byte) *http.Response {
	r.s.t.Helper()
	resp, err := http.Post(r.url+r.cfg.Path, "application/ocsp-request", bytes.NewReader(der))
	r.s.must(err)
	return resp
}

// ask returns "good", "revoked", or the name of an error answer.
func (r *running) ask(n serial.Number) string { return r.askDER(r.request(n)) }

func (r *running) askDER(der []byte) string {
	r.s.t.Helper()
	return r.read(r.post(der))
}

func (r *running) read(resp *http.Response) string {
	r.s.t.Helper()
	body, err := io.ReadAll(resp.Body)
	r.s.must(err)
	r.s.must(resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		return strconv.Itoa(resp.StatusCode)
	}
	got, err := xocsp.ParseResponse(body, r.s.ca.Certificate)
	switch {
	case err != nil:
		return err.Error()
	case got.NextUpdate.Before(r.s.clock.Now()):
		return "expired"
	case got.Status == xocsp.Revoked:
		return "revoked"
	case got.Status == xocsp.Good:
		return "good"
	}
	return "unknown"
}

const (
	tryLater     = "ocsp: error from server: try later"
	unauthorized = "ocsp: error from server: unauthorized"
	malformed    = "ocsp: error from server: malformed"
)

func TestAnswersOverHTTP(t *testing.T) {
	s := newService(t)
	der, encoded := awkward(t, s.issuer)
	var parsed Request
	noError(t, parsed.Parse(der))
	n, err := serial.FromBytes(parsed.CertIDs[0].Serial)
	noError(t, err)
	s.put(n, testGood)
	r := s.start()
	for name, target := range map[string]string{
		"raw": encoded, "escaped": strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(encoded), "one slash more": "/" + encoded,
	} {
		t.Run("GET "+name, func(t *testing.T) {
			// By hand: Go's client cleans no path, but it escapes.
			if got := rawGet(t, r, "GET /"+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); r.read(got) != "good" {
				t.Error("not good")
			}
		})
	}
	t.Run("headers", func(t *testing.T) { checkHeaders(t, r, encoded) })
	t.Run("HTTP/1.0 gets a length and a closed connection", func(t *testing.T) {
		resp := rawGet(t, r, "GET /"+encoded+" HTTP/1.0\r\n\r\n")
		if resp.ContentLength <= 0 || len(resp.TransferEncoding) != 0 || !resp.Close || r.read(resp) != "good" {
			t.Errorf("length %d, encodings %v, close %v", resp.ContentLength, resp.TransferEncoding, resp.Close)
		}
	})
	t.Run("HTTP/2 without TLS", func(t *testing.T) {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetUnencryptedHTTP2(true)
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Post(r.url, "application/ocsp-request", bytes.NewReader(der))
		noError(t, err)
		if resp.ProtoMajor != 2 || r.read(resp) != "good" {
			t.Errorf("HTTP/%d", resp.ProtoMajor)
		}
	})
	t.Run("HEAD", func(t *testing.T) {
		resp, err := http.Head(r.url + "/" + strings.ReplaceAll(encoded, "+", "%2B"))
		noError(t, err)
		noError(t, resp.Body.Close())
		if resp.ContentLength < 100 || resp.Header.Get("ETag") == "" {
			t.Errorf("length %d, header %v", resp.ContentLength, resp.Header)
		}
	})
	t.Run("POST of an unknown length", func(t *testing.T) {
		resp, err := http.Post(r.url, "", struct{ io.Reader }{bytes.NewReader(der)})
		noError(t, err)
		if got := r.read(resp); got != "good" {
			t.Error(got)
		}
	})
	http.DefaultClient.CloseIdleConnections()
}

func rawGet(t *testing.T, r *running, text string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	noError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, text)
	noError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	noError(t, err)
	return resp
}

// checkHeaders holds the answer to RFC 9919 section 6.2.
func checkHeaders(t *testing.T, r *running, encoded string) {
	get := func(header ...string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/"+encoded, nil)
		noError(t, err)
		for i := 0; i < len(header); i += 2 {
			req.Header.Add(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		noError(t, err)
		return resp
	}
	resp := get()
	h := resp.Header
	age, err := strconv.Atoi(strings.TrimPrefix(strings.SplitN(h.Get("Cache-Control"), ",", 2)[0], "max-age="))
	if err != nil || age <= 0 || int64(age) >= testGood.NextUpdate-testNow.Unix() || !strings.HasSuffix(h.Get("Cache-Control"), ", public, no-transform, must-revalidate") {
		t.Errorf("Cache-Control: %s", h.Get("Cache-Control"))
	}
	for key, want := range map[string]string{
		"Content-Type":  "application/ocsp-response",
		"Last-Modified": time.Unix(testGood.ThisUpdate, 0).UTC().Format("Mon, 02 Jan 2006 15:04:05") + " GMT",
		"Expires":       time.Unix(testGood.NextUpdate, 0).UTC().Format("Mon, 02 Jan 2006 15:04:05") + " GMT",
	} {
		if h.Get(key) != want {
			t.Errorf("%s: %q, want %q", key, h.Get(key), want)
		}
	}
	if r.read(resp) != "good" {
		t.Error("not good")
	}
	tag := h.Get("ETag")
	if len(tag) != 66 {
		t.Errorf("ETag: %s", tag)
	}
	before, after := time.Unix(testGood.ThisUpdate-1, 0).UTC().Format(http.TimeFormat), h.Get("Last-Modified")
	for name, c := range map[string]struct {
		header []string
		want   int
	}{
		"the tag":                    {[]string{"If-None-Match", tag}, 304},
		"a list with the tag":        {[]string{"If-None-Match", `"a", W/` + tag + `, "b"`}, 304},
		"two fields":                 {[]string{"If-None-Match", `"a"`, "If-None-Match", tag}, 304},
		"any":                        {[]string{"If-None-Match", "*"}, 304},
		"another tag":                {[]string{"If-None-Match", `"a"`}, 200},
		"another tag, same date":     {[]string{"If-None-Match", `"a"`, "If-Modified-Since", after}, 200},
		"same date":                  {[]string{"If-Modified-Since", after}, 304},
		"earlier date":               {[]string{"If-Modified-Since", before}, 200},
		"a date that is none at all": {[]string{"If-Modified-Since", "yesterday"}, 200},
	} {
		resp := get(c.header...)
		noError(t, resp.Body.Close())
		if resp.StatusCode != c.want || resp.Header.Get("ETag") != tag {
			t.Errorf("%s: %d, ETag %s", name, resp.StatusCode, resp.Header.Get("ETag"))
		}
	}
}

func TestWhatIsNotOursIsUnauthorizedWithoutRedis(t *testing.T) {
	s := newService(t)
	r := s.start()
	n := testSerial(t)
	s.put(n, testGood)
	other := newRig(t, "p256")
	foreign := s.issuer.certID(SHA1, n)
	foreign.NameHash = make([]byte, 20)
	mixed := s.issuer.certID(SHA1, n)
	mixed.KeyHash = []byte(other.issuer.ids[SHA1].key)
	wrongHash := s.issuer.certID(SHA256, n)
	wrongHash.Hash = SHA1
	withSerial := func(b []byte) CertID { id := s.issuer.certID(SHA1, n); id.Serial = b; return id }
	unknownEpoch := ocsptest.Serial(t, 99, testNow, testNow.Add(time.Hour))
	foreignEpoch := ocsptest.Serial(t, testEpoch+1, testNow, testNow.Add(time.Hour))
	expired := ocsptest.Serial(t, testEpoch, testNow.AddDate(0, 0, -10), testNow.AddDate(0, 0, -5))
	before := redisCalls(s)
	for name, spec := range map[string]requestSpec{
		"another issuer":                {ids: []CertID{other.issuer.certID(SHA1, n)}},
		"another name":                  {ids: []CertID{foreign}},
		"another key":                   {ids: []CertID{mixed}},
		"hashes of the other algorithm": {ids: []CertID{wrongHash}},
		"a short serial":                {ids: []CertID{withSerial([]byte{1, 2, 3})}},
		"a long serial":                 {ids: []CertID{withSerial(bytes.Repeat([]byte{0x11}, 20))}},
		"serial 0":                      {ids: []CertID{withSerial([]byte{0})}},
		"an unknown epoch":              {ids: []CertID{withSerial(unknownEpoch[:])}},
		"an epoch of another issuer":    {ids: []CertID{withSerial(foreignEpoch[:])}},
		"an expired certificate":        {ids: []CertID{withSerial(expired[:])}},
		"SHA-384":                       {ids: []CertID{s.issuer.certID(SHA1, n)}, oid: []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2}},
		"a critical extension":          {ids: []CertID{s.issuer.certID(SHA1, n)}, critical: true},
	} {
		if got := r.askDER(spec.der(t)); got != unauthorized {
			t.Errorf("%s: %s", name, got)
		}
	}
	if after := redisCalls(s); after != before {
		t.Errorf("Redis was asked for %d records", after-before)
	}
	if got := r.ask(testSerial(t)); got != unauthorized {
		t.Errorf("never issued: %s", got)
	}
	if after := redisCalls(s); after != before+1 {
		t.Errorf("the counter of calls went from %d to %d, so the test shows nothing", before, after)
	}
}

// redisCalls counts the reads of records that Redis has served.
func redisCalls(s *service) (n int) {
	s.t.Helper()
	text, err := s.client().Info(s.ctx(), "commandstats").Result()
	s.must(err)
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_hget:calls="); ok {
			n, err = strconv.Atoi(strings.SplitN(rest, ",", 2)[0])
			s.must(err)
		}
	}
	return n
}

func TestBadHTTP(t *testing.T) {
	s := newService(t)
	r := s.start(func(c *Config) { c.Path = "/ocsp/" })
	get := func(path string) string {
		resp, err := http.Get(r.url + path)
		noError(t, err)
		return r.read(resp)
	}
	n := testSerial(t)
	s.put(n, testGood)
	encoded := base64.StdEncoding.EncodeToString(r.request(n))
	for path, want := range map[string]string{
		"/ocsp/" + strings.ReplaceAll(encoded, "+", "%2B"): "good", "/ocsp/": malformed, "/ocsp/favicon.ico": malformed, "/ocsp/MAA=": malformed,
	} {
		if got := get(path); got != want {
			t.Errorf("GET %s: %s", path, got)
		}
	}
	for name, c := range map[string]struct {
		body io.Reader
		want string
	}{
		"empty":                  {strings.NewReader(""), malformed},
		"no request":             {strings.NewReader("hello"), malformed},
		"too large":              {bytes.NewReader(make([]byte, MaxRequestBytes+1)), "413"},
		"too large, chunked":     {struct{ io.Reader }{bytes.NewReader(make([]byte, MaxRequestBytes+1))}, "413"},
		"largest, not a request": {bytes.NewReader(make([]byte, MaxRequestBytes)), malformed},
	} {
		resp, err := http.Post(r.url+"/ocsp/", "application/ocsp-request", c.body)
		noError(t, err)
		if resp.StatusCode == 200 && resp.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: Cache-Control %q on an answer that is not signed", name, resp.Header.Get("Cache-Control"))
		}
		if got := r.read(resp); got != c.want {
			t.Errorf("POST %s: %s, want %s", name, got, c.want)
		}
	}
	resp, err := http.Post(r.url+"/elsewhere", "application/ocsp-request", bytes.NewReader(r.request(n)))
	noError(t, err)
	if got := r.read(resp); got != "404" {
		t.Errorf("POST to another path: %s", got)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, r.url+"/ocsp/", strings.NewReader("x"))
	noError(t, err)
	resp, err = http.DefaultClient.Do(req)
	noError(t, err)
	if got := r.read(resp); got != "405" || resp.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("PUT: %s, Allow %q", got, resp.Header.Get("Allow"))
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestSeveralCertIDs(t *testing.T) {
	s := newService(t)
	r := s.start()
	known, gone, unknown := testSerial(t), testSerial(t), testSerial(t)
	s.put(known, testGood)
	s.put(gone, revoked(testGood, 1))
	ask := func(ids ...CertID) string { return r.askDER(requestSpec{ids: ids}.der(t)) }
	id := func(n serial.Number) CertID { return s.issuer.certID(SHA1, n) }
	for name, c := range map[string]struct{ got, want string }{
		"the first is answered":            {ask(id(known), id(gone)), "good"},
		"and not the second":               {ask(id(gone), id(known)), "revoked"},
		"an unknown one is passed over":    {ask(id(unknown), id(known)), "good"},
		"both hashes of one certificate":   {ask(s.issuer.certID(SHA256, known), id(known)), "good"},
		"nothing known":                    {ask(id(unknown), id(testSerial(t))), unauthorized},
		"an issuer that is not ours first": {ask(newRig(t, "p256").issuer.certID(SHA1, known), id(gone)), "revoked"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s", name, c.got)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func ExampleShardOf() {
	n, _ := serial.Parse("1111000000010123456789abcdef0000")
	fmt.Printf("%04x %x\n", ShardOf(n), fieldOf(n))
	// Output: 0123 111100000001456789abcdef0000
}
