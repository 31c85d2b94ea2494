package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func validConfig() Config {
	c := DefaultConfig()
	c.TLS.CertFile, c.TLS.KeyFile, c.ProfilesDir = "c", "k", "p"
	return c
}

func TestConfigNamesEveryKeyThatIsWrong(t *testing.T) {
	if err := validConfig().Validate(); err != nil {
		t.Fatalf("the defaults are wrong: %v", err)
	}
	c := validConfig()
	c.Listen, c.GRPCListen = "nowhere", "x:y:z"
	c.TLS.CertFile, c.ProfilesDir, c.RenewAt = "", "", 1.5
	c.DuplicateWindow, c.RequestIDWindow = 0, 48*time.Hour
	c.Auth.JWT = []JWTIssuer{
		{Issuer: "a#b", JWKSURL: "http://x", Algorithms: []string{"HS256"}, Identity: "{sub", ClockSkew: time.Hour},
		{Issuer: "dup", Audiences: []string{""}, JWKSFile: "f"}, {Issuer: "dup", Audiences: []string{"a"}, JWKSFile: "f", JWKSURL: "https://x"},
	}
	c.Operators = []Operator{{Match: "[", Roles: []string{"root"}}, {}}
	c.Limits.MaxBatch, c.Limits.MaxInFlight, c.Limits.CallTimeout = 257, 10, 2*time.Minute
	c.Orders.SweepBatch, c.Orders.MaxWaiting = 0, 0
	text := fmt.Sprint(c.Validate())
	for _, key := range []string{
		"listen ", "grpc_listen ", "tls.cert_file ", "profiles_dir ", "renew_at ", "duplicate_window ", "request_id_window ",
		"auth.jwt[0].issuer ", "auth.jwt[0].audiences ", "auth.jwt[0].jwks_url ", "auth.jwt[0].algorithms ", "auth.jwt[0].identity ", "auth.jwt[0].clock_skew ",
		"auth.jwt[1].audiences ", "auth.jwt[2].issuer ", "auth.jwt[2] ", "operators[0].match ", "operators[0].roles ", "operators[1].match ",
		"limits.max_batch ", "limits.max_in_flight ", "limits.call_timeout ", "orders.sweep_batch ", "orders.max_waiting ",
	} {
		if !strings.Contains("\n"+text, "\n"+key) {
			t.Errorf("%q is not named in\n%s", key, text)
		}
	}
}

