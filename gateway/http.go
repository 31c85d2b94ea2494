package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// httpAPI serves REST. The walk of a request: route → place in flight → caller →
// deadline → handler. Nothing is read of the body before the first three are through.
type httpAPI struct {
	service  *service
	auth     *authenticator
	observer *observer
	ready    func() error
	exact    map[string]*resource
	// below serves one path segment under a prefix.
	below []*collection
}

// resource is what a path names.
type resource struct {
	methods map[string]*endpoint
	allow   string // for 405
}

// collection is a path prefix with one more segment, and perhaps an action after it.
type collection struct {
	prefix  string
	item    *resource
	actions map[string]*resource // ":revoke" and "/revoke" alike
}

// endpoint serves one method of a resource.
type endpoint struct {
	route route
	serve func(ctx context.Context, x *exchange, w http.ResponseWriter, r *request) error
	// open needs no credential; unbounded takes no place in flight.
	open, unbounded bool
}

// request is the part of an HTTP request that handlers look at.
type request struct {
	*http.Request
	w      http.ResponseWriter
	id     string // the path's last segment, where the path has one
	caller *Caller
}

func newResource(methods map[string]*endpoint) *resource {
	allowed := make([]string, 0, 2)
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete} {
		if methods[m] != nil || m == http.MethodHead && methods[http.MethodGet] != nil {
			allowed = append(allowed, m)
		}
	}
	return &resource{methods: methods, allow: strings.Join(allowed, ", ")}
}

// find returns the resource at a path. http.ServeMux is not used: it cannot match
// "{serial}:revoke", and its own 404, 405 and redirects are not problem+json.
func (h *httpAPI) find(path string) (*resource, string) {
	if r := h.exact[path]; r != nil {
		return r, ""
	}
	for _, c := range h.below {
		id, ok := strings.CutPrefix(path, c.prefix)
		if !ok || id == "" {
			continue
		}
		item := c.item
		// A serial may be written with colons; no action's name is hexadecimal.
		if i := strings.LastIndexAny(id, ":/"); i > 0 && c.actions[id[i+1:]] != nil {
			id, item = id[:i], c.actions[id[i+1:]]
		}
		if item != nil && !strings.Contains(id, "/") {
			return item, id
		}
	}
	return nil, ""
}

// ServeHTTP implements http.Handler.
func (h *httpAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource, id := h.find(r.URL.Path)
	e, err := choose(resource, r.Method)
	ctx, x := h.observer.begin(r.Context(), e.route, header(r, "Traceparent"))
	w.Header()["Request-Id"] = []string{x.requestID}
	if err != nil && resource != nil {
		w.Header().Set("Allow", resource.allow)
	}
	if err == nil {
		err = h.serve(ctx, x, e, w, &request{Request: r, w: w, id: id})
	}
	if err != nil {
		w.Header()["Server-Timing"] = []string{totalTiming(time.Since(x.started))}
		writeProblem(w, x.requestID, err)
	}
	x.end(ctx, err)
}

var unknownEndpoint = &endpoint{route: routeUnknown}

func choose(resource *resource, method string) (*endpoint, error) {
	if resource == nil {
		return unknownEndpoint, problem.New(problem.NotFound, "there is nothing at this path; /openapi.yaml lists what there is")
	}
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if e := resource.methods[method]; e != nil {
		return e, nil
	}
	return unknownEndpoint, httpRejected(http.StatusMethodNotAllowed, "method", "method", "this path takes "+resource.allow)
}

func (h *httpAPI) serve(ctx context.Context, x *exchange, e *endpoint, w http.ResponseWriter, r *request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(v)
		}
	}()
	if !e.unbounded {
		if err := h.service.inFlight.acquire(1); err != nil {
			return err
		}
		defer h.service.inFlight.release(1)
	}
	timeout, err := h.timeout(x.route, r.Request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if !e.open {
		r.caller, err = h.auth.authenticate(ctx, authCredentials{
			tls: r.TLS, authorization: header(r.Request, "Authorization"), cluster: header(r.Request, "Clusterid"),
		})
		if err != nil {
			return err
		}
		x.caller = r.caller
		if !e.unbounded {
			leave, err := h.service.admission.admit(ctx, h.service.admission.calls, r.caller, 1)
			if err != nil {
				return err
			}
			defer leave()
		}
	}
	return e.serve(ctx, x, w, r)
}

// timeout bounds the call: by "Prefer: wait=<seconds>" (RFC 7240 section 4.3)
// where the caller sent it, else by the default.
func (h *httpAPI) timeout(rt route, r *http.Request) (time.Duration, error) {
	limits := &h.service.cfg.Limits
	timeout := limits.CallTimeout
	if rt == routeGetOrder {
		timeout = max(timeout, maxOrderWait+5*time.Second)
	}
	for _, preference := range r.Header["Prefer"] {
		for part := range strings.SplitSeq(preference, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			if !strings.EqualFold(name, "wait") {
				continue // RFC 7240: unknown preferences are ignored
			}
			seconds, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil || seconds < 1 {
				return 0, problem.Rejected("prefer", "wait", "the preference wait is a number of seconds, at least 1")
			}
			timeout = time.Duration(min(seconds, int(limits.MaxCallTimeout/time.Second))) * time.Second
		}
	}
	return timeout, nil
}

// header returns a header by its canonical name, without the cost of making it so.
func header(r *http.Request, canonical string) string {
	if v := r.Header[canonical]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// httpError is a failure with a more precise status than its kind has.
type httpError struct {
	status int
	cause  *problem.Error
}

func (e *httpError) Error() string { return fmt.Sprintf("%d: %v", e.status, e.cause) }
func (e *httpError) Unwrap() error { return e.cause }

func httpRejected(status int, field, rule, detail string) error {
	return &httpError{status: status, cause: problem.Rejected(field, rule, "%s", detail)}
}

// statusOf returns the HTTP status of a failure.
func statusOf(err error) int {
	var e *httpError
	if errors.As(err, &e) {
		return e.status
	}
	return problem.KindOf(err).HTTPStatus()
}
