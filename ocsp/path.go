package ocsp

import (
	"encoding/base64"
	"strings"
)

// MaxPathBytes bounds a GET target. RFC 9919 sends at most 255 octets by GET; the
// rest is room for percent-escapes and for a longer request of an older client.
const MaxPathBytes = 4 << 10

// decodeTarget finds the OCSPRequest in the raw target of a GET request (RFC 6960
// appendix A.1) and appends it to dst. target is the request line's, undecoded and
// uncleaned: base64 holds "//", which no router may touch. prefix is where the
// responder is mounted, "/" or "/ocsp/".
//
// Clients send "+" as it is, as %2B, and, through software that takes a path for a
// form, as a space or %20; "/" as it is or as %2F; "=" as it is, as %3D or not at
// all; and one slash more than they should. All of these mean the same request.
func decodeTarget(dst []byte, target, prefix string) ([]byte, error) {
	if len(target) > MaxPathBytes {
		return dst, ErrMalformed
	}
	if !strings.HasPrefix(target, "/") { // absolute-form, as a proxy sends it
		rest, ok := cutScheme(target)
		if !ok {
			return dst, ErrMalformed
		}
		target = rest
	}
	if base := strings.TrimSuffix(prefix, "/"); base != "" {
		rest, ok := strings.CutPrefix(target, base)
		if !ok || !strings.HasPrefix(rest, "/") {
			return dst, ErrMalformed
		}
		target = rest
	}
	// A request is a SEQUENCE, so its base64 starts with "M" and never with a slash.
	target = strings.TrimLeft(target, "/")

	var space [512]byte
	encoded := space[:0]
	for i := 0; i < len(target); i++ {
		c := target[i]
		if c == '%' {
			if i+2 >= len(target) {
				return dst, ErrMalformed
			}
			hi, lo := unhex(target[i+1]), unhex(target[i+2])
			if hi > 15 || lo > 15 {
				return dst, ErrMalformed
			}
			c = hi<<4 | lo
			i += 2
		}
		if c == ' ' {
			c = '+'
		}
		if c == '\r' || c == '\n' { // the decoder would pass over them
			return dst, ErrMalformed
		}
		encoded = append(encoded, c)
	}
	for pad := 0; pad < 2 && len(encoded) > 0 && encoded[len(encoded)-1] == '='; pad++ {
		encoded = encoded[:len(encoded)-1]
	}
	if len(encoded) == 0 {
		return dst, ErrMalformed
	}
	out, err := base64.RawStdEncoding.AppendDecode(dst, encoded)
	if err != nil {
		return dst, ErrMalformed
	}
	return out, nil
}

func cutScheme(target string) (path string, ok bool) {
	_, rest, ok := strings.Cut(target, "://")
	if !ok {
		return "", false
	}
	slash := strings.IndexByte(rest, '/')
	if slash < 0 {
		return "", false
	}
	return rest[slash:], true
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
