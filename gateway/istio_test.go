package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
	istioauth "github.com/certmill/certmill/proto/istio/v1/auth"
)

// mesh is a world whose gateway serves two clusters: the first asks its API server, the
// second is known by its keys.
type mesh struct {
	*world
	api   *apiServer
	other *idp
	ca    istioauth.IstioCertificateServiceClient
}

func newMesh(t testing.TB, change ...func(*Config)) *mesh {
	t.Helper()
	m := &mesh{api: newAPIServer(t), other: newIDP(t)}
	m.world = newWorld(t, func(c *Config, _ *Deps) {
		other := DefaultCluster()
		other.Name, other.TrustDomain, other.Issuer = "other", "other.example.test", "https://kubernetes.default.svc.cluster.local"
		other.JWKSFile, other.NodeAccounts = m.other.config.JWKSFile, []string{"istio-system/ztunnel"}
		c.Auth.Kubernetes = []Cluster{m.api.cluster(t, "Kubernetes", "cluster.local"), other}
		c.Istio = Istio{Profile: "mesh", CertSigners: map[string]string{"clusterissuers.example.test/short": "mesh-short"}}
		for _, f := range change {
			f(c)
		}
	})
	m.ca = istioauth.NewIstioCertificateServiceClient(m.dial(t))
	return m
}

// cart is a workload of the first cluster.
var cart = apiToken{namespace: "shop", account: "cart", pod: "cart-1", uid: "uid-cart-1"}

func (m *mesh) cart(t testing.TB) string { return m.api.account(t, m.idp, cart, time.Hour) }

// meshCSR is what Istio's agents send: their own idea of the name, and a key.
func meshCSR(t testing.TB, id string) string {
	return string(armour(customCSR(t, nil, &x509.CertificateRequest{URIs: []*url.URL{must(url.Parse(id))(t)}})))
}

func meta(t testing.TB, fields map[string]any) *structpb.Struct {
	return must(structpb.NewStruct(fields))(t)
}

func (m *mesh) ask(ctx context.Context, in *istioauth.IstioCertificateRequest) ([]string, error) {
	out, err := m.ca.CreateCertificate(ctx, in)
	return out.GetCertChain(), err
}

