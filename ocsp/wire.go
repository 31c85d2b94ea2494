package ocsp

import (
	"bytes"
	"strconv"
)

// wireRequest is an HTTP/1.1 request of the plainest form, read by parseWire.
type wireRequest struct {
	post   bool
	target string // of a GET, as it stands in the request line
	body   []byte // of a POST
	size   int    // octets of the whole request
	close  bool   // the client asks to close the connection
}

// verdict is what parseWire makes of the beginning of a connection's data.
type verdict uint8

const (
	wirePlain   verdict = iota // a whole request of the plain form
	wirePartial                // more must be read
	wireOther                  // net/http must judge it
)

// maxWire bounds what parseWire looks at; a longer request is net/http's.
const maxWire = 4 << 10

// parseWire recognises the requests that nearly all clients send: GET with a path or
// POST with a length, HTTP/1.1, one Host, fields of visible ASCII. It judges nothing:
// whatever departs from that form in the least, right or wrong, is wireOther, and
// net/http decides about it. So it takes no request that net/http would refuse or
// read in another way; TestTheShortWayAgreesWithNetHTTP and FuzzWire hold it to that.
func parseWire(data []byte, path string) (r wireRequest, v verdict) {
	end := bytes.Index(data, []byte("\r\n\r\n"))
	if end > maxWire {
		return r, wireOther
	}
	if end < 0 {
		if len(data) >= maxWire || !mayBePlain(data) {
			return r, wireOther
		}
		return r, wirePartial
	}
	head := data[:end+2] // every line with its CRLF
	line, head, ok := cutLine(head)
	if !ok || !r.requestLine(line, path) {
		return r, wireOther
	}
	length := -1
	hosts := 0
	for len(head) > 0 {
		if line, head, ok = cutLine(head); !ok {
			return r, wireOther
		}
		name, value, ok := field(line)
		if !ok {
			return r, wireOther
		}
		switch {
		case is(name, "host"):
			hosts++
			if !plainHost(value) {
				return r, wireOther
			}
		case is(name, "content-length"):
			if length >= 0 || !r.post {
				return r, wireOther
			}
			if length = number(value); length < 0 {
				return r, wireOther
			}
		case is(name, "connection"):
			switch {
			case is(value, "close"):
				r.close = true
			case !is(value, "keep-alive"):
				return r, wireOther
			}
		case is(name, "user-agent"), is(name, "accept"), is(name, "content-type"), is(name, "accept-encoding"), is(name, "accept-language"):
		default: // conditions, encodings, expectations, and all that we do not know
			return r, wireOther
		}
	}
	if hosts != 1 || r.post != (length >= 0) || length > maxWire {
		return r, wireOther
	}
	r.size = end + 4 + max(length, 0)
	if len(data) < r.size {
		if r.size > maxWire {
			return r, wireOther
		}
		return r, wirePartial
	}
	r.body = data[end+4 : r.size]
	return r, wirePlain
}

// mayBePlain reports whether data can be the beginning of a plain request: if not,
// net/http must have it now, since it may be whole by net/http's rules.
func mayBePlain(data []byte) bool {
	n := min(len(data), 5)
	if string(data[:n]) != "GET /"[:n] && string(data[:n]) != "POST "[:n] {
		return false
	}
	for i, c := range data {
		if c == '\n' && data[i-1] != '\r' {
			return false
		}
	}
	return true
}

// cutLine cuts a line that ends in CRLF and holds no other CR or LF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\r')
	if i < 0 || i+1 >= len(b) || b[i+1] != '\n' || bytes.IndexByte(b[:i], '\n') >= 0 {
		return nil, nil, false
	}
	return b[:i], b[i+2:], true
}

func (r *wireRequest) requestLine(line []byte, path string) bool {
	line, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !ok {
		return false
	}
	target, get := bytes.CutPrefix(line, []byte("GET "))
	if !get {
		if target, r.post = bytes.CutPrefix(line, []byte("POST ")); !r.post || string(target) != path {
			return false
		}
	}
	if len(target) == 0 || target[0] != '/' {
		return false
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '?' || c == '#' {
			return false
		}
	}
	r.target = string(target)
	return true
}

// field reads a header field without spaces around its name.
func field(line []byte) (name, value []byte, ok bool) {
	name, value, ok = bytes.Cut(line, []byte(": "))
	if !ok || len(name) == 0 {
		return nil, nil, false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return nil, nil, false
		}
	}
	for _, c := range value {
		if c < ' ' || c >= 0x7f {
			return nil, nil, false
		}
	}
	return name, value, true
}

// is compares b with a lower-case name.
func is(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// plainHost takes names, addresses and ports, which net/http takes too.
func plainHost(b []byte) bool {
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != ':' && c != '[' && c != ']' {
			return false
		}
	}
	return len(b) > 0
}

// number reads up to five digits.
func number(b []byte) int {
	if len(b) == 0 || len(b) > 5 {
		return -1
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = 10*n + int(c-'0')
	}
	return n
}

// appendAnswer appends the whole HTTP response, with the fields that ServeHTTP sends
// and in the order in which net/http sends them.
func (r *Responder) appendAnswer(dst []byte, a *answer, now int64, date string, last bool) []byte {
	dst = append(dst, "HTTP/1.1 200 OK\r\n"...)
	if a.authoritative() {
		dst = append(dst, "Cache-Control: max-age="...)
		dst = strconv.AppendInt(dst, r.maxAge(&a.status, now), 10)
		dst = append(dst, cacheDirectives+"\r\n"...)
	} else {
		dst = append(dst, "Cache-Control: no-cache\r\n"...)
	}
	if last {
		dst = append(dst, "Connection: close\r\n"...)
	}
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(a.body)), 10)
	dst = append(dst, "\r\nContent-Type: application/ocsp-response\r\nDate: "...)
	dst = append(dst, date...)
	if a.authoritative() {
		dst = append(dst, "\r\nEtag: "...)
		dst = appendTag(dst, a.body)
		dst = append(dst, "\r\nExpires: "...)
		dst = appendDate(dst, a.status.NextUpdate)
		dst = append(dst, "\r\nLast-Modified: "...)
		dst = appendDate(dst, a.status.ThisUpdate)
	}
	dst = append(dst, "\r\n\r\n"...)
	return append(dst, a.body...)
}
