package gateway

import (
	"context"
	_ "embed"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/problem"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// openAPI describes the REST API (OpenAPI 3.1); tests hold it against the handlers.
//
//go:embed openapi.yaml
var openAPI []byte

func newHTTPAPI(s *service, auth *authenticator, o *observer, ready func() error) *httpAPI {
	h := &httpAPI{service: s, auth: auth, observer: o, ready: ready}
	one := func(method string, e *endpoint) *resource { return newResource(map[string]*endpoint{method: e}) }
	h.exact = map[string]*resource{
		"/v1/certificates": newResource(map[string]*endpoint{
			http.MethodPost: {route: routeIssue, serve: h.issue},
			http.MethodGet:  {route: routeListCertificates, serve: h.listCertificates},
		}),
		"/v1/certificates:batch": one(http.MethodPost, &endpoint{route: routeBatch, serve: h.issueBatch}),
		"/v1/orders":             one(http.MethodPost, &endpoint{route: routeSubmit, serve: h.submit}),
		"/v1/trust-bundle":       one(http.MethodGet, &endpoint{route: routeTrustBundle, serve: h.trustBundle, open: true}),
		"/v1/enrollment-tokens": newResource(map[string]*endpoint{
			http.MethodPost: {route: routeCreateToken, serve: h.createToken},
			http.MethodGet:  {route: routeListTokens, serve: h.listTokens},
		}),
		"/v1/early-renewals": newResource(map[string]*endpoint{
			http.MethodPost: {route: routeRenewEarly, serve: h.renewEarly},
			http.MethodGet:  {route: routeListEarlyRenewals, serve: h.listEarlyRenewals},
		}),
		"/v1/audit":     one(http.MethodGet, &endpoint{route: routeAudit, serve: h.listAudit}),
		"/v1/status":    one(http.MethodGet, &endpoint{route: routeStatus, serve: h.getStatus, unbounded: true}),
		"/openapi.yaml": one(http.MethodGet, &endpoint{route: routeOpenAPI, serve: h.openAPI, open: true, unbounded: true}),
		"/healthz":      one(http.MethodGet, &endpoint{route: routeHealth, serve: h.health, open: true, unbounded: true}),
		"/readyz":       one(http.MethodGet, &endpoint{route: routeReady, serve: h.readiness, open: true, unbounded: true}),
	}
	h.below = []*collection{
		{
			prefix: "/v1/certificates/",
			item:   one(http.MethodGet, &endpoint{route: routeGetCertificate, serve: h.getCertificate}),
			actions: map[string]*resource{
				"revoke":  one(http.MethodPost, &endpoint{route: routeRevoke, serve: h.revoke}),
				"renewal": one(http.MethodGet, &endpoint{route: routeRenewalInfo, serve: h.renewalInfo}),
			},
		},
		// A waiting caller holds a place among the waiters, not in flight.
		{prefix: "/v1/orders/", item: one(http.MethodGet, &endpoint{route: routeGetOrder, serve: h.getOrder, unbounded: true})},
		{prefix: "/v1/spiffe-bundles/", item: one(http.MethodGet, &endpoint{route: routeSPIFFEBundle, serve: h.spiffeBundle, open: true})},
		{prefix: "/v1/enrollment-tokens/", item: one(http.MethodDelete, &endpoint{route: routeDeleteToken, serve: h.deleteToken})},
		{prefix: "/v1/early-renewals/", item: one(http.MethodDelete, &endpoint{route: routeEndEarlyRenewal, serve: h.endEarlyRenewal})},
	}
	return h
}

func (h *httpAPI) issue(ctx context.Context, x *exchange, w http.ResponseWriter, r *request) error {
	in, kind, err := h.readIssue(r)
	if err != nil {
		return err
	}
	preferred := formPEM
	if kind == bodyJSON {
		preferred = formJSON
	}
	answer, err := chooseForm(header(r.Request, "Accept"), preferred)
	if err != nil {
		return err
	}
	x.about(in)
	w.Header()["Request-Id"] = []string{x.requestID}
	i, err := h.service.issue(ctx, r.caller, x.requestID, in)
	if err != nil {
		return err
	}
	x.issued = i
	headers := w.Header()
	headers["Server-Timing"] = []string{serverTiming(i.result, time.Since(x.started))}
	serial := i.serial.String()
	headers["Content-Location"] = []string{"/v1/certificates/" + serial}
	headers["Certmill-Serial"] = []string{serial}
	headers["Certmill-Renew-At"] = []string{i.renewAt.UTC().Format(time.RFC3339)}
	if answer == formPEM {
		write(w, http.StatusOK, typeChain, i.pem())
		return nil
	}
	write(w, http.StatusOK, typeJSON, i.jsonAnswer())
	return nil
}

// readIssue reads what is asked for: a JSON object, or a bare CSR with the rest in the
// query. The idempotency key may stand in a header either way.
func (h *httpAPI) readIssue(r *request) (*certmillv1.IssueRequest, bodyKind, error) {
	kind, err := kindOfBody(r)
	if err != nil {
		return nil, kind, err
	}
	in := &certmillv1.IssueRequest{}
	if kind == bodyJSON {
		_, err = parseQuery(r.URL.RawQuery)
	} else {
		err = issueQuery(r.URL.RawQuery, in)
	}
	if err != nil {
		return nil, kind, err
	}
	body, err := readBody(r, h.service.cfg.Limits.MaxBodyBytes)
	if err != nil {
		return nil, kind, err
	}
	switch {
	case kind == bodyJSON:
		if err := decodeJSON(body, in); err != nil {
			return nil, kind, err
		}
	case kind == bodyPEM && !looksLikePEM(body):
		return nil, kind, httpRejected(http.StatusUnsupportedMediaType, "content-type", "media_type", "a body of this Content-Type must be PEM; send DER as application/pkcs10")
	default:
		in.Csr = body
	}
	return in, kind, idempotencyKey(r, in)
}

func issueQuery(raw string, in *certmillv1.IssueRequest) error {
	q, err := parseQuery(raw, "profile", "lifetime", "owner", "service", "environment")
	if err != nil || q == nil {
		return err
	}
	if in.Lifetime, err = q.duration("lifetime"); err != nil {
		return err
	}
	in.Profile = q.text("profile")
	in.Metadata = metadataMessage(q.text("owner"), q.text("service"), q.text("environment"))
	return nil
}

// idempotencyKey takes the Idempotency-Key header, which its draft writes as a quoted
// string and many clients do not.
func idempotencyKey(r *request, in *certmillv1.IssueRequest) error {
	values := r.Header["Idempotency-Key"]
	if len(values) == 0 {
		return nil
	}
	key := values[0]
	if len(key) >= 2 && strings.HasPrefix(key, `"`) && strings.HasSuffix(key, `"`) {
		key = key[1 : len(key)-1]
	}
	if len(values) > 1 || !printable(key, maxRequestID) || in.RequestId != "" && in.RequestId != key {
		return problem.Rejected("idempotency-key", "request_id_format", "an idempotency key is at most 128 bytes of printable ASCII, given once")
	}
	in.RequestId = key
	return nil
}

func (h *httpAPI) issueBatch(ctx context.Context, x *exchange, w http.ResponseWriter, r *request) error {
	var in certmillv1.IssueBatchRequest
	if err := h.readMessage(r, h.service.cfg.Limits.MaxBatchBytes, &in); err != nil {
		return err
	}
	x.items = len(in.Requests)
	results, err := h.service.issueMany(ctx, r.caller, in.Requests)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, &certmillv1.IssueBatchResponse{Results: results})
}

