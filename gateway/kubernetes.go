package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// maxKubernetesBytes bounds an answer of an API server: the pods of one service account
// on one node are a few, of some KiB each.
const maxKubernetesBytes = 16 << 20

// kubernetesAPI is the API server of one cluster, as far as it is needed here: two
// kinds of request do not justify its client library. Safe for concurrent use.
type kubernetesAPI struct {
	cfg    Cluster
	client *http.Client
	places *limiter
}

func newKubernetesAPI(cfg Cluster, retryAfter time.Duration) *kubernetesAPI {
	return &kubernetesAPI{cfg: cfg, places: newLimiter("kubernetes", cfg.MaxRequests, retryAfter)}
}

// load reads the CA file and makes the client.
func (k *kubernetesAPI) load() error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if k.cfg.APICAFile != "" {
		data, err := os.ReadFile(k.cfg.APICAFile)
		if err != nil {
			return err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return fmt.Errorf("%s holds no certificate", k.cfg.APICAFile)
		}
	}
	k.client = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: k.cfg.MaxRequests,
			IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment,
		},
		// The request holds our token: it goes nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

func (k *kubernetesAPI) close() {
	if k.client != nil {
		k.client.CloseIdleConnections()
	}
}

// errNotFound says that the API server has no such object.
var errNotFound = errors.New("not found")

// call makes one request; in, where it is not nil, is its body. All failures but
// errNotFound are ours or the API server's, never the caller's: they are Unavailable,
// or Overloaded at the bound.
func (k *kubernetesAPI) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	if err := k.places.acquire(1); err != nil {
		return err
	}
	defer k.places.release(1)
	ctx, cancel := context.WithTimeout(ctx, k.cfg.APITimeout)
	defer cancel()
	err := k.exchange(ctx, method, path, query, in, out)
	if err == nil || errors.Is(err, errNotFound) {
		return err
	}
	return problem.Down("kubernetes", k.places.retryAfter, fmt.Errorf("asking the API server of cluster %s: %w", k.cfg.Name, err))
}

func (k *kubernetesAPI) exchange(ctx context.Context, method, path string, query url.Values, in, out any) error {
	token, err := os.ReadFile(k.cfg.APITokenFile)
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if in == nil {
		body = nil
	}
	address := strings.TrimSuffix(k.cfg.API, "/") + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/json")
	response, err := k.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusNotFound:
		return errNotFound
	default:
		return fmt.Errorf("%s %s was answered %s", method, path, response.Status)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxKubernetesBytes+1))
	if err != nil {
		return err
	}
	if len(data) > maxKubernetesBytes {
		return fmt.Errorf("%s %s was answered with more than %d bytes", method, path, maxKubernetesBytes)
	}
	return json.Unmarshal(data, out)
}

// tokenReview is authentication.k8s.io/v1 TokenReview, as far as it is needed.
type tokenReview struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Spec       tokenReviewSpec   `json:"spec"`
	Status     tokenReviewStatus `json:"status"`
}

type tokenReviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences"`
}

type tokenReviewStatus struct {
	Authenticated bool     `json:"authenticated"`
	Audiences     []string `json:"audiences"`
	User          struct {
		Username string              `json:"username"`
		Groups   []string            `json:"groups"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
	Error string `json:"error"`
}

// review has the API server judge a token.
func (k *kubernetesAPI) review(ctx context.Context, token string) (*tokenReviewStatus, error) {
	review := tokenReview{
		APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview",
		Spec: tokenReviewSpec{Token: token, Audiences: k.cfg.Audiences},
	}
	err := k.call(ctx, http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", nil, &review, &review)
	if errors.Is(err, errNotFound) {
		err = problem.Down("kubernetes", k.places.retryAfter, fmt.Errorf("the API server of cluster %s has no TokenReview", k.cfg.Name))
	}
	return &review.Status, err
}

// pod is a core/v1 Pod, as far as it is needed.
type pod struct {
	Metadata struct {
		UID string `json:"uid"`
	} `json:"metadata"`
	Spec struct {
		NodeName           string `json:"nodeName"`
		ServiceAccountName string `json:"serviceAccountName"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

// running reports whether the pod is one that may hold certificates.
func (p *pod) running() bool { return p.Status.Phase != "Failed" && p.Status.Phase != "Succeeded" }

// pod returns one pod, or errNotFound.
func (k *kubernetesAPI) pod(ctx context.Context, namespace, name string) (*pod, error) {
	var p pod
	path := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(name)
	return &p, k.call(ctx, http.MethodGet, path, nil, nil, &p)
}

// podsOf returns the pods of a service account on a node. The answer is that of the
// moment and no cache's: whoever asks has often only just been scheduled.
func (k *kubernetesAPI) podsOf(ctx context.Context, namespace, account, node string) ([]pod, error) {
	var list struct {
		Items []pod `json:"items"`
	}
	query := url.Values{"fieldSelector": {"spec.nodeName=" + node + ",spec.serviceAccountName=" + account}}
	err := k.call(ctx, http.MethodGet, "/api/v1/namespaces/"+url.PathEscape(namespace)+"/pods", query, nil, &list)
	if errors.Is(err, errNotFound) {
		return nil, nil
	}
	return list.Items, err
}