func TestConfigIsReadFromYAML(t *testing.T) {
	c, err := config.Load(validConfig(), config.Source{
		Role: "gateway", Elements: []any{DefaultJWTIssuer()},
		Set: []string{`auth.jwt=[{issuer: "https://i.test", audiences: [a], jwks_file: f}]`, `operators=[{match: "mtls:cn:*", roles: [admin]}]`, "limits.call_timeout=7s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if j := c.Auth.JWT[0]; j.ClockSkew != 30*time.Second || j.Identity != "{sub}" || c.Limits.CallTimeout != 7*time.Second || c.Operators[0].Roles[0] != "admin" {
		t.Errorf("got %+v", c)
	}
}

func TestOperatorsMatchWholeIDs(t *testing.T) {
	operators := []Operator{
		{Match: "mtls:spiffe://example.test/ops/*", Roles: []string{"operator"}}, {Match: "jwt:https://i.test#alice", Roles: []string{"admin", "viewer"}},
		{Match: "mtls:spiffe://example.test/ops/*", Roles: []string{"viewer", "operator"}}, {Match: "mtls:cn:[x]", Roles: []string{"auditor"}},
	}
	for id, want := range map[string]string{
		"mtls:spiffe://example.test/ops/a":   "[operator viewer]",
		"mtls:spiffe://example.test/ops/a/b": "[]",
		"mtls:spiffe://example.test/ops/":    "[operator viewer]",
		"jwt:https://i.test#alice":           "[admin viewer]",
		"jwt:https://i.test#alice2":          "[]",
		"jwt:https://i.test#Alice":           "[]",
		"mtls:cn:[x]":                        "[auditor]",
	} {
		if got := fmt.Sprint(rolesOf(operators, id)); got != want {
			t.Errorf("%s has %s, want %s", id, got, want)
		}
	}
}

func TestIdentityTemplates(t *testing.T) {
	kubernetes := map[string]any{"sub": "system:serviceaccount:shop:web", "kubernetes.io": map[string]any{
		"namespace": "shop", "serviceaccount": map[string]any{"name": "web"}, "evil": "a/sa/b", "dots": "..", "empty": "", "number": 7.0}}
	for template, want := range map[string]string{
		"":      "system:serviceaccount:shop:web",
		"{sub}": "system:serviceaccount:shop:web",
		"spiffe://t/ns/{kubernetes.io/namespace}/sa/{kubernetes.io/serviceaccount/name}": "spiffe://t/ns/shop/sa/web",
		"spiffe://t/{sub}":                   "",
		"spiffe://t/{kubernetes.io/evil}":    "",
		"spiffe://t/{kubernetes.io/dots}":    "",
		"spiffe://t/{kubernetes.io/empty}":   "",
		"spiffe://t/{kubernetes.io/number}":  "",
		"spiffe://t/{kubernetes.io/missing}": "",
		"{sub/x}":                            "",
	} {
		parsed, err := parseIdentity(template)
		if err != nil {
			t.Errorf("%s: %v", template, err)
			continue
		}
		if got, err := parsed.expand(kubernetes); got != want || (err == nil) != (want != "") {
			t.Errorf("%s gives %q, %v; want %q", template, got, err, want)
		}
	}
	for _, bad := range []string{"plain", "{", "}", "{}", "a{b", "{a{b}}", "x}{sub}"} {
		if _, err := parseIdentity(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestChooseForm(t *testing.T) {
	for _, c := range []struct {
		accept    string
		preferred form
		want      form
		ok        bool
	}{
		{"", formPEM, formPEM, true}, {"*/*", formPEM, formPEM, true}, {"*/*", formJSON, formJSON, true},
		{"application/json", formPEM, formJSON, true}, {"application/*", formPEM, formJSON, true}, {"text/plain", formJSON, formPEM, true},
		{"application/json;q=0.1, application/pem-certificate-chain;q=0.2", formJSON, formPEM, true},
		{"application/json, application/x-pem-file", formPEM, formPEM, true}, {"application/json, application/x-pem-file", formJSON, formJSON, true},
		{"image/png", formPEM, 0, false}, {"application/json;q=0", formPEM, 0, false}, {"text/html, */*;q=0.1", formPEM, formPEM, true}, {";;", formPEM, 0, false},
	} {
		got, err := chooseForm(c.accept, c.preferred)
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("%q, %d: %d, %v", c.accept, c.preferred, got, err)
		}
	}
}

// What decodeJSON accepts protojson accepts too, and with the same meaning.
func TestDecodeJSONAgreesWithProtojson(t *testing.T) {
	for _, text := range []string{
		`{}`, `{"csr":"AAEC","profile":"p","lifetime":"3600s","request_id":"r","metadata":{"owner":"o","service":"s","environment":"e"}}`,
		`{"csr":"-_8","profile":null}`, ` { "csr" : "+/8=" } `, `{"profile":"\u00e9\ud83d\ude00"}`, `{"metadata":{}}`, `{"lifetime":"0s"}`,
	} {
		var got, want certmillv1.IssueRequest
		if err := decodeJSON([]byte(text), &got); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		must0(t, protojson.Unmarshal([]byte(text), &want))
		if !proto.Equal(&got, &want) {
			t.Errorf("%s: got %v, want %v", text, &got, &want)
		}
	}
	var token certmillv1.CreateEnrollmentTokenRequest
	must0(t, decodeJSON([]byte(`{"names":["a","b"],"uses":7,"lifetime":"2d"}`), &token))
	if len(token.Names) != 2 || token.Uses != 7 || token.Lifetime.AsDuration() != 48*time.Hour {
		t.Errorf("got %v", &token)
	}
	var revoke certmillv1.RevokeRequest
	must0(t, decodeJSON([]byte(`{"reason":1}`), &revoke))
	if revoke.Reason != certmillv1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE {
		t.Errorf("got %v", &revoke)
	}
	for text, want := range map[string]string{
		`{"profile":"a",}`: "body json_syntax", `{"profile" "a"}`: "body json_syntax", `{profile:"a"}`: "body json_syntax", `{"a":1`: "a unknown_field",
		``: "body json_syntax", `null`: "body json_type", `{"metadata":[]}`: "metadata json_type", `{"metadata":{"owner":{}}}`: "metadata.owner json_type",
		`{"lifetime":5}`: "lifetime json_type", `{"lifetime":"x"}`: "lifetime duration", `{"csr":"AA=A"}`: "csr base64", `{"csr":[1]}`: "csr json_type", `{} x`: "body trailing_data", `{}}`: "body trailing_data",
		`{"csr":"A"}`: "csr base64", `{"profile":"a","profile":"a"}`: "profile duplicate_field", `{"":1}`: " unknown_field",
	} {
		var e *problem.Error
		if e = problem.From(decodeJSON([]byte(text), &certmillv1.IssueRequest{})); e == nil || e.Field+" "+e.Rule != want {
			t.Errorf("%s: %v, want %s", text, e, want)
		}
	}
}

func TestLRUForgetsWhatWasNotUsed(t *testing.T) {
	l := newLRU[int, string](2)
	l.put(1, "a")
	l.put(2, "b")
	l.get(1)
	l.put(3, "c")
	if _, ok := l.get(2); ok || l.len() != 2 {
		t.Error("2 is still there")
	}
	l.put(1, "d")
	if v, ok := l.get(1); !ok || v != "d" {
		t.Errorf("1 is %q", v)
	}
	l.remove(1)
	if _, ok := l.get(1); ok || l.len() != 1 {
		t.Error("1 was not removed")
	}
}

func TestLimiterTakesAllOrNothing(t *testing.T) {
	l := newLimiter("x", 3, time.Second)
	if l.acquire(2) != nil || l.acquire(2) == nil || l.acquire(1) != nil || !l.full() {
		t.Errorf("%d are taken", l.used.Load())
	}
	l.release(3)
	if l.used.Load() != 0 {
		t.Errorf("%d are taken", l.used.Load())
	}
}

func TestTokenNames(t *testing.T) {
	g := &grant{}
	g.token.Names = []string{"a.test", "dns:b.test", "*.w.test", "uri:spiffe://t/x", "spiffe://t/y", "ip:10.0.0.1", "email:a@t.test"}
	for name, want := range map[string]bool{
		"dns:a.test": true, "dns:A.TEST": true, "dns:b.test": true, "dns:x.w.test": true, "dns:w.test": false, "dns:x.y.w.test": false, "dns:*.w.test": true,
		"dns:.w.test": false, "uri:spiffe://t/x": true, "uri:spiffe://t/y": true, "uri:spiffe://t/X": false, "ip:10.0.0.1": true, "ip:10.0.0.10": false, "email:a@t.test": true, "email:A@t.test": false, "dns:10.0.0.1": false,
	} {
		if g.allows(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"3600s": time.Hour, "24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

func TestServerTimingIsInMillisecondsWithThreePlaces(t *testing.T) {
	got := serverTiming(&queuev1.SignResult{QueueUs: 1, PrepareUs: 20, SignUs: 300, CommitUs: 4_005}, 1_234_567*time.Microsecond)
	if want := "queue;dur=0.001, prepare;dur=0.020, hsm;dur=0.300, commit;dur=4.005, total;dur=1234.567"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
