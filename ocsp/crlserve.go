package ocsp

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
)

const (
	crlSuffix = ".crl"
	// crlCheck is how long a CRL is served before Redis is asked whether there is a
	// later one.
	crlCheck = time.Second
	// crlReaders bounds the requests for CRLs that are at Redis.
	crlReaders   = 64
	maxCRLPath   = 1024
	maxCRLsKnown = 16_384
)

// crlServer serves CRLs from Redis (RFC 5280 section 4.2.1.13, RFC 2585). What it has
// it serves within its validity when Redis is down; an expired CRL never.
type crlServer struct {
	store   *Store // set by Run
	maxAge  time.Duration
	timeout time.Duration
	write   time.Duration // for each piece

	requests *prometheus.CounterVec
	readers  chan struct{}
	asking   singleflight.Group

	mu    sync.Mutex // guards what follows
	known map[string]*servedCRL
	bytes int64
	bound int64
}

// servedCRL is a CRL as it was last seen. It is immutable but for checked.
type servedCRL struct {
	CRLInfo
	etag    string
	body    [][]byte // nil: too large to keep
	checked time.Time
}

func newCRLServer(cfg Config, reg prometheus.Registerer) *crlServer {
	s := &crlServer{
		maxAge: cfg.CRLMaxAge, timeout: cfg.RedisTimeout, write: cfg.WriteTimeout, bound: cfg.CRLCacheBytes,
		readers: make(chan struct{}, crlReaders), known: map[string]*servedCRL{},
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "certmill_ocsp_crl_requests_total", Help: "Requests for CRLs by outcome."}, []string{"outcome"}),
	}
	reg.MustRegister(s.requests, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "certmill_ocsp_crl_cache_bytes", Help: "Bytes of CRLs kept; crl_cache_bytes is its bound."}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(s.bytes)
	}))
	return s
}

// errCRLBusy says that too many requests are at Redis.
var errCRLBusy = errors.New("too many requests for CRLs wait for Redis")

func (s *crlServer) serve(w http.ResponseWriter, req *http.Request, now time.Time) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "CRLs are fetched by GET", http.StatusMethodNotAllowed)
		return
	}
	path := req.URL.EscapedPath()
	if len(path) > maxCRLPath {
		s.requests.WithLabelValues("not_found").Inc()
		http.NotFound(w, req)
		return
	}
	c, err := s.find(path, now)
	switch {
	case errors.Is(err, ErrNoCRL):
		s.requests.WithLabelValues("not_found").Inc()
		http.NotFound(w, req)
	case err != nil || c.NextUpdate <= now.Unix():
		s.unavailable(w)
	default:
		s.send(w, req, c, now)
	}
}

func (s *crlServer) unavailable(w http.ResponseWriter) {
	s.requests.WithLabelValues("unavailable").Inc()
	w.Header().Set("Retry-After", "5")
	w.Header()["Cache-Control"] = headerNoCache
	http.Error(w, "the CRL is not available now", http.StatusServiceUnavailable)
}

// find returns the CRL of a path, at most crlCheck old as far as Redis answers.
func (s *crlServer) find(path string, now time.Time) (*servedCRL, error) {
	s.mu.Lock()
	had := s.known[path]
	fresh := had != nil && time.Since(had.checked) < crlCheck
	s.mu.Unlock()
	if fresh {
		return had, nil
	}
	found, err, _ := s.asking.Do(path, func() (any, error) { return s.ask(path, had) })
	if err == nil {
		return found.(*servedCRL), nil //nolint:forcetypeassert // it is ours
	}
	// With Redis away, or emptied and about to be filled again, what is valid still
	// serves.
	if had != nil && had.body != nil && had.NextUpdate > now.Unix() {
		return had, nil
	}
	return nil, err
}

func (s *crlServer) ask(path string, had *servedCRL) (*servedCRL, error) {
	select {
	case s.readers <- struct{}{}:
		defer func() { <-s.readers }()
	default:
		return nil, errCRLBusy
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	info, err := s.store.CRL(ctx, path)
	if err != nil {
		return nil, err
	}
	c := &servedCRL{CRLInfo: info, checked: time.Now()}
	if had != nil && had.Number > info.Number && had.NextUpdate > time.Now().Unix() {
		c.CRLInfo = had.CRLInfo // Redis came back from the past; numbers never do
	}
	if had != nil && had.Digest == c.Digest {
		c.body = had.body
	}
	if c.body == nil && c.Bytes <= s.bound/8 {
		for n := range c.Chunks {
			der, err := s.store.CRLChunk(ctx, &c.CRLInfo, n)
			if err != nil {
				return nil, err
			}
			c.body = append(c.body, der)
		}
	}
	c.etag = `"` + hex.EncodeToString(c.Digest[:]) + `"`
	s.keep(path, c)
	return c, nil
}

// keep remembers a CRL. Over its bound, any others go.
func (s *crlServer) keep(path string, c *servedCRL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(path)
	for other := range s.known {
		if s.bytes+c.kept() <= s.bound && len(s.known) < maxCRLsKnown {
			break
		}
		s.forget(other)
	}
	s.known[path] = c
	s.bytes += c.kept()
}

func (s *crlServer) forget(path string) {
	if c := s.known[path]; c != nil {
		s.bytes -= c.kept()
		delete(s.known, path)
	}
}

func (c *servedCRL) kept() int64 {
	if c.body == nil {
		return 0
	}
	return c.Bytes
}

var headerCRL = []string{"application/pkix-crl"} // RFC 2585 section 4.2

func (s *crlServer) send(w http.ResponseWriter, req *http.Request, c *servedCRL, now time.Time) {
	// The first piece is read before the answer begins: after that a failure can only
	// cut it short.
	var first []byte
	if c.body == nil && req.Method == http.MethodGet {
		var err error
		if first, err = s.chunk(req.Context(), c, 0); err != nil {
			s.unavailable(w)
			return
		}
	}
	h := w.Header()
	h["Content-Type"] = headerCRL
	h["Etag"] = []string{c.etag}
	h["Last-Modified"] = []string{string(appendDate(nil, c.ThisUpdate))}
	h["Expires"] = []string{string(appendDate(nil, c.NextUpdate))}
	age := max(0, min(int64(s.maxAge/time.Second), c.NextUpdate-now.Unix()-1))
	h["Cache-Control"] = []string{"max-age=" + strconv.FormatInt(age, 10) + cacheDirectives}
	if notModified(req.Header, c.etag, c.ThisUpdate) {
		delete(h, "Content-Type")
		s.requests.WithLabelValues("not_modified").Inc()
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h["Content-Length"] = []string{strconv.FormatInt(c.Bytes, 10)}
	s.requests.WithLabelValues("sent").Inc()
	if req.Method == http.MethodHead {
		return
	}
	control := http.NewResponseController(w)
	for n := range c.Chunks {
		der := first
		if n > 0 || der == nil {
			var err error
			if der, err = s.chunk(req.Context(), c, n); err != nil {
				panic(http.ErrAbortHandler) // the client must see that it is not whole
			}
		}
		_ = control.SetWriteDeadline(time.Now().Add(s.write)) // HTTP/2 and 1.1 have one
		if _, err := w.Write(der); err != nil {
			return
		}
	}
}

func (s *crlServer) chunk(ctx context.Context, c *servedCRL, n int) ([]byte, error) {
	if c.body != nil {
		return c.body[n], nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.store.CRLChunk(ctx, &c.CRLInfo, n)
}
