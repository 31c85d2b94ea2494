package gateway

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"

	"github.com/certmill/certmill/internal/problem"
)

// readBody reads at most limit bytes. The buffer is the request's own and is never
// used again, since the parsed CSR shares its memory.
func readBody(r *request, limit int64) ([]byte, error) {
	if e := header(r.Request, "Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, httpRejected(http.StatusUnsupportedMediaType, "content-encoding", "content_encoding", "a body must not be compressed")
	}
	if r.ContentLength > limit {
		return nil, tooLarge()
	}
	reader := http.MaxBytesReader(r.w, r.Body, limit)
	var body []byte
	var err error
	if r.ContentLength > 0 {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(reader, body)
	} else {
		body, err = io.ReadAll(reader)
	}
	var large *http.MaxBytesError
	switch {
	case err == nil:
		return body, nil
	case errors.As(err, &large):
		return nil, tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, httpRejected(http.StatusRequestTimeout, "body", "read_timeout", "the body came too slowly")
	default:
		return nil, &problem.Error{Kind: problem.Invalid, Field: "body", Rule: "unreadable", Detail: "the body ended before its stated length", Cause: err}
	}
}

func tooLarge() error {
	return httpRejected(http.StatusRequestEntityTooLarge, "body", "body_max", "the body is larger than this gateway takes")
}

// bodyKind says how the body of an issue request is to be read.
type bodyKind uint8

const (
	bodyJSON bodyKind = iota
	bodyCSR           // a bare CSR in PEM or DER
	bodyPEM           // a bare CSR that must be PEM
)

// kindOfBody judges the Content-Type. curl's --data-binary says
// application/x-www-form-urlencoded unless told otherwise; PEM is taken under that
// name, since nothing else that starts so can be meant.
func kindOfBody(r *request) (bodyKind, error) {
	contentType := header(r.Request, "Content-Type")
	mediaType := contentType
	var parameters map[string]string
	if strings.IndexByte(contentType, ';') >= 0 {
		var err error
		if mediaType, parameters, err = mime.ParseMediaType(contentType); err != nil {
			return 0, unsupported(contentType)
		}
	}
	if c := parameters["charset"]; c != "" && !strings.EqualFold(c, "utf-8") && !strings.EqualFold(c, "us-ascii") {
		return 0, unsupported(contentType)
	}
	switch strings.ToLower(mediaType) {
	case typeJSON:
		return bodyJSON, nil
	case "application/pkcs10", "application/x-pem-file", "application/octet-stream": // RFC 5967
		return bodyCSR, nil
	case "application/x-www-form-urlencoded", "text/plain":
		return bodyPEM, nil
	}
	return 0, unsupported(contentType)
}

func unsupported(contentType string) error {
	detail := "the Content-Type must be application/json, application/pkcs10 or application/x-pem-file"
	if contentType == "" {
		detail += "; there is none"
	}
	return httpRejected(http.StatusUnsupportedMediaType, "content-type", "media_type", detail)
}

// requireJSON is for calls whose body has no other form.
func requireJSON(r *request) error {
	kind, err := kindOfBody(r)
	if err != nil {
		return err
	}
	if kind != bodyJSON {
		return httpRejected(http.StatusUnsupportedMediaType, "content-type", "media_type", "the Content-Type must be application/json")
	}
	return nil
}

var pemStart = []byte("-----BEGIN ")

func looksLikePEM(body []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), pemStart)
}
