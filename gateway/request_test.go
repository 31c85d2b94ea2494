package gateway

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// newCSR makes a CSR in DER for DNS names, with a fresh key unless one is given.
func newCSR(t testing.TB, key crypto.Signer, names ...string) []byte {
	t.Helper()
	return customCSR(t, key, &x509.CertificateRequest{DNSNames: names})
}

func customCSR(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	if key == nil {
		key = newKey(t)
	}
	return must(x509.CreateCertificateRequest(rand.Reader, template, key))(t)
}

func armour(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func named(cn string) pkix.Name { return pkix.Name{CommonName: cn} }

// call is one HTTP call of a test.
type httpCall struct {
	method, path, contentType string
	body                      []byte
	token                     string // bearer
	header                    http.Header
	client                    *http.Client
}

// httpReply is its answer.
type httpReply struct {
	status int
	header http.Header
	body   []byte
	tls    *tls.ConnectionState
}

// do makes the call and checks that the answer is one that the OpenAPI document
// describes; for an answer of 2xx the request must be described too.
func (w *world) do(t testing.TB, c httpCall) httpReply {
	t.Helper()
	r := must(http.NewRequestWithContext(t.Context(), c.method, "https://"+w.https+c.path, bytes.NewReader(c.body)))(t)
	if c.header != nil {
		r.Header = c.header.Clone()
	}
	if c.contentType != "" {
		r.Header.Set("Content-Type", c.contentType)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.client == nil {
		c.client = w.client()
	}
	response := must(c.client.Do(r))(t)
	defer func() { _ = response.Body.Close() }()
	reply := httpReply{status: response.StatusCode, header: response.Header, body: must(io.ReadAll(response.Body))(t), tls: response.TLS}
	if reply.header.Get("Request-Id") == "" {
		t.Errorf("%s %s: the answer has no Request-Id", c.method, c.path)
	}
	conforms(t, r, c.body, reply)
	return reply
}

var describedAPI = sync.OnceValues(func() (routers.Router, error) {
	for _, mediaType := range []string{"application/x-pem-file", "application/pkcs10", typeChain, typeYAML} {
		openapi3filter.RegisterBodyDecoder(mediaType, openapi3filter.FileBodyDecoder)
	}
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		return nil, err
	}
	return legacy.NewRouter(doc)
})

func conforms(t testing.TB, r *http.Request, body []byte, reply httpReply) {
	t.Helper()
	router := must(describedAPI())(t)
	plain := r.Clone(t.Context())
	plain.URL.Scheme, plain.URL.Host = "", ""
	plain.URL.Path = strings.Replace(plain.URL.Path, ":revoke", "/revoke", 1)
	plain.Body = io.NopCloser(bytes.NewReader(body))
	route, parameters, err := router.FindRoute(plain)
	if err != nil {
		if reply.status != http.StatusNotFound && reply.status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s answered %d and is not in the OpenAPI document: %v", r.Method, r.URL.Path, reply.status, err)
		}
		return
	}
	input := &openapi3filter.RequestValidationInput{
		Request: plain, PathParams: parameters, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}
	if r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
		input.Options.ExcludeRequestBody = true // the validator would parse a form
	}
	if reply.status < 300 {
		if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
			t.Errorf("%s %s succeeded, and the OpenAPI document does not allow the request: %v", r.Method, r.URL.Path, err)
		}
	}
	output := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: reply.status, Header: reply.header, Options: input.Options}
	output.SetBodyBytes(reply.body)
	if err := openapi3filter.ValidateResponse(t.Context(), output); err != nil {
		t.Errorf("%s %s: the answer %d is not as the OpenAPI document says: %v\n%s", r.Method, r.URL.Path, reply.status, err, reply.body)
	}
}

// problemOf reads a problem+json answer.
func (r httpReply) problem(t testing.TB) *certmillv1.Problem {
	t.Helper()
	if ct := r.header.Get("Content-Type"); ct != typeProblem {
		t.Fatalf("status %d with Content-Type %q, not a problem: %s", r.status, ct, r.body)
	}
	var p certmillv1.Problem
	r.decode(t, &p)
	if int(p.Status) != r.status {
		t.Errorf("the problem says status %d, the answer %d", p.Status, r.status)
	}
	return &p
}

func (r httpReply) decode(t testing.TB, m proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal(r.body, m); err != nil {
		t.Fatalf("status %d: %v: %s", r.status, err, r.body)
	}
}

// expect fails unless the answer is the refusal given.
func (r httpReply) expect(t testing.TB, status int, field, rule string) {
	t.Helper()
	p := r.problem(t)
	if r.status != status || p.Field != field || p.Rule != rule {
		t.Errorf("got %d field %q rule %q (%s), want %d %q %q", r.status, p.Field, p.Rule, p.Detail, status, field, rule)
	}
}

// ok fails unless the answer has this status.
func (r httpReply) ok(t testing.TB, status int) httpReply {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	return r
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	return must(json.Marshal(v))(t)
}

// parseChain reads a PEM answer, leaf first.
func parseChain(t testing.TB, data []byte) []*x509.Certificate {
	t.Helper()
	chain := must(parsePEMCertificates(data))(t)
	if len(chain) == 0 {
		t.Fatalf("no certificate in %q", data)
	}
	return chain
}

// verify checks a chain against the root that the gateway's CA has.
func (w *world) verify(t testing.TB, chain []*x509.Certificate, dnsName string) {
	t.Helper()
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), DNSName: dnsName}
	options.Roots.AddCert(w.pki.root.cert)
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(options); err != nil {
		t.Error(err)
	}
}
