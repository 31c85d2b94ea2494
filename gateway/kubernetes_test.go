package gateway

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiServer is a Kubernetes API server as far as the gateway asks it: it speaks the
// REST shapes of authentication.k8s.io/v1 and core/v1.
type apiServer struct {
	*httptest.Server
	own string // our token for it

	mu       sync.Mutex
	reviews  int // how many were asked for
	lists    int
	accounts map[string]apiToken // by token
	pods     []apiPod
	fail     int  // an HTTP status to answer everything with
	deaf     bool // to audiences, as old API servers are
}

type apiToken struct {
	namespace, account, pod, uid string
	audiences                    []string
	extraGroup                   string
}

type apiPod struct{ namespace, name, uid, account, node, phase string }

func newAPIServer(t testing.TB) *apiServer {
	a := &apiServer{own: "our-own-token", accounts: map[string]apiToken{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", a.review)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/{name}", a.pod)
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", a.list)
	a.Server = httptest.NewTLSServer(mux)
	t.Cleanup(a.Close)
	return a
}

// cluster is the configuration for it.
func (a *apiServer) cluster(t testing.TB, name, trustDomain string) Cluster {
	dir := t.TempDir()
	c := DefaultCluster()
	c.Name, c.TrustDomain, c.API = name, trustDomain, a.URL
	c.APICAFile, c.APITokenFile = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	must0(t, os.WriteFile(c.APICAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw}), 0o600))
	must0(t, os.WriteFile(c.APITokenFile, []byte(a.own+"\n"), 0o600))
	c.NodeAccounts = []string{"istio-system/ztunnel"}
	return c
}

func (a *apiServer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *apiServer) asked() (reviews, lists int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reviews, a.lists
}

// enter locks, and answers where the request is not ours or the server is to fail.
func (a *apiServer) enter(w http.ResponseWriter, r *http.Request) bool {
	a.mu.Lock()
	status := a.fail
	if r.Header.Get("Authorization") != "Bearer "+a.own {
		status = http.StatusUnauthorized
	}
	if status == 0 {
		return true
	}
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status})
	return false
}

func (a *apiServer) review(w http.ResponseWriter, r *http.Request) {
	if !a.enter(w, r) {
		return
	}
	defer a.mu.Unlock()
	a.reviews++
	var in struct {
		APIVersion, Kind string
		Spec             struct {
			Token     string
			Audiences []string
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.APIVersion != "authentication.k8s.io/v1" || in.Kind != "TokenReview" {
		http.Error(w, "not a TokenReview", http.StatusBadRequest)
		return
	}
	status := map[string]any{}
	if who, ok := a.accounts[in.Spec.Token]; !ok {
		status["error"] = "[invalid bearer token, unknown]"
	} else {
		shared := slices.DeleteFunc(slices.Clone(who.audiences), func(s string) bool { return !slices.Contains(in.Spec.Audiences, s) })
		status["authenticated"] = len(shared) > 0 || a.deaf
		if !a.deaf {
			status["audiences"] = shared
		}
		groups := []string{"system:serviceaccounts", "system:serviceaccounts:" + who.namespace, "system:authenticated"}
		if who.extraGroup != "" {
			groups = []string{who.extraGroup}
		}
		user := map[string]any{"username": "system:serviceaccount:" + who.namespace + ":" + who.account, "uid": "u-" + who.account, "groups": groups}
		if who.pod != "" {
			user["extra"] = map[string][]string{
				"authentication.kubernetes.io/pod-name": {who.pod}, "authentication.kubernetes.io/pod-uid": {who.uid},
			}
		}
		status["user"] = user
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": in.Spec, "status": status})
}

func (p apiPod) object() map[string]any {
	return map[string]any{
		"metadata": map[string]any{"name": p.name, "namespace": p.namespace, "uid": p.uid},
		"spec":     map[string]any{"serviceAccountName": p.account, "nodeName": p.node, "containers": []any{map[string]any{"name": "c", "image": "i"}}},
		"status":   map[string]any{"phase": p.phase},
	}
}

func (a *apiServer) pod(w http.ResponseWriter, r *http.Request) {
	if !a.enter(w, r) {
		return
	}
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if p.namespace == r.PathValue("namespace") && p.name == r.PathValue("name") {
			o := p.object()
			o["kind"], o["apiVersion"] = "Pod", "v1"
			_ = json.NewEncoder(w).Encode(o)
			return
		}
	}
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request) {
	if !a.enter(w, r) {
		return
	}
	defer a.mu.Unlock()
	a.lists++
	items := []any{}
	for _, p := range a.pods {
		fits := p.namespace == r.PathValue("namespace")
		for _, s := range strings.Split(r.URL.Query().Get("fieldSelector"), ",") {
			key, value, _ := strings.Cut(s, "=")
			switch key {
			case "spec.nodeName":
				fits = fits && p.node == value
			case "spec.serviceAccountName":
				fits = fits && p.account == value
			default:
				http.Error(w, "field label not supported: "+key, http.StatusBadRequest)
				return
			}
		}
		if fits {
			items = append(items, p.object())
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": "1"}, "items": items})
}

// account makes a token that the API server accepts, which looks like Kubernetes' own.
func (a *apiServer) account(t testing.TB, p *idp, who apiToken, lifetime time.Duration) string {
	t.Helper()
	if who.audiences == nil {
		who.audiences = []string{"istio-ca"}
	}
	claims := kubernetesClaims(who, lifetime)
	token := p.sign(t, "ES256", p.ec, "ec", claims)
	a.set(func() { a.accounts[token] = who })
	return token
}

// kubernetesClaims are those of a bound service-account token.
func kubernetesClaims(who apiToken, lifetime time.Duration) map[string]any {
	now := time.Now()
	inner := map[string]any{"namespace": who.namespace, "serviceaccount": map[string]any{"name": who.account, "uid": "u-" + who.account}}
	if who.pod != "" {
		inner["pod"] = map[string]any{"name": who.pod, "uid": who.uid}
	}
	return map[string]any{
		"iss": "https://kubernetes.default.svc.cluster.local", "sub": "system:serviceaccount:" + who.namespace + ":" + who.account,
		"aud": who.audiences, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(lifetime).Unix(), "kubernetes.io": inner,
	}
}
