package ocsp

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ServeHTTP answers GET, HEAD and POST (RFC 6960 appendix A.1, RFC 9919 sections 5
// and 6). It is a handler and no mux on purpose: base64 in a path holds "//", which
// http.ServeMux would clean away.
//
// CRLs are told by the end of their path: base64 holds no dot.
func (r *Responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if strings.HasSuffix(req.URL.Path, crlSuffix) {
		r.crls.serve(w, req, r.deps.Now())
		return
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	var der []byte
	var err error
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		der, err = decodeTarget(s.in[:0], req.RequestURI, r.cfg.Path)
	case http.MethodPost:
		der, err = r.readBody(w, req, s)
		if err != nil {
			return
		}
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "OCSP is asked by GET or POST", http.StatusMethodNotAllowed)
		return
	}
	a := answer{outcome: outcomeMalformed, body: answerMalformed}
	now := r.deps.Now()
	if err == nil {
		a = r.answer(s, der, now)
	}
	r.write(w, req, s, &a, now)
}

// scratch is the memory of one request.
type scratch struct {
	in      []byte
	out     []byte
	request Request
}

var scratches = sync.Pool{New: func() any {
	return &scratch{in: make([]byte, 0, 1<<10), out: make([]byte, 0, 2<<10)}
}}

// readBody reads the body of a POST. On a failure it has answered.
func (r *Responder) readBody(w http.ResponseWriter, req *http.Request, s *scratch) ([]byte, error) {
	path := req.URL.Path
	if base := strings.TrimSuffix(r.cfg.Path, "/"); base != "" && path != base && !strings.HasPrefix(path, r.cfg.Path) {
		http.NotFound(w, req)
		return nil, errors.New("not the responder's path")
	}
	if req.ContentLength > MaxRequestBytes {
		http.Error(w, "an OCSP request has at most "+strconv.Itoa(MaxRequestBytes)+" bytes", http.StatusRequestEntityTooLarge)
		return nil, errors.New("too large")
	}
	buf := s.in[:0]
	for len(buf) <= MaxRequestBytes {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := req.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			s.in = buf
			if len(buf) > MaxRequestBytes {
				break
			}
			return buf, nil
		}
		if err != nil {
			http.Error(w, "the request did not arrive whole", http.StatusBadRequest)
			return nil, err
		}
	}
	http.Error(w, "an OCSP request has at most "+strconv.Itoa(MaxRequestBytes)+" bytes", http.StatusRequestEntityTooLarge)
	return nil, errors.New("too large")
}

// Header values that every answer has; net/http does not change the slices.
var (
	headerType    = []string{"application/ocsp-response"}
	headerNoCache = []string{"no-cache"}
)

func (r *Responder) write(w http.ResponseWriter, req *http.Request, s *scratch, a *answer, now time.Time) {
	h := w.Header()
	h["Content-Type"] = headerType
	if !a.authoritative() {
		h["Cache-Control"] = headerNoCache
		h["Content-Length"] = []string{strconv.Itoa(len(a.body))}
		r.metrics.requests[a.outcome].Inc()
		if req.Method != http.MethodHead {
			_, _ = w.Write(a.body) // the client has gone if it fails
		}
		return
	}
	etag := string(appendTag(nil, a.body))
	h["Etag"] = []string{etag}
	h["Last-Modified"] = []string{string(appendDate(nil, a.status.ThisUpdate))}
	h["Expires"] = []string{string(appendDate(nil, a.status.NextUpdate))}
	h["Cache-Control"] = []string{"max-age=" + strconv.FormatInt(r.maxAge(&a.status, now.Unix()), 10) + cacheDirectives}
	if req.Method != http.MethodPost && notModified(req.Header, etag, a.status.ThisUpdate) {
		delete(h, "Content-Type")
		r.metrics.requests[outcomeNotModified].Inc()
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h["Content-Length"] = []string{strconv.Itoa(len(a.body))}
	r.metrics.requests[a.outcome].Inc()
	if req.Method != http.MethodHead {
		_, _ = w.Write(a.body) // the client has gone if it fails
	}
}

// cacheDirectives follow max-age (RFC 9919 section 6.2).
const cacheDirectives = ", public, no-transform, must-revalidate"

// appendTag appends the entity tag of an answer: its SHA-256 in hexadecimal.
func appendTag(dst, body []byte) []byte {
	sum := sha256.Sum256(body)
	dst = append(dst, '"')
	dst = hex.AppendEncode(dst, sum[:])
	return append(dst, '"')
}

// appendDate formats Unix seconds as HTTP wants them, in GMT (RFC 9110 section 5.6.7).
func appendDate(dst []byte, unix int64) []byte {
	const days, months = "SunMonTueWedThuFriSat", "JanFebMarAprMayJunJulAugSepOctNovDec"
	t := time.Unix(unix, 0).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	two := func(v int, end byte) { dst = append(dst, byte('0'+v/10), byte('0'+v%10), end) }
	weekday := 3 * int(t.Weekday())
	dst = append(append(dst, days[weekday:weekday+3]...), ", "...)
	two(day, ' ')
	dst = append(append(dst, months[3*month-3:3*month]...), ' ')
	dst = append(dst, byte('0'+year/1000%10), byte('0'+year/100%10))
	two(year%100, ' ')
	two(hour, ':')
	two(minute, ':')
	two(second, ' ')
	return append(dst, "GMT"...)
}

// maxAge is for how many seconds HTTP caches may keep an answer: until its successor
// is ready, never until nextUpdate (RFC 9919 section 6.1), and not longer than the
// operator allows.
func (r *Responder) maxAge(s *Status, now int64) int64 {
	validity, left := s.NextUpdate-s.ThisUpdate, s.NextUpdate-now
	age := s.ThisUpdate + validity*readyAt/100 - now
	if age <= 0 { // the successor is late, or there is none: the certificate expires
		age = min(validity/64, left/2)
	}
	return max(0, min(age, left-1, int64(r.cfg.MaxAge/time.Second)))
}

// notModified evaluates If-None-Match and, without it, If-Modified-Since (RFC 9110
// section 13.2.2).
func notModified(h http.Header, etag string, modified int64) bool {
	if lists := h["If-None-Match"]; len(lists) > 0 {
		for _, list := range lists {
			if matches(list, etag) {
				return true
			}
		}
		return false
	}
	since := h["If-Modified-Since"]
	if len(since) == 0 {
		return false
	}
	t, err := http.ParseTime(since[0])
	return err == nil && modified <= t.Unix()
}

// matches looks for an entity tag in a list, by weak comparison (RFC 9110 section
// 8.8.3.2). Our tags hold no comma.
func matches(list, etag string) bool {
	for list != "" {
		var one string
		one, list, _ = strings.Cut(list, ",")
		one = strings.Trim(one, " \t")
		if one == "*" || strings.TrimPrefix(one, "W/") == etag {
			return true
		}
	}
	return false
}