// readMessage reads a body that is JSON and nothing else, from a call without parameters.
func (h *httpAPI) readMessage(r *request, limit int64, m proto.Message) error {
	if err := requireJSON(r); err != nil {
		return err
	}
	if _, err := parseQuery(r.URL.RawQuery); err != nil {
		return err
	}
	body, err := readBody(r, limit)
	if err != nil {
		return err
	}
	return decodeJSON(body, m)
}

func (h *httpAPI) submit(ctx context.Context, x *exchange, w http.ResponseWriter, r *request) error {
	in, _, err := h.readIssue(r)
	if err != nil {
		return err
	}
	x.about(in)
	w.Header()["Request-Id"] = []string{x.requestID}
	order, err := h.service.submit(ctx, r.caller, in)
	if err != nil {
		return err
	}
	w.Header()["Location"] = []string{"/v1/orders/" + order.Id}
	return writeJSON(w, http.StatusAccepted, order)
}

func (h *httpAPI) getOrder(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	q, err := parseQuery(r.URL.RawQuery, "wait")
	if err != nil {
		return err
	}
	in := &certmillv1.GetOrderRequest{Id: r.id}
	if in.Wait, err = q.duration("wait"); err != nil {
		return err
	}
	answer, err := chooseForm(header(r.Request, "Accept"), formJSON)
	if err != nil {
		return err
	}
	order, err := h.service.getOrder(ctx, r.caller, in)
	if err != nil {
		return err
	}
	if order.State == certmillv1.Order_STATE_PENDING {
		w.Header().Set("Retry-After", "1")
	}
	if answer == formPEM && order.Certificate != nil {
		write(w, http.StatusOK, typeChain, []byte(order.Certificate.Pem))
		return nil
	}
	return writeJSON(w, http.StatusOK, order)
}

