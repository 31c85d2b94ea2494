package gateway

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

const (
	formType = "application/x-www-form-urlencoded"
	pemType  = "application/x-pem-file"
)

func TestIssue(t *testing.T) {
	w := newWorld(t)
	client, token := w.client(), w.idp.token(t, "alice")
	post := func(c httpCall) httpReply {
		c.method, c.client = http.MethodPost, client
		if c.path == "" {
			c.path = "/v1/certificates"
		}
		if c.token == "" {
			c.token = token
		}
		return w.do(t, c)
	}

	t.Run("curl --data-binary @csr.pem gets a PEM chain that verifies", func(t *testing.T) {
		r := post(httpCall{contentType: formType, body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 200)
		if ct := r.header.Get("Content-Type"); ct != typeChain {
			t.Errorf("Content-Type %q", ct)
		}
		chain := parseChain(t, r.body)
		if len(chain) != 2 {
			t.Errorf("%d certificates, want leaf and issuer", len(chain))
		}
		w.verify(t, chain, "a.example.test")
		for _, part := range []string{"queue;dur=1.500", "prepare;dur=0.020", "hsm;dur=0.070", "commit;dur=0.900", "total;dur="} {
			if st := r.header.Get("Server-Timing"); !strings.Contains(st, part) {
				t.Errorf("Server-Timing %q lacks %q", st, part)
			}
		}
		renew := must(time.Parse(time.RFC3339, r.header.Get("Certmill-Renew-At")))(t)
		life := chain[0].NotAfter.Sub(chain[0].NotBefore)
		if share := float64(renew.Sub(chain[0].NotBefore)) / float64(life); share < 0.54 || share > 0.66 {
			t.Errorf("renewal is advised after %.2f of the life", share)
		}
	})
	t.Run("what is asked for in the query is in the certificate and in the ledger", func(t *testing.T) {
		r := post(httpCall{path: "/v1/certificates?profile=owned&lifetime=2h&owner=team&service=shop&environment=prod", contentType: pemType, body: armour(newCSR(t, nil, "q.example.test"))}).ok(t, 200)
		leaf := parseChain(t, r.body)[0]
		if d := time.Until(leaf.NotAfter); d < 110*time.Minute || d > 121*time.Minute {
			t.Errorf("it lives for another %s", d)
		}
		n := must(parseSerial(r.header.Get("Certmill-Serial")))(t)
		row, _, err := w.book.Certificate(t.Context(), n)
		if err != nil || row.Owner != "team" || row.Service != "shop" || row.Environment != "prod" || row.Caller != w.idp.id("alice") || !bytes.Equal(row.DER, leaf.Raw) {
			t.Errorf("the ledger has %+v, %v", row, err)
		}
	})
	t.Run("DER is taken as application/pkcs10", func(t *testing.T) {
		post(httpCall{contentType: "application/pkcs10", body: newCSR(t, nil, "d.example.test")}).ok(t, 200)
	})
	t.Run("JSON gets JSON that says what the certificate holds", func(t *testing.T) {
		der := newCSR(t, nil, "j.example.test")
		r := post(httpCall{contentType: "application/json; charset=utf-8", body: toJSON(t, map[string]any{
			"csr": base64.StdEncoding.EncodeToString(der), "request_id": "order 7", "lifetime": "3600s", "metadata": map[string]any{"owner": "a \"team\" & <more>"},
		})}).ok(t, 200)
		var out certmillv1.IssueResponse
		r.decode(t, &out)
		c := out.Certificate
		leaf := must(x509.ParseCertificate(c.Der))(t)
		if c.Profile != "server" || c.Issuer != "issuing" || c.Names[0] != "dns:j.example.test" || c.RequestId != "order 7" || c.Metadata.Owner != "a \"team\" & <more>" ||
			!c.NotAfter.AsTime().Equal(leaf.NotAfter) || !c.NotBefore.AsTime().Equal(leaf.NotBefore) || c.Duplicate {
			t.Errorf("got %s", r.body)
		}
		if len(c.Chain) != 1 || !bytes.Equal(c.Chain[0], w.pki.issuing.cert.Raw) {
			t.Error("the chain is not the issuing certificate")
		}
		if r.header.Get("Request-Id") != "order 7" {
			t.Errorf("Request-Id %q", r.header.Get("Request-Id"))
		}
		w.verify(t, parseChain(t, []byte(c.Pem)), "j.example.test")
	})
	t.Run("a CSR in JSON may be PEM, and Accept decides the answer", func(t *testing.T) {
		r := post(httpCall{contentType: typeJSON, header: http.Header{"Accept": {"application/json;q=0.5, application/pem-certificate-chain"}},
			body: toJSON(t, map[string]any{"csr": string(armour(newCSR(t, nil, "p.example.test")))})}).ok(t, 200)
		w.verify(t, parseChain(t, r.body), "p.example.test")
		r = post(httpCall{contentType: pemType, header: http.Header{"Accept": {typeJSON}}, body: armour(newCSR(t, nil, "p.example.test"))}).ok(t, 200)
		r.decode(t, &certmillv1.IssueResponse{})
	})
	t.Run("the same idempotency key gets the same certificate", func(t *testing.T) {
		call := httpCall{contentType: pemType, body: armour(newCSR(t, nil, "i.example.test")), header: http.Header{"Idempotency-Key": {`"key-1"`}, "Accept": {typeJSON}}}
		var first, second certmillv1.IssueResponse
		post(call).ok(t, 200).decode(t, &first)
		post(call).ok(t, 200).decode(t, &second)
		if first.Certificate.Serial != second.Certificate.Serial || !second.Certificate.Duplicate || first.Certificate.Duplicate {
			t.Errorf("%s and %s", first.Certificate.Serial, second.Certificate.Serial)
		}
		call.token = w.idp.token(t, "bob")
		var other certmillv1.IssueResponse
		post(call).ok(t, 200).decode(t, &other)
		if other.Certificate.Serial == first.Certificate.Serial {
			t.Error("another caller with the same key got the same certificate")
		}
	})
	t.Run("the same idempotency key with another CSR is a conflict", func(t *testing.T) {
		header := http.Header{"Idempotency-Key": {"key-2"}}
		post(httpCall{contentType: pemType, header: header, body: armour(newCSR(t, nil, "c.example.test"))}).ok(t, 200)
		r := post(httpCall{contentType: pemType, header: header, body: armour(newCSR(t, nil, "c.example.test"))})
		if p := r.problem(t); r.status != http.StatusConflict || p.Field != "request_id" {
			t.Errorf("got %d %v", r.status, p)
		}
	})
	t.Run("without a key the same CSR gets the same certificate, in PEM and in DER", func(t *testing.T) {
		der := newCSR(t, nil, "s.example.test")
		a := post(httpCall{contentType: pemType, body: armour(der)}).ok(t, 200)
		b := post(httpCall{contentType: "application/pkcs10", body: der}).ok(t, 200)
		if !bytes.Equal(a.body, b.body) {
			t.Error("two certificates for one CSR")
		}
	})
	t.Run("a signer's refusal reaches the caller with its kind and Retry-After", func(t *testing.T) {
		w.signer.setRefuse(overload)
		defer w.signer.setRefuse(nil)
		r := post(httpCall{contentType: pemType, body: armour(newCSR(t, nil, "o.example.test"))})
		r.expect(t, http.StatusTooManyRequests, "", "signers")
		if r.header.Get("Retry-After") != "3" {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	})
	t.Run("a defect is told by its request id alone", func(t *testing.T) {
		w.signer.setRefuse(func(context.Context, *queuev1.SignRequest) error { panic("secret detail") })
		defer w.signer.setRefuse(nil)
		r := post(httpCall{contentType: pemType, body: armour(newCSR(t, nil, "x.example.test"))})
		p := r.problem(t)
		if r.status != 500 || strings.Contains(string(r.body), "secret") || !strings.Contains(w.logs.String(), p.RequestId) || !strings.Contains(w.logs.String(), "secret detail") {
			t.Errorf("got %d %s", r.status, r.body)
		}
	})
	t.Run("Prefer: wait bounds the call", func(t *testing.T) {
		w.signer.setRefuse(func(ctx context.Context, _ *queuev1.SignRequest) error { <-ctx.Done(); return problem.From(ctx.Err()) })
		defer w.signer.setRefuse(nil)
		start := time.Now()
		r := post(httpCall{contentType: pemType, header: http.Header{"Prefer": {"respond-async, wait=1"}}, body: armour(newCSR(t, nil, "w.example.test"))})
		r.expect(t, http.StatusServiceUnavailable, "", "deadline")
		if d := time.Since(start); d < 900*time.Millisecond || d > 5*time.Second {
			t.Errorf("it took %s", d)
		}
	})
	t.Run("every request has one line in the log, without a secret", func(t *testing.T) {
		r := post(httpCall{contentType: pemType, body: armour(newCSR(t, nil, "l.example.test"))}).ok(t, 200)
		id := r.header.Get("Request-Id")
		var lines []string
		for line := range strings.Lines(w.logs.String()) {
			if strings.Contains(line, id) {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 {
			t.Fatalf("%d lines with %s", len(lines), id)
		}
		for _, want := range []string{`"kind":"ok"`, `"route":"issue"`, `"profile":"server"`, `"issuer":"issuing"`, `"caller":"` + w.idp.id("alice"), r.header.Get("Certmill-Serial"), `"duration":`} {
			if !strings.Contains(lines[0], want) {
				t.Errorf("the line lacks %s: %s", want, lines[0])
			}
		}
		if strings.Contains(w.logs.String(), token) {
			t.Error("the log holds a token")
		}
	})
}

func TestABatchFailsOneByOne(t *testing.T) {
	w := newWorld(t)
	good := func(name string) map[string]any {
		return map[string]any{"csr": base64.StdEncoding.EncodeToString(newCSR(t, nil, name)), "request_id": name}
	}
	r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates:batch", contentType: typeJSON, token: w.idp.token(t, "alice"), body: toJSON(t, map[string]any{
		"requests": []any{good("a.example.test"), good("a.elsewhere.test"), map[string]any{"csr": "AAAA"}, good("b.example.test")},
	})}).ok(t, 200)
	var out certmillv1.IssueBatchResponse
	r.decode(t, &out)
	if len(out.Results) != 4 {
		t.Fatalf("%d results", len(out.Results))
	}
	for i, want := range []struct{ id, name, rule string }{{"a.example.test", "dns:a.example.test", ""}, {"a.elsewhere.test", "", "dns_not_allowed"}, {"", "", "csr_encoding"}, {"b.example.test", "dns:b.example.test", ""}} {
		got := out.Results[i]
		if got.GetCertificate() != nil != (want.name != "") || got.GetProblem().GetRule() != want.rule || want.id != "" && got.RequestId != want.id || got.RequestId == "" {
			t.Errorf("result %d is %v", i, got)
		}
		if want.name != "" && got.GetCertificate().Names[0] != want.name {
			t.Errorf("result %d has %v", i, got.GetCertificate().Names)
		}
	}
}

