package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

// fixedSigner answers without signing: with result, or with a refusal.
type fixedSigner struct{ result *queuev1.SignResult }

func (f fixedSigner) Ready() error { return nil }

func (f fixedSigner) Do(context.Context, *queuev1.SignRequest, queue.Priority, ...string) (*queuev1.SignResult, error) {
	if f.result == nil {
		return nil, problem.Busy("test", time.Second, "nothing is signed here")
	}
	return f.result, nil
}

func (f fixedSigner) Expect(int) {}

func (f fixedSigner) Enqueue(context.Context, *queuev1.SignRequest, queue.Priority, ...string) error {
	return nil
}

// alwaysIssuers is a ledger that knows issuers and nothing else.
type alwaysIssuers struct {
	Ledger
	rows []ledger.Issuer
}

func (a alwaysIssuers) Issuers(context.Context) ([]ledger.Issuer, error) { return a.rows, nil }

func (a alwaysIssuers) CreateOrder(_ context.Context, o ledger.Order) (ledger.Order, bool, error) {
	o.ID, o.State = "00000000-0000-4000-8000-000000000000", ledger.OrderPending
	return o, true, nil
}

// newBareAPI is the REST API without listeners, database and signer, and a token that
// it takes: the gateway's own work alone.
func newBareAPI(t testing.TB, signer Signer) (api *httpAPI, bearer string) {
	t.Helper()
	p, idp := newPKI(t), newIDP(t)
	cfg := validConfig()
	cfg.DefaultProfile, cfg.Auth.JWT = "server", []JWTIssuer{idp.config}
	g := must(New(cfg, Deps{Signer: signer, Registry: prometheus.NewRegistry(), Ledger: alwaysIssuers{rows: []ledger.Issuer{
		{ID: 1, Name: "issuing", State: "active", DER: p.issuing.cert.Raw, Chain: [][]byte{p.root.cert.Raw}},
	}}}))(t)
	g.service.profiles = must(profile.LoadDir("testdata/profiles"))(t)
	must0(t, g.service.issuers.refresh(t.Context()))
	return newHTTPAPI(g.service, g.auth, g.observer, g.Ready), "Bearer " + idp.token(t, "alice")
}

// FuzzRESTBody: whatever is sent, the answer is a success or a problem that blames the
// request, and no place in flight stays taken.
func FuzzRESTBody(f *testing.F) {
	api, bearer := newBareAPI(f, fixedSigner{})
	contentTypes := []string{typeJSON, pemType, "application/pkcs10", formType, "text/plain; charset=utf-8", "application/json; charset=x"}
	paths := []string{"/v1/certificates", "/v1/certificates:batch", "/v1/orders", "/v1/certificates?lifetime=1h&profile=owned&owner=o"}
	csr := newCSR(f, nil, "a.example.test")
	encoded := base64.StdEncoding.EncodeToString(csr)
	for i, body := range []string{
		string(armour(csr)), string(csr), `{"csr":"` + encoded + `"}`, `{"requests":[{"csr":"` + encoded + `","lifetime":"1h"},{}]}`,
		`{"csr":"` + encoded + `","metadata":{"owner":"x"},"request_id":"r","profile":"owned"}`, `{"csr":"` + encoded + `","x":1}`, `{"profile":"a","profile":"b"}`, `[]`, `{}{}`, "",
	} {
		f.Add(uint8(i), uint8(i), []byte(body))
		f.Add(uint8(0), uint8(i), []byte(body))
	}
	f.Fuzz(func(t *testing.T, contentType, path uint8, body []byte) {
		r := httptest.NewRequest(http.MethodPost, paths[int(path)%len(paths)], bytes.NewReader(body))
		r.Header.Set("Authorization", bearer)
		r.Header.Set("Content-Type", contentTypes[int(contentType)%len(contentTypes)])
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		if w.Code >= 400 && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("status %d with a body that is no JSON: %s", w.Code, w.Body)
		}
		if n := api.service.inFlight.used.Load(); n != 0 {
			t.Fatalf("%d places in flight are still taken", n)
		}
	})
}

// FuzzAuthorization: no header but the good one gets anybody in.
func FuzzAuthorization(f *testing.F) {
	api, bearer := newBareAPI(f, fixedSigner{})
	f.Add(bearer)
	f.Add("Bearer " + tokenPrefix)
	f.Add("Bearer eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, header string) {
		if header == bearer || len(header) > 0 && header[:len(header)-1] == bearer[:len(bearer)-1] {
			return // the last character of a signature holds spare bits
		}
		c, err := api.auth.authenticate(t.Context(), authCredentials{authorization: header})
		if err == nil && c.ID != "jwt:https://idp.example.test#alice" {
			t.Fatalf("%q is %s", header, c.ID)
		}
	})
}
