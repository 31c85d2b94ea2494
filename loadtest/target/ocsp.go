package target

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	_ "crypto/sha1" // CertIDs (RFC 6960 section 4.1.1)
	_ "crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/loadtest/wire"
)

// StatusRequest asks for the status of one certificate. It is immutable.
type StatusRequest struct {
	Serial *big.Int
	// DER is the OCSPRequest and Path its base64 for GET, percent-escaped.
	DER  []byte
	Path string
}

// MaxStatuses bounds the serials of a run: about 500 bytes each.
const MaxStatuses = 2_000_000

// NewStatusRequest makes the request for a serial of issuer; hash is that of the
// CertID, SHA-1 or SHA-256.
func NewStatusRequest(issuer *x509.Certificate, serial *big.Int, hash crypto.Hash) (*StatusRequest, error) {
	// CreateRequest looks at the serial of the leaf only.
	der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: serial}, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		return nil, fmt.Errorf("making an OCSP request: %w", err)
	}
	return &StatusRequest{Serial: serial, DER: der, Path: url.QueryEscape(base64.StdEncoding.EncodeToString(der))}, nil
}

// ReadStatusRequests makes requests for what r lists: certificates in PEM, or serials
// in hexadecimal, one a line. Certificates of CAs are passed over.
func ReadStatusRequests(r io.Reader, issuer *x509.Certificate, hash crypto.Hash) ([]*StatusRequest, error) {
	in := bufio.NewReader(r)
	start, err := in.Peek(len(pemStart))
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading serials: %w", err)
	}
	var out []*StatusRequest
	add := func(serial *big.Int) error {
		if len(out) == MaxStatuses {
			return fmt.Errorf("there are more than %d serials", MaxStatuses)
		}
		q, err := NewStatusRequest(issuer, serial, hash)
		out = append(out, q)
		return err
	}
	if bytes.Equal(start, pemStart) {
		err = eachLeaf(in, func(c *x509.Certificate) error { return add(c.SerialNumber) })
	} else {
		err = eachSerial(in, add)
	}
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("there is no serial and no leaf certificate to ask about")
	}
	return out, err
}

var pemStart = []byte("-----BEGIN ")

func eachLeaf(r io.Reader, do func(*x509.Certificate) error) error {
	data, err := io.ReadAll(io.LimitReader(r, 4<<30))
	if err != nil {
		return fmt.Errorf("reading certificates: %w", err)
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("reading certificates: %w", err)
		}
		if c.IsCA {
			continue
		}
		if err := do(c); err != nil {
			return err
		}
	}
}

func eachSerial(r io.Reader, do func(*big.Int) error) error {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text := strings.ReplaceAll(strings.TrimSpace(lines.Text()), ":", "")
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		serial, ok := new(big.Int).SetString(text, 16)
		if !ok || serial.Sign() <= 0 || serial.BitLen() > 160 {
			return fmt.Errorf("line %d is not a serial in hexadecimal", n)
		}
		if err := do(serial); err != nil {
			return err
		}
	}
	return lines.Err()
}

// ocspHTTP asks an OCSP responder.
type ocspHTTP struct {
	httpTarget
	path string
	get  bool
}

func openOCSP(c Config, get bool) (Target, error) {
	if err := requireURL(c, "http://127.0.0.1:8080/"); err != nil {
		return nil, err
	}
	headers := http.Header{"Accept": {"application/ocsp-response"}}
	if !get {
		headers.Set("Content-Type", "application/ocsp-request")
	}
	client, path, err := c.http(headers)
	return &ocspHTTP{httpTarget{client}, path + "/", get}, err
}

func openOCSPGet(c Config) (Target, error)  { return openOCSP(c, true) }
func openOCSPPost(c Config) (Target, error) { return openOCSP(c, false) }

func (t *ocspHTTP) Do(ctx context.Context, r *Request) (Answer, error) {
	q := &wire.Request{Method: http.MethodPost, Target: t.path, Body: r.Status.DER, Deadline: r.Deadline}
	if t.get {
		q.Method, q.Target, q.Body = http.MethodGet, t.path+r.Status.Path, nil
	}
	res, err := t.send(ctx, q)
	if err != nil {
		return Answer{}, err
	}
	// OCSPResponseStatus is the first element (RFC 6960 section 4.2.1); what is not
	// "successful" is a refusal, whatever HTTP says.
	if s, ok := responseStatus(res.Body); !ok {
		return Answer{}, failure("answer", "not an OCSP response")
	} else if s != ocsp.Success {
		return Answer{}, failure("ocsp_"+strings.ReplaceAll(s.String(), " ", "_"), "OCSP status %d", s)
	}
	return Answer{OCSP: res.Body, Phases: serverTiming(res.Header["Server-Timing"])}, nil
}

// responseStatus reads SEQUENCE { ENUMERATED … of an OCSPResponse.
func responseStatus(der []byte) (ocsp.ResponseStatus, bool) {
	if len(der) < 5 || der[0] != 0x30 {
		return 0, false
	}
	at := 2
	if der[1] >= 0x80 {
		at += int(der[1] & 0x7f)
	}
	if at+3 > len(der) || der[at] != 0x0a || der[at+1] != 1 {
		return 0, false
	}
	return ocsp.ResponseStatus(der[at+2]), true
}
