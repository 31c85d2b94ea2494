package gateway

import (
	"net/http"
	"sort"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func loadOpenAPI(t testing.TB) *openapi3.T {
	t.Helper()
	doc := must(openapi3.NewLoader().LoadFromData(openAPI))(t)
	must0(t, doc.Validate(t.Context()))
	return doc
}

func TestOpenAPIDescribesWhatIsServedAndNothingElse(t *testing.T) {
	var described, served []string
	for path, item := range loadOpenAPI(t).Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+strings.NewReplacer("{serial}", "x", "{id}", "x").Replace(path))
		}
	}
	add := func(path string, r *resource) {
		for method := range r.methods {
			served = append(served, method+" "+path)
		}
	}
	h := newHTTPAPI(&service{}, nil, nil, nil)
	for path, r := range h.exact {
		add(path, r)
	}
	for _, c := range h.below {
		add(c.prefix+"x", c.item)
		for action, r := range c.actions {
			add(c.prefix+"x/"+action, r)
		}
	}
	sort.Strings(described)
	sort.Strings(served)
	if a, b := strings.Join(described, "\n"), strings.Join(served, "\n"); a != b {
		t.Errorf("described:\n%s\n\nserved:\n%s", a, b)
	}
}

func TestOpenDocuments(t *testing.T) {
	w := newWorld(t)
	get := func(path string, accept ...string) httpReply {
		h := http.Header{}
		for _, a := range accept {
			h.Add("Accept", a)
		}
		return w.do(t, httpCall{method: http.MethodGet, path: path, header: h}).ok(t, 200)
	}
	if r := get("/openapi.yaml"); string(r.body) != string(openAPI) {
		t.Error("/openapi.yaml is another document")
	}
	get("/healthz")
	get("/readyz")
	if chain := parseChain(t, get("/v1/trust-bundle").body); len(chain) != 1 || !chain[0].Equal(w.pki.root.cert) {
		t.Error("the trust bundle is not the root")
	}
	get("/v1/trust-bundle", typeJSON)
	head := must(http.NewRequestWithContext(t.Context(), http.MethodHead, "https://"+w.https+"/healthz", nil))(t)
	r := must(w.client().Do(head))(t)
	_ = r.Body.Close()
	if r.StatusCode != 200 || r.ContentLength == 0 {
		t.Errorf("HEAD got %d", r.StatusCode)
	}
}
