package gateway

import (
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/certmill/certmill/internal/serial"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// A revoked certificate must not come back as if nothing were.
func TestARequestWhoseCertificateIsRevokedIsAConflict(t *testing.T) {
	w := newWorld(t)
	alice := w.idp.token(t, "alice")
	body := armour(newCSR(t, nil, "a.example.test"))
	call := httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: alice, body: body}
	first := parseChain(t, w.do(t, call).ok(t, 200).body)[0]
	number := must(serial.FromBig(first.SerialNumber))(t).String()
	if again := parseChain(t, w.do(t, call).ok(t, 200).body)[0]; !again.Equal(first) {
		t.Fatal("a retry got another certificate")
	}
	revoke := func(reason string) httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates/" + number + "/revoke", contentType: typeJSON, token: alice, body: []byte(`{"reason":"` + reason + `"}`)})
	}
	revoke("REVOCATION_REASON_SUPERSEDED").ok(t, 200)

	again := w.do(t, call)
	again.expect(t, http.StatusConflict, "request_id", "revoked")
	if p := again.problem(t); !strings.Contains(p.Detail, number) || !strings.Contains(p.Detail, "superseded") {
		t.Errorf("the refusal says %q", p.Detail)
	}
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t))
	if _, err := ca.Issue(as(t.Context(), alice), &certmillv1.IssueRequest{Csr: body}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("over gRPC: %v", err)
	}
	call.header = http.Header{"Idempotency-Key": {"a new one"}}
	if next := parseChain(t, w.do(t, call).ok(t, 200).body)[0]; next.Equal(first) {
		t.Error("a new request id gets the revoked certificate")
	}

	t.Run("revoking again", func(t *testing.T) {
		revoke("REVOCATION_REASON_SUPERSEDED").ok(t, 200)
		revoke("REVOCATION_REASON_UNSPECIFIED").ok(t, 200)
		other := revoke("REVOCATION_REASON_KEY_COMPROMISE")
		other.expect(t, http.StatusConflict, "reason", "revocation_final")
		if p := other.problem(t); !strings.Contains(p.Detail, "superseded") || !strings.Contains(p.Detail, w.idp.id("alice")) {
			t.Errorf("the refusal says %q", p.Detail)
		}
	})
}