// leafOf reads the first element and holds the chain to what Istio's clients expect.
func (m *mesh) leafOf(t testing.TB, chain []string) *x509.Certificate {
	t.Helper()
	if len(chain) != 3 {
		t.Fatalf("the chain has %d elements, not leaf, issuing CA and roots", len(chain))
	}
	var certs []*x509.Certificate
	for _, element := range chain[:2] {
		c := parseChain(t, []byte(element))
		if len(c) != 1 {
			t.Fatalf("an element before the last holds %d certificates", len(c))
		}
		certs = append(certs, c[0])
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, root := range parseChain(t, []byte(chain[2])) {
		options.Roots.AddCert(root)
	}
	options.Intermediates.AddCert(certs[1])
	if _, err := certs[0].Verify(options); err != nil {
		t.Error(err)
	}
	return certs[0]
}

func wantSAN(t testing.TB, leaf *x509.Certificate, id string) {
	t.Helper()
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 || leaf.Subject.CommonName != "" {
		t.Errorf("the certificate names %v %v %v %s, want %s alone", leaf.URIs, leaf.DNSNames, leaf.EmailAddresses, leaf.Subject, id)
	}
}

// refused fails unless err has the code and names the rule.
func refused(t testing.TB, err error, code codes.Code, rule string) {
	t.Helper()
	if p := problem.FromStatus(err); status.Code(err) != code || p.Rule != rule {
		t.Errorf("got %s %s (%v), want %s %s", status.Code(err), p.Rule, err, code, rule)
	}
}

func TestAProxyGetsTheIdentityOfItsTokenWhateverItsCSRSays(t *testing.T) {
	m := newMesh(t)
	ctx := as(t.Context(), m.cart(t))
	csr := string(armour(customCSR(t, nil, &x509.CertificateRequest{
		Subject: named("root"), DNSNames: []string{"bank.example.test"}, EmailAddresses: []string{"a@example.test"},
		URIs: []*url.URL{must(url.Parse("spiffe://cluster.local/ns/bank/sa/vault"))(t)},
	})))
	leaf := m.leafOf(t, must(m.ask(ctx, &istioauth.IstioCertificateRequest{Csr: csr, ValidityDuration: 3600}))(t))
	wantSAN(t, leaf, "spiffe://cluster.local/ns/shop/sa/cart")
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 2 {
		t.Errorf("CA %v, usage %b, purposes %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	for asked, want := range map[int64]time.Duration{0: time.Hour, 1800: 30 * time.Minute, 1: 10 * time.Minute, 1 << 40: 24 * time.Hour, -5: time.Hour} {
		leaf := m.leafOf(t, must(m.ask(ctx, &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://cluster.local/ns/shop/sa/cart"), ValidityDuration: asked}))(t))
		if got := leaf.NotAfter.Sub(leaf.NotBefore) - 2*time.Minute; got != want {
			t.Errorf("asked for %d s: a lifetime of %s, want %s", asked, got, want)
		}
	}
	if reviews, _ := m.api.asked(); reviews != 1 {
		t.Errorf("%d reviews of one token", reviews)
	}
}

func TestTheCertSignerPicksTheProfile(t *testing.T) {
	m := newMesh(t)
	ctx := as(t.Context(), m.cart(t))
	ask := func(signer string) ([]string, error) {
		return m.ask(ctx, &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y"), ValidityDuration: 86400, Metadata: meta(t, map[string]any{"CertSigner": signer})})
	}
	if leaf := m.leafOf(t, must(ask("clusterissuers.example.test/short"))(t)); leaf.NotAfter.Sub(leaf.NotBefore) != 22*time.Minute {
		t.Errorf("lives %s", leaf.NotAfter.Sub(leaf.NotBefore))
	}
	if leaf := m.leafOf(t, must(ask(""))(t)); leaf.NotAfter.Sub(leaf.NotBefore) != 24*time.Hour+2*time.Minute {
		t.Errorf("lives %s", leaf.NotAfter.Sub(leaf.NotBefore))
	}
	_, err := ask("mesh-short") // a profile's name is no signer's
	refused(t, err, codes.InvalidArgument, "cert_signer")
}

func TestTheStatusOfARefusalMakesIstiosRetriesRight(t *testing.T) {
	m := newMesh(t)
	good := as(t.Context(), m.cart(t))
	request := func() *istioauth.IstioCertificateRequest {
		return &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y")}
	}
	for what, csr := range map[string]string{"nothing": "", "text": "hello", "a damaged one": meshCSR(t, "spiffe://x/y")[:200]} {
		t.Run("a bad CSR: "+what, func(t *testing.T) {
			if _, err := m.ask(good, &istioauth.IstioCertificateRequest{Csr: csr}); status.Code(err) != codes.InvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
	for what, c := range map[string]struct {
		ctx  context.Context
		rule string
	}{
		"no credential":    {t.Context(), "missing"},
		"an expired token": {as(t.Context(), m.api.account(t, m.idp, cart, -time.Minute)), "expired"},
		"an unknown token": {as(t.Context(), m.idp.sign(t, "ES256", m.idp.ec, "ec", kubernetesClaims(apiToken{namespace: "shop", account: "cart", audiences: []string{"istio-ca"}}, time.Hour))), "token_review"},
		"another audience": {as(t.Context(), m.api.account(t, m.idp, apiToken{namespace: "a", account: "b", audiences: []string{"vault"}}, time.Hour)), "token_review"},
		"no account":       {as(t.Context(), m.api.account(t, m.idp, apiToken{namespace: "a", account: "c", extraGroup: "system:masters"}, time.Hour)), "service_account"},
		"another cluster":  {metadata.AppendToOutgoingContext(as(t.Context(), m.cart(t)), "clusterid", "mars"), "cluster"},
		"keys of another":  {metadata.AppendToOutgoingContext(as(t.Context(), m.cart(t)), "clusterid", "other"), "signature"},
		"not a token":      {as(t.Context(), "abc"), "malformed"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := m.ask(c.ctx, request())
			refused(t, err, codes.Unauthenticated, c.rule)
		})
	}
	t.Run("overload", func(t *testing.T) {
		m.signer.setRefuse(overload)
		defer m.signer.setRefuse(nil)
		_, err := m.ask(good, request())
		refused(t, err, codes.ResourceExhausted, "signers")
		retryHint(t, err)
	})
	t.Run("signers away", func(t *testing.T) {
		m.signer.setRefuse(func(context.Context, *queuev1.SignRequest) error { return problem.Down("queue", time.Second, errGone) })
		defer m.signer.setRefuse(nil)
		_, err := m.ask(good, request())
		refused(t, err, codes.Unavailable, "queue")
		retryHint(t, err)
	})
	t.Run("API server away", func(t *testing.T) {
		m.api.set(func() { m.api.fail = 500 })
		_, err := m.ask(as(t.Context(), m.api.account(t, m.idp, apiToken{namespace: "a", account: "d"}, time.Hour)), request())
		refused(t, err, codes.Unavailable, "kubernetes")
		retryHint(t, err)
		if _, err := m.ask(good, request()); err != nil {
			t.Errorf("a token that is known is refused while the API server is away: %v", err)
		}
		m.api.set(func() { m.api.fail, m.api.own = 0, "rotated" }) // now our own token is wrong
		_, err = m.ask(as(t.Context(), m.api.account(t, m.idp, apiToken{namespace: "a", account: "e"}, time.Hour)), request())
		refused(t, err, codes.Unavailable, "kubernetes")
	})
}

func retryHint(t testing.TB, err error) {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.RetryDelay.AsDuration() > 0 {
			return
		}
	}
	t.Errorf("%v has no retry hint", err)
}

func TestAnAPIServerThatIgnoresAudiencesIsNotBelieved(t *testing.T) {
	m := newMesh(t)
	m.api.set(func() { m.api.deaf = true })
	_, err := m.ask(as(t.Context(), m.cart(t)), &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y")})
	refused(t, err, codes.Unauthenticated, "audience")
}

func TestAReviewIsRememberedNoLongerThanTheTokenLives(t *testing.T) {
	m := newMesh(t)
	ctx := as(t.Context(), m.api.account(t, m.idp, cart, 2*time.Minute))
	ask := func() error {
		_, err := m.ask(ctx, &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y")})
		return err
	}
	must0(t, ask())
	m.clock.advance(time.Minute)
	must0(t, ask())
	if reviews, _ := m.api.asked(); reviews != 1 {
		t.Errorf("%d reviews within the token's life", reviews)
	}
	m.clock.advance(61 * time.Second)
	must0(t, ask()) // within the clock skew, and reviewed again
	if reviews, _ := m.api.asked(); reviews != 2 {
		t.Errorf("%d reviews: the memory outlived the token", reviews)
	}
	m.clock.advance(time.Minute)
	refused(t, ask(), codes.Unauthenticated, "expired")
}

func TestSeveralClustersAndTrustDomains(t *testing.T) {
	m := newMesh(t)
	token := m.other.sign(t, "ES256", m.other.ec, "ec", kubernetesClaims(apiToken{namespace: "shop", account: "cart", audiences: []string{"istio-ca"}}, time.Hour))
	there := metadata.AppendToOutgoingContext(as(t.Context(), token), "clusterid", "other")
	wantSAN(t, m.leafOf(t, must(m.ask(there, &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y")}))(t)), "spiffe://other.example.test/ns/shop/sa/cart")
	here := metadata.AppendToOutgoingContext(as(t.Context(), m.cart(t)), "clusterid", "Kubernetes")
	wantSAN(t, m.leafOf(t, must(m.ask(here, &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y")}))(t)), "spiffe://cluster.local/ns/shop/sa/cart")

	for what, change := range map[string]func(map[string]any){
		"issuer":   func(c map[string]any) { c["iss"] = "https://elsewhere.test" },
		"audience": func(c map[string]any) { c["aud"] = []string{"vault"} },
		"expired":  func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() },
		"service_account": func(c map[string]any) {
			c["kubernetes.io"] = map[string]any{"namespace": "bank", "serviceaccount": map[string]any{"name": "vault"}}
		},
	} {
		claims := kubernetesClaims(apiToken{namespace: "shop", account: "cart", audiences: []string{"istio-ca"}}, time.Hour)
		change(claims)
		ctx := metadata.AppendToOutgoingContext(as(t.Context(), m.other.sign(t, "ES256", m.other.ec, "ec", claims)), "clusterid", "other")
		_, err := m.ask(ctx, &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y")})
		refused(t, err, codes.Unauthenticated, what)
	}
}

func TestFiveBlindTriesMakeOneCertificate(t *testing.T) {
	m := newMesh(t)
	ctx := as(t.Context(), m.cart(t))
	in := &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://x/y"), ValidityDuration: 3600}
	// The first answer is lost on its way, although the certificate is committed.
	lost := true
	m.signer.setRefuse(func(ctx context.Context, r *queuev1.SignRequest) error {
		if !lost {
			return nil
		}
		lost = false
		if _, err := m.signer.sign(ctx, r); err != nil {
			return err
		}
		return problem.Down("queue", time.Second, errGone)
	})
	_, err := m.ask(ctx, in)
	refused(t, err, codes.Unavailable, "queue")
	serials := map[string]bool{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for range 5 {
		wait.Go(func() {
			chain, err := m.ask(ctx, in)
			if err != nil {
				t.Error(err)
				return
			}
			leaf := m.leafOf(t, chain)
			mu.Lock()
			defer mu.Unlock()
			serials[leaf.SerialNumber.String()] = true
		})
	}
	wait.Wait()
	rows := must(m.countOf("spiffe://cluster.local/ns/shop/sa/cart"))(t)
	if len(serials) != 1 || rows != 1 {
		t.Errorf("one CSR, sent six times, made %d certificates by the answers and %d by the ledger", len(serials), rows)
	}
}

func TestAWorkloadRenewsWithItsCertificateAndWithNoOther(t *testing.T) {
	m := newMesh(t)
	key := newKey(t)
	csr := func() string { return string(armour(customCSR(t, key, &x509.CertificateRequest{}))) }
	chain := must(m.ask(as(t.Context(), m.cart(t)), &istioauth.IstioCertificateRequest{Csr: csr()}))(t)
	first := m.leafOf(t, chain)
	with := func(c tls.Certificate) istioauth.IstioCertificateServiceClient {
		conn := must(grpc.NewClient(m.grpc, grpc.WithTransportCredentials(credentials.NewTLS(m.clientTLS(c)))))(t)
		t.Cleanup(func() { _ = conn.Close() })
		return istioauth.NewIstioCertificateServiceClient(conn)
	}
	own := tls.Certificate{Certificate: [][]byte{first.Raw, parseChain(t, []byte(chain[1]))[0].Raw}, PrivateKey: key}
	out := must(with(own).CreateCertificate(t.Context(), &istioauth.IstioCertificateRequest{Csr: meshCSR(t, "spiffe://cluster.local/ns/bank/sa/vault")}))(t)
	wantSAN(t, m.leafOf(t, out.CertChain), "spiffe://cluster.local/ns/shop/sa/cart")

	foreign := m.pki.foreign.issue(t, &x509.Certificate{URIs: []*url.URL{must(url.Parse("spiffe://cluster.local/ns/bank/sa/vault"))(t)}})
	_, err := with(foreign).CreateCertificate(t.Context(), &istioauth.IstioCertificateRequest{Csr: csr()})
	refused(t, err, codes.PermissionDenied, "own_certificate")
	_, err = with(own).CreateCertificate(t.Context(), &istioauth.IstioCertificateRequest{Csr: csr(), Metadata: meta(t, map[string]any{"ImpersonatedIdentity": "spiffe://cluster.local/ns/bank/sa/vault"})})
	refused(t, err, codes.PermissionDenied, "node_account")
	_, err = m.ask(as(t.Context(), m.idp.token(t, "alice")), &istioauth.IstioCertificateRequest{Csr: csr()})
	refused(t, err, codes.PermissionDenied, "uri_not_allowed") // spiffe://example.test/sa/alice is in no trust domain of the profile
}

// countOf returns how many certificates of a URI name the ledger has.
func (m *mesh) countOf(uri string) (int, error) {
	rows, _, err := m.book.List(m.Context(), ledger.Filter{Name: "uri:" + uri}, "", 100)
	return len(rows), err
}
