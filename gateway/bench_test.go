package gateway

import (
	"bytes"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/p256x8"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// answered returns an API whose signer answers at once with one certificate, and a CSR.
func answered(b *testing.B) (*httpAPI, string, []byte) {
	p := newPKI(b)
	leaf := p.issuing.issue(b, &x509.Certificate{DNSNames: []string{"a.example.test"}})
	serial := bytes.Repeat([]byte{0x11}, 16)
	api, bearer := newBareAPI(b, fixedSigner{&queuev1.SignResult{Serial: serial, Der: leaf.Certificate[0], IssuerId: 1, QueueUs: 1, PrepareUs: 1, SignUs: 1, CommitUs: 1, ProfileVersion: "0123456789ab"}})
	return api, bearer, armour(newCSR(b, nil, "a.example.test"))
}

// BenchmarkGatewayPEM is the gateway's whole work for one certificate, without TLS,
// HTTP and queue. What is above BenchmarkCSRCheck is its own cost.
func BenchmarkGatewayPEM(b *testing.B)  { benchmarkIssue(b, "") }
func BenchmarkGatewayJSON(b *testing.B) { benchmarkIssue(b, typeJSON) }

func benchmarkIssue(b *testing.B, accept string) {
	api, bearer, body := answered(b)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/v1/certificates?profile=server", bytes.NewReader(body))
		r.Header.Set("Authorization", bearer)
		r.Header.Set("Content-Type", pemType)
		if accept != "" {
			r.Header.Set("Accept", accept)
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}

func BenchmarkCSRCheck(b *testing.B) {
	body := armour(newCSR(b, nil, "a.example.test"))
	b.ReportAllocs()
	for b.Loop() {
		must(csr.Parse(body))(b)
	}
}

// BenchmarkCSRCheckBatch is BenchmarkCSRCheck for eight at a time, as they are checked where
// many come and the processor can.
func BenchmarkCSRCheckBatch(b *testing.B) {
	body := armour(newCSR(b, nil, "a.example.test"))
	b.ReportAllocs()
	for b.Loop() {
		all := make([]*csr.Unverified, p256x8.Width)
		for i := range all {
			all[i] = must(csr.Read(body))(b)
		}
		if r := csr.Proven(all); p256x8.Supported() && r[0] == nil {
			b.Fatal("not proven")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*p256x8.Width), "ns/CSR")
}

func BenchmarkAuthenticateKnownJWT(b *testing.B) {
	api, bearer, _ := answered(b)
	b.ReportAllocs()
	for b.Loop() {
		must(api.auth.authenticate(b.Context(), authCredentials{authorization: bearer}))(b)
	}
}

func BenchmarkDecodeJSON(b *testing.B) {
	_, _, body := answered(b)
	text := toJSON(b, map[string]any{"csr": string(body), "profile": "server", "metadata": map[string]any{"owner": "team"}})
	b.ReportAllocs()
	for b.Loop() {
		must0(b, decodeJSON(text, &certmillv1.IssueRequest{}))
	}
}

// BenchmarkRefusal is what a request beyond the in-flight bound costs.
func BenchmarkRefusal(b *testing.B) {
	api, bearer, body := answered(b)
	must0(b, api.service.inFlight.acquire(int(api.service.inFlight.max)))
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, "/v1/certificates", bytes.NewReader(body))
		r.Header.Set("Authorization", bearer)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code != http.StatusTooManyRequests {
			b.Fatal(w.Body)
		}
	}
}