func (h *httpAPI) revoke(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	in := &certmillv1.RevokeRequest{}
	if r.ContentLength != 0 { // no body: for no stated reason
		if err := h.readMessage(r, h.service.cfg.Limits.MaxBodyBytes, in); err != nil {
			return err
		}
	}
	if in.Serial != "" && in.Serial != r.id {
		return problem.Rejected("serial", "serial_path", "the serial in the body is not the one in the path")
	}
	in.Serial = r.id
	out, err := h.service.revoke(ctx, r.caller, in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) getCertificate(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	if _, err := parseQuery(r.URL.RawQuery); err != nil {
		return err
	}
	answer, err := chooseForm(header(r.Request, "Accept"), formJSON)
	if err != nil {
		return err
	}
	out, err := h.service.getCertificate(ctx, r.caller, &certmillv1.GetCertificateRequest{Serial: r.id})
	if err != nil {
		return err
	}
	if answer == formPEM {
		write(w, http.StatusOK, typeChain, []byte(out.Pem))
		return nil
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) listCertificates(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	q, err := parseQuery(r.URL.RawQuery, "name", "owner", "caller", "expires_after", "expires_before", "page_size", "page_token")
	if err != nil {
		return err
	}
	in := &certmillv1.ListCertificatesRequest{Name: q.text("name"), Owner: q.text("owner"), Caller: q.text("caller"), PageToken: q.text("page_token")}
	if in.ExpiresAfter, err = q.time("expires_after"); err != nil {
		return err
	}
	if in.ExpiresBefore, err = q.time("expires_before"); err != nil {
		return err
	}
	if in.PageSize, err = q.pageSize(); err != nil {
		return err
	}
	out, err := h.service.listCertificates(ctx, r.caller, in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) trustBundle(_ context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	answer, err := chooseForm(header(r.Request, "Accept"), formPEM)
	if err != nil {
		return err
	}
	bundle, err := h.service.trustBundle()
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "public, max-age=60")
	if answer == formPEM {
		write(w, http.StatusOK, typeChain, []byte(bundle.Pem))
		return nil
	}
	return writeJSON(w, http.StatusOK, bundle)
}

// spiffeBundle serves the bundle endpoint of SPIFFE Federation section 5.2 (https_web).
func (h *httpAPI) spiffeBundle(_ context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	bundle, err := h.service.spiffeBundle(r.id)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "public, max-age=60")
	write(w, http.StatusOK, typeJSON, bundle)
	return nil
}

func (h *httpAPI) createToken(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	var in certmillv1.CreateEnrollmentTokenRequest
	if err := h.readMessage(r, h.service.cfg.Limits.MaxBodyBytes, &in); err != nil {
		return err
	}
	out, err := h.service.createToken(ctx, r.caller, &in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, out)
}

func (h *httpAPI) listTokens(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	q, err := parseQuery(r.URL.RawQuery, "page_size", "page_token")
	if err != nil {
		return err
	}
	in := &certmillv1.ListEnrollmentTokensRequest{PageToken: q.text("page_token")}
	if in.PageSize, err = q.pageSize(); err != nil {
		return err
	}
	out, err := h.service.listTokens(ctx, r.caller, in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) deleteToken(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	out, err := h.service.deleteToken(ctx, r.caller, &certmillv1.DeleteEnrollmentTokenRequest{Id: r.id})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) listAudit(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	q, err := parseQuery(r.URL.RawQuery, "page_size", "page_token")
	if err != nil {
		return err
	}
	in := &certmillv1.ListAuditRequest{PageToken: q.text("page_token")}
	if in.PageSize, err = q.pageSize(); err != nil {
		return err
	}
	out, err := h.service.listAudit(ctx, r.caller, in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) renewalInfo(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	if _, err := parseQuery(r.URL.RawQuery); err != nil {
		return err
	}
	out, err := h.service.renewalInfo(ctx, r.caller, &certmillv1.GetRenewalInfoRequest{Serial: r.id})
	if err != nil {
		return err
	}
	w.Header()["Retry-After"] = []string{strconv.FormatInt(out.AskAgain.Seconds, 10)} // RFC 9773 section 4.3.2
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) renewEarly(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	var in certmillv1.RenewEarlyRequest
	if err := h.readMessage(r, h.service.cfg.Limits.MaxBodyBytes, &in); err != nil {
		return err
	}
	out, err := h.service.renewEarly(ctx, r.caller, &in)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, out)
}

func (h *httpAPI) listEarlyRenewals(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	if _, err := parseQuery(r.URL.RawQuery); err != nil {
		return err
	}
	out, err := h.service.listEarlyRenewals(ctx, r.caller)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) endEarlyRenewal(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	out, err := h.service.endEarlyRenewal(ctx, r.caller, &certmillv1.EndEarlyRenewalRequest{Id: r.id})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// getStatus takes no place in flight: operators must see a service that is full.
func (h *httpAPI) getStatus(ctx context.Context, _ *exchange, w http.ResponseWriter, r *request) error {
	if _, err := parseQuery(r.URL.RawQuery); err != nil {
		return err
	}
	out, err := h.service.getStatus(ctx, r.caller)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (h *httpAPI) openAPI(_ context.Context, _ *exchange, w http.ResponseWriter, _ *request) error {
	w.Header().Set("Cache-Control", "public, max-age=300")
	write(w, http.StatusOK, typeYAML, openAPI)
	return nil
}

func (h *httpAPI) health(_ context.Context, _ *exchange, w http.ResponseWriter, _ *request) error {
	write(w, http.StatusOK, typeJSON, []byte(`{"status":"ok"}`))
	return nil
}

// readiness says what is missing; its answer is for operators and names parts only.
func (h *httpAPI) readiness(_ context.Context, _ *exchange, w http.ResponseWriter, _ *request) error {
	if err := h.ready(); err != nil {
		return problem.Down("gateway", time.Second, err)
	}
	write(w, http.StatusOK, typeJSON, []byte(`{"status":"ready"}`))
	return nil
}