// The hand-written JSON must say what protojson says.
func TestJSONAnswerEqualsProtojson(t *testing.T) {
	w := newWorld(t)
	s := w.gateway.service
	caller := &Caller{}
	caller.ID, caller.Kind = "jwt:x#\u00fc\n\"", "jwt"
	for name, r := range map[string]*certmillv1.IssueRequest{
		"a bare request": {Csr: newCSR(t, nil, "a.example.test")},
		"a full request": {Csr: newCSR(t, nil, "b.example.test", "c.example.test"), RequestId: `id "1" <&>\`, Metadata: &certmillv1.Metadata{Service: "s\u00fc", Environment: "e"}},
		"its repetition": {Csr: nil},
	} {
		if r.Csr == nil {
			r = &certmillv1.IssueRequest{Csr: newCSR(t, nil, "d.example.test")}
			must(s.issue(t.Context(), caller, "first", r))(t)
		}
		i := must(s.issue(t.Context(), caller, "id", r))(t)
		var got certmillv1.IssueResponse
		if err := (protojson.UnmarshalOptions{}).Unmarshal(i.jsonAnswer(), &got); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, i.jsonAnswer())
		}
		if want := (&certmillv1.IssueResponse{Certificate: i.message()}); !proto.Equal(&got, want) {
			t.Errorf("%s: got %v\nwant %v", name, &got, want)
		}
		if name == "its repetition" && !got.Certificate.Duplicate {
			t.Error("no duplicate was made")
		}
	}
}

func TestReadLeafAgreesWithX509(t *testing.T) {
	w := newWorld(t)
	caller := &Caller{}
	caller.ID, caller.Kind = "jwt:x#y", "jwt"
	i := must(w.gateway.service.issue(t.Context(), caller, "id", &certmillv1.IssueRequest{Csr: customCSR(t, nil, &x509.CertificateRequest{
		DNSNames: []string{"a.example.test", "b.example.test"}, IPAddresses: ips("10.1.2.3"),
	})}))(t)
	want := must(x509.ParseCertificate(i.result.Der))(t)
	if !i.leaf.notBefore.Equal(want.NotBefore) || !i.leaf.notAfter.Equal(want.NotAfter) || i.serial.Big().Cmp(want.SerialNumber) != 0 {
		t.Errorf("%+v", i.leaf)
	}
	if got := strings.Join(i.leaf.names, " "); got != "dns:a.example.test dns:b.example.test ip:10.1.2.3" {
		t.Error(got)
	}
	row, _, err := w.book.Certificate(t.Context(), i.serial)
	if err != nil || row.SPKI != i.leaf.spki || strings.Join(row.Names, " ") != strings.Join(i.leaf.names, " ") {
		t.Errorf("the ledger has %v %x, %v", row.Names, row.SPKI, err)
	}
	for n := range len(i.result.Der) {
		if _, err := readLeaf(i.result.Der[:n]); err == nil && n < 200 {
			t.Fatalf("a certificate cut at %d octets was read", n)
		}
	}
}
