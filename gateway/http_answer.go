package gateway

import (
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/problem"
)

// The media types of bodies.
const (
	typeJSON    = "application/json"
	typeProblem = "application/problem+json"
	typeChain   = "application/pem-certificate-chain" // RFC 8555 section 9.1
	typeYAML    = "application/yaml"
)

// form is how an answer is written.
type form uint8

const (
	formJSON form = iota
	formPEM
)

// chooseForm picks the form of an answer by the Accept header (RFC 9110 section
// 12.5.1); where it leaves the choice, preferred is taken.
func chooseForm(accept string, preferred form) (form, error) {
	if accept == "" || accept == "*/*" { // curl and most clients
		return preferred, nil
	}
	best, quality := preferred, 0.0
	for part := range strings.SplitSeq(accept, ",") {
		mediaType, parameters, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := parameters["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil {
				continue
			}
		}
		f, ok := formOf(mediaType, preferred)
		if ok && (q > quality || q == quality && q > 0 && f == preferred) {
			best, quality = f, q
		}
	}
	if quality == 0 {
		return best, httpRejected(http.StatusNotAcceptable, "accept", "media_type", "answers come as "+typeJSON+" or "+typeChain)
	}
	return best, nil
}

func formOf(mediaType string, preferred form) (form, bool) {
	switch mediaType {
	case "*/*":
		return preferred, true
	case typeJSON, "application/*":
		return formJSON, true
	case typeChain, "application/x-pem-file", "text/plain", "text/*":
		return formPEM, true
	}
	return preferred, false
}

var jsonOptions = protojson.MarshalOptions{UseProtoNames: true}

// writeJSON writes a message in protobuf's JSON mapping.
func writeJSON(w http.ResponseWriter, status int, m proto.Message) error {
	body, err := jsonOptions.Marshal(m)
	if err != nil {
		return err
	}
	write(w, status, typeJSON, body)
	return nil
}

// Values that answers share; nothing may change them.
var (
	noStore = []string{"no-store"}
	noSniff = []string{"nosniff"}
)

// write sends a whole answer. A caller who is gone is nobody's failure, so the error
// of Write is dropped.
func write(w http.ResponseWriter, status int, mediaType string, body []byte) {
	h := w.Header()
	h["Content-Type"] = []string{mediaType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = noStore
	}
	h["X-Content-Type-Options"] = noSniff
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// writeProblem sends a failure as RFC 9457's object.
func writeProblem(w http.ResponseWriter, requestID string, err error) {
	e := problem.From(err)
	status := statusOf(err)
	body, merr := jsonOptions.Marshal(problemMessage(err, requestID))
	if merr != nil { // a message of valid strings can always be encoded
		body = []byte("{}")
	}
	h := w.Header()
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(retrySeconds(e.RetryAfter)))
	}
	switch status {
	case http.StatusUnauthorized: // RFC 9110 section 11.6.1, RFC 6750 section 3
		challenge := `Bearer realm="certmill"`
		if e.Rule != "missing" {
			challenge += `, error="invalid_token"`
		}
		h.Set("WWW-Authenticate", challenge)
	case http.StatusRequestEntityTooLarge, http.StatusRequestTimeout:
		// The rest of the body is not worth reading to keep the connection.
		h.Set("Connection", "close")
	}
	write(w, status, typeProblem, body)
}

// retrySeconds rounds up: a header of 0 would ask to come back at once.
func retrySeconds(d time.Duration) int { return max(1, int(math.Ceil(d.Seconds()))) }
