package gateway

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/certmill/certmill/internal/queue"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestCredentialsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	with := func(change func(c map[string]any)) string {
		c := w.idp.claims("alice")
		change(c)
		return w.idp.sign(t, jose.ES256, w.idp.ec, "ec", c)
	}
	segment := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	good := w.idp.token(t, "alice")
	parts := strings.Split(good, ".")
	other := newKey(t)
	for name, c := range map[string]struct{ header, rule string }{
		"no credential":               {"", "missing"},
		"another scheme":              {"Basic YTpi", "scheme"},
		"an empty token":              {"Bearer ", "scheme"},
		"text that is no token":       {"Bearer hello", "malformed"},
		"a token that is too long":    {"Bearer " + strings.Repeat("a", maxTokenBytes+1), "malformed"},
		"an expired token":            {"Bearer " + with(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() }), "expired"},
		"a token without an end":      {"Bearer " + with(func(c map[string]any) { delete(c, "exp") }), "no_expiry"},
		"a token of the future":       {"Bearer " + with(func(c map[string]any) { c["nbf"] = time.Now().Add(time.Hour).Unix() }), "not_yet_valid"},
		"a token for another service": {"Bearer " + with(func(c map[string]any) { c["aud"] = "vault" }), "audience"},
		"a token for nobody":          {"Bearer " + with(func(c map[string]any) { delete(c, "aud") }), "audience"},
		"a token of another issuer":   {"Bearer " + with(func(c map[string]any) { c["iss"] = "https://evil.test" }), "issuer"},
		"a token without a subject":   {"Bearer " + with(func(c map[string]any) { delete(c, "sub") }), "subject"},
		"a subject that climbs out":   {"Bearer " + with(func(c map[string]any) { c["sub"] = "a/../admin" }), "identity"},
		"alg none":                    {"Bearer " + segment(`{"alg":"none"}`) + "." + parts[1] + ".", "algorithm"},
		"HS256 with the public key":   {"Bearer " + w.idp.sign(t, jose.HS256, w.idp.publicPEM(t), "rsa", w.idp.claims("alice")), "algorithm"},
		"a key that is not there":     {"Bearer " + w.idp.sign(t, jose.ES256, w.idp.ec, "gone", w.idp.claims("alice")), "key"},
		"no key id with two keys":     {"Bearer " + w.idp.sign(t, jose.ES256, w.idp.ec, "", w.idp.claims("alice")), "key"},
		"a key of another algorithm":  {"Bearer " + w.idp.sign(t, jose.PS256, w.idp.rsa, "rsa", w.idp.claims("alice")), "key"},
		"a signature by another key":  {"Bearer " + w.idp.sign(t, jose.ES256, other, "ec", w.idp.claims("alice")), "signature"},
		"claims changed afterwards":   {"Bearer " + parts[0] + "." + segment(`{"iss":"https://idp.example.test","sub":"admin","aud":"certmill","exp":99999999999}`) + "." + parts[2], "signature"},
		"a key inside the token":      {"Bearer " + segment(`{"alg":"ES256","jwk":{"kty":"EC"}}`) + "." + parts[1] + "." + parts[2], "malformed"},
		"an unknown enrollment token": {"Bearer " + tokenPrefix + strings.Repeat("A", 43), "token_unknown"},
		"a cut enrollment token":      {"Bearer " + tokenPrefix + "AAAA", "token"},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			if c.header != "" {
				h.Set("Authorization", c.header)
			}
			r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, header: h, body: armour(newCSR(t, nil, "a.example.test"))})
			if p := r.problem(t); r.status != http.StatusUnauthorized || p.Rule != c.rule {
				t.Errorf("got %d %q (%s), want 401 %q", r.status, p.Rule, p.Detail, c.rule)
			}
			if !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer ") {
				t.Errorf("WWW-Authenticate is %q", r.header.Get("WWW-Authenticate"))
			}
		})
	}
	if n := w.signer.count(); n != 0 {
		t.Errorf("%d requests reached the signer", n)
	}
	for _, secret := range []string{good, parts[2], tokenPrefix + "AAAA"} {
		if strings.Contains(w.logs.String(), secret) {
			t.Error("the log holds a credential")
		}
	}
}

func TestJWTsThatAreAccepted(t *testing.T) {
	w := newWorld(t)
	me := func(token string) httpReply {
		return w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates?caller=" + url.QueryEscape(w.idp.id("alice")), token: token})
	}
	claims := w.idp.claims("alice")
	claims["exp"] = time.Now().Add(-10 * time.Second).Unix()
	claims["aud"] = []string{"other", "certmill"}
	for name, token := range map[string]string{
		"by an EC key":                         w.idp.token(t, "alice"),
		"by an RSA key":                        w.idp.sign(t, jose.RS256, w.idp.rsa, "rsa", w.idp.claims("alice")),
		"within the clock skew, two audiences": w.idp.sign(t, jose.ES256, w.idp.ec, "ec", claims),
	} {
		t.Run(name, func(t *testing.T) { me(token).ok(t, 200) })
	}
	t.Run("a token is remembered, and not beyond its end", func(t *testing.T) {
		claims := w.idp.claims("alice")
		claims["exp"] = time.Now().Add(2 * time.Minute).Unix()
		token := w.idp.sign(t, jose.ES256, w.idp.ec, "ec", claims)
		me(token).ok(t, 200)
		if n := w.gateway.auth.jwt.known.len(); n == 0 {
			t.Error("nothing is remembered")
		}
		w.clock.advance(2*time.Minute + w.idp.config.ClockSkew + time.Second)
		defer w.clock.advance(-(2*time.Minute + w.idp.config.ClockSkew + time.Second))
		me(token).expect(t, 401, "authorization", "expired")
	})
	t.Run("a key taken out of the file ends its tokens, remembered or not", func(t *testing.T) {
		old := w.idp.token(t, "alice")
		me(old).ok(t, 200)
		w.clock.advance(jwksFilePause) // the file was looked at just now
		next := newKey(t)
		w.idp.publish(t, jose.JSONWebKey{Key: next.Public(), KeyID: "next"})
		me(w.idp.sign(t, jose.ES256, next, "next", w.idp.claims("alice"))).ok(t, 200)
		me(old).expect(t, 401, "authorization", "key")
	})
}

func TestJWKSURL(t *testing.T) {
	p := newIDP(t)
	var asked atomic.Int64
	var down atomic.Bool
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		http.ServeFile(w, r, p.config.JWKSFile)
	}))
	t.Cleanup(server.Close)
	file := (&authority{cert: server.Certificate()}).file(t)
	cfg := p.config
	cfg.JWKSFile, cfg.JWKSURL, cfg.JWKSCAFile = "", server.URL, file
	c := &clock{}
	a := newJWTAuth(Auth{JWT: []JWTIssuer{cfg}, CacheEntries: 10, CacheTTL: time.Minute}, nil, c.now)

	down.Store(true)
	if _, err := a.caller(t.Context(), p.token(t, "alice")); statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("with the issuer down: %v", err)
	}
	down.Store(false)
	c.advance(jwksPause)
	caller, err := a.caller(t.Context(), p.token(t, "alice"))
	if err != nil || caller.ID != p.id("alice") || caller.Identity != "spiffe://example.test/sa/alice" {
		t.Fatalf("%v %v", caller, err)
	}
	before := asked.Load()
	for range 100 { // a flood of unknown keys is no flood for the issuer
		if _, err := a.caller(t.Context(), p.sign(t, jose.ES256, p.ec, "unknown", p.claims("bob"))); statusOf(err) != http.StatusUnauthorized {
			t.Fatal(err)
		}
	}
	if n := asked.Load() - before; n > 1 {
		t.Errorf("the issuer was asked %d times", n)
	}
	down.Store(true)
	c.advance(time.Hour)
	if _, err := a.caller(t.Context(), p.sign(t, jose.ES256, p.ec, "ec", map[string]any{"iss": cfg.Issuer, "sub": "x", "aud": "certmill", "exp": c.now().Add(time.Hour).Unix()})); err != nil {
		t.Errorf("known keys are not used while the issuer is down: %v", err)
	}
}

func TestClientCertificates(t *testing.T) {
	w := newWorld(t)
	listOwn := func(t *testing.T, id string, certs ...tls.Certificate) httpReply {
		return w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates?caller=" + url.QueryEscape(id), client: w.client(certs...)})
	}
	uri := must(url.Parse("spiffe://example.test/sa/a"))(t)
	for name, c := range map[string]struct {
		template *x509.Certificate
		id       string
	}{
		"a URI comes first":        {&x509.Certificate{URIs: []*url.URL{uri}, DNSNames: []string{"a.test"}, Subject: named("a")}, "spiffe://example.test/sa/a"},
		"then a DNS name":          {&x509.Certificate{DNSNames: []string{"a.test"}, Subject: named("a")}, "dns:a.test"},
		"a common name at the end": {&x509.Certificate{Subject: named("alice")}, "cn:alice"},
	} {
		t.Run(name, func(t *testing.T) {
			listOwn(t, w.pki.foreign.caller(c.id), w.pki.foreign.issue(t, c.template)).ok(t, 200)
		})
	}
	t.Run("two CAs that give out one name name two callers, even under one subject", func(t *testing.T) {
		twin := w.pki.twin.issue(t, &x509.Certificate{Subject: named("alice")})
		listOwn(t, w.pki.twin.caller("cn:alice"), twin).ok(t, 200)
		listOwn(t, w.pki.foreign.caller("cn:alice"), twin).expect(t, 403, "caller", "own_or_viewer")
		listOwn(t, "mtls:cn:alice", twin).expect(t, 403, "caller", "own_or_viewer")
		claimed := w.pki.foreign.issue(t, &x509.Certificate{URIs: []*url.URL{uri}})
		listOwn(t, "mtls:"+uri.String(), claimed).expect(t, 403, "caller", "own_or_viewer")
	})
	t.Run("a renewed root names the same callers, and a newer one beside it changes nobody", func(t *testing.T) {
		old, renewed := *w.pki.foreign.cert, *w.pki.foreign.cert
		renewed.NotBefore = old.NotBefore.Add(time.Hour)
		other := *w.pki.twin.cert
		other.NotBefore = old.NotBefore.Add(time.Hour)
		leaf := &x509.Certificate{}
		for _, chains := range [][][]*x509.Certificate{{{leaf, &old}}, {{leaf, &renewed}}, {{leaf, &other}, {leaf, &old}}, {{leaf, &old}, {leaf, &other}}} {
			if got := "mtls:" + caPrefix(anchor(chains)); got != w.pki.foreign.caller("") {
				t.Errorf("%s, want %s", got, w.pki.foreign.caller(""))
			}
		}
	})
	t.Run("a common name cannot pass for a SPIFFE ID", func(t *testing.T) {
		listOwn(t, "", w.pki.foreign.issue(t, &x509.Certificate{Subject: named(uri.String())})).expect(t, 401, "authorization", "identity")
	})
	t.Run("a certificate without names is nobody", func(t *testing.T) {
		listOwn(t, "", w.pki.foreign.issue(t, &x509.Certificate{})).expect(t, 401, "authorization", "identity")
	})
	t.Run("a certificate of an unknown CA ends in the handshake", func(t *testing.T) {
		stranger := newAuthority(t, "stranger", nil).issue(t, &x509.Certificate{Subject: named("x")})
		if r, err := w.client(stranger).Get("https://" + w.https + "/v1/trust-bundle"); err == nil {
			_ = r.Body.Close()
			t.Error("it was let in")
		}
	})
	t.Run("a certificate of our root that is not from an issuer ends in the handshake", func(t *testing.T) {
		sibling := newAuthority(t, "sibling", w.pki.root)
		c := sibling.issue(t, &x509.Certificate{URIs: []*url.URL{uri}})
		c.Certificate = append(c.Certificate, sibling.cert.Raw)
		if r, err := w.client(c).Get("https://" + w.https + "/v1/trust-bundle"); err == nil {
			_ = r.Body.Close()
			t.Error("it was let in")
		}
	})
	t.Run("a CA below ours cannot name callers", func(t *testing.T) {
		below := newAuthority(t, "below", w.pki.issuing)
		c := below.issue(t, &x509.Certificate{URIs: []*url.URL{uri}})
		c.Certificate = append(c.Certificate, below.cert.Raw)
		listOwn(t, "", c).expect(t, 401, "authorization", "subordinate_ca")
	})
	t.Run("a certificate with our issuer's signature that the ledger does not know is refused", func(t *testing.T) {
		listOwn(t, "", w.pki.issuing.issue(t, &x509.Certificate{URIs: []*url.URL{uri}})).expect(t, 401, "authorization", "unknown_certificate")
	})
	t.Run("a certificate that ends on a living connection ends there", func(t *testing.T) {
		c := w.pki.foreign.issue(t, &x509.Certificate{Subject: named("short"), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
		client := w.client(c)
		call := httpCall{method: http.MethodGet, path: "/v1/certificates?caller=" + w.pki.foreign.caller("cn:short"), client: client}
		w.do(t, call).ok(t, 200)
		w.clock.advance(61 * time.Minute)
		defer w.clock.advance(-61 * time.Minute)
		w.do(t, call).expect(t, 401, "authorization", "expired")
	})
}

// obtain gets a certificate and returns it ready for mTLS.
func (w *world) obtain(t testing.TB, c httpCall) tls.Certificate {
	t.Helper()
	key := newKey(t)
	c.method, c.contentType, c.body = http.MethodPost, pemType, armour(newCSR(t, key))
	chain := parseChain(t, w.do(t, c).ok(t, 200).body)
	return tls.Certificate{Certificate: [][]byte{chain[0].Raw}, PrivateKey: key, Leaf: chain[0]}
}

func TestOwnCertificatesRenewUntilTheyAreRevoked(t *testing.T) {
	w := newWorld(t)
	first := w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", token: w.idp.token(t, "shop")})
	if got := first.Leaf.URIs[0].String(); got != "spiffe://example.test/sa/shop" {
		t.Fatalf("the identity is %s", got)
	}
	if p := w.signer.lastPriority(); p != queue.First {
		t.Errorf("a first certificate has priority %s", p)
	}
	client := w.client(first)
	second := w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", client: client})
	if got := second.Leaf.URIs[0].String(); got != "spiffe://example.test/sa/shop" || second.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 {
		t.Errorf("renewal gave %s, serial %s", got, second.Leaf.SerialNumber)
	}
	if p := w.signer.lastPriority(); p != queue.Renewal {
		t.Errorf("a renewal has priority %s", p)
	}
	path := fmt.Sprintf("/v1/certificates/%032x", first.Leaf.SerialNumber)
	w.do(t, httpCall{method: http.MethodPost, path: path + ":revoke", client: w.client(second)}).expect(t, 403, "serial", "own_or_operator")
	w.do(t, httpCall{method: http.MethodPost, path: path + ":revoke", client: client}).ok(t, 200) // by itself, for no stated reason
	w.do(t, httpCall{method: http.MethodGet, path: path, client: client}).expect(t, 401, "authorization", "revoked")
	w.do(t, httpCall{method: http.MethodGet, path: fmt.Sprintf("/v1/certificates/%032x", second.Leaf.SerialNumber), client: w.client(second)}).ok(t, 200)
}

func TestEnrollmentTokens(t *testing.T) {
	w := newWorld(t)
	operator := w.idp.token(t, "operator")
	create := func(t *testing.T, request map[string]any) *certmillv1.CreateEnrollmentTokenResponse {
		t.Helper()
		var out certmillv1.CreateEnrollmentTokenResponse
		w.do(t, httpCall{method: http.MethodPost, path: "/v1/enrollment-tokens", contentType: typeJSON, token: operator, body: toJSON(t, request)}).ok(t, 201).decode(t, &out)
		return &out
	}
	issue := func(t *testing.T, secret, query string, csr []byte) httpReply {
		t.Helper()
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates" + query, contentType: pemType, token: secret, body: armour(csr)})
	}
	t.Run("one use makes one certificate, however often it is asked for", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "owned", "names": []string{"a.example.test"}, "owner": "team"})
		csr := newCSR(t, nil, "a.example.test")
		first := issue(t, token.Secret, "", csr).ok(t, 200)
		again := issue(t, token.Secret, "", csr).ok(t, 200)
		if !bytes.Equal(first.body, again.body) {
			t.Error("a retry made another certificate")
		}
		r := issue(t, token.Secret, "", newCSR(t, nil, "a.example.test"))
		if p := r.problem(t); r.status != 401 || p.Rule != "token_used" {
			t.Errorf("a replay got %d %s", r.status, p.Rule)
		}
		row, _, err := w.book.Certificate(t.Context(), must(parseSerial(first.header.Get("Certmill-Serial")))(t))
		if err != nil || row.Owner != "team" || row.Caller != "token:"+token.Token.Id {
			t.Errorf("the ledger has %+v, %v", row, err)
		}
	})
	t.Run("one use makes one certificate when the first has ended, too", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "server", "names": []string{"a.example.test"}, "lifetime": "30d"})
		send := func(csr []byte) httpReply {
			return w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates?lifetime=1h", contentType: pemType, token: token.Secret, body: armour(csr), header: http.Header{"Idempotency-Key": {"k"}}})
		}
		first, second := newCSR(t, nil, "a.example.test"), newCSR(t, nil, "a.example.test")
		again := send(first).ok(t, 200).body
		if !bytes.Equal(send(first).ok(t, 200).body, again) {
			t.Error("a retry made another certificate")
		}
		send(second).expect(t, 401, "", "token_used")
		w.clock.advance(2 * time.Hour)
		defer w.clock.advance(-2 * time.Hour)
		send(first).expect(t, 401, "", "token_used")
		send(second).expect(t, 401, "", "token_used")
	})
	t.Run("of many at once on one use one wins", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "server", "names": []string{"*.example.test"}})
		var won, lost atomic.Int64
		var wait sync.WaitGroup
		client := w.client()
		for i := range 20 {
			csr := armour(newCSR(t, nil, fmt.Sprintf("r%d.example.test", i)))
			wait.Go(func() {
				switch r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: token.Secret, body: csr, client: client}); r.status {
				case 200:
					won.Add(1)
				case 401:
					lost.Add(1)
				default:
					t.Errorf("status %d: %s", r.status, r.body)
				}
			})
		}
		wait.Wait()
		if won.Load() != 1 || lost.Load() != 19 {
			t.Errorf("%d won, %d lost", won.Load(), lost.Load())
		}
	})
	t.Run("a refused request takes no use", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "server", "names": []string{"dns:a.example.test", "*.w.example.test", "ip:10.0.0.1"}})
		issue(t, token.Secret, "?profile=owned", newCSR(t, nil, "a.example.test")).expect(t, 403, "profile", "token_profile")
		issue(t, token.Secret, "", newCSR(t, nil, "b.example.test")).expect(t, 403, "csr.names", "token_names")
		issue(t, token.Secret, "", newCSR(t, nil, "w.example.test")).expect(t, 403, "csr.names", "token_names")
		issue(t, token.Secret, "", newCSR(t, nil, "a.b.w.example.test")).expect(t, 403, "csr.names", "token_names")
		issue(t, token.Secret, "", customCSR(t, nil, &x509.CertificateRequest{IPAddresses: ips("10.0.0.2")})).expect(t, 403, "csr.names", "token_names")
		issue(t, token.Secret, "", customCSR(t, nil, &x509.CertificateRequest{Subject: named("c.example.test"), DNSNames: []string{"a.example.test"}})).expect(t, 403, "csr.names", "token_names")
		issue(t, token.Secret, "", customCSR(t, nil, &x509.CertificateRequest{DNSNames: []string{"A.example.test", "x.w.example.test"}, IPAddresses: ips("10.0.0.1")})).ok(t, 200)
	})
	t.Run("another owner than the token's is refused", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "owned", "names": []string{"a.example.test"}, "owner": "team"})
		issue(t, token.Secret, "?owner=me", newCSR(t, nil, "a.example.test")).expect(t, 403, "metadata.owner", "token_owner")
	})
	t.Run("its one exact name is an identity", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "workload", "names": []string{"uri:spiffe://example.test/vm/7"}})
		leaf := parseChain(t, issue(t, token.Secret, "", customCSR(t, nil, &x509.CertificateRequest{})).ok(t, 200).body)[0]
		if leaf.URIs[0].String() != "spiffe://example.test/vm/7" {
			t.Error(leaf.URIs)
		}
	})
	t.Run("an expired token is refused", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "server", "names": []string{"a.example.test"}, "lifetime": "60s"})
		w.clock.advance(time.Minute)
		defer w.clock.advance(-time.Minute)
		r := issue(t, token.Secret, "", newCSR(t, nil, "a.example.test"))
		if p := r.problem(t); r.status != 401 || p.Rule != "token_expired" {
			t.Errorf("got %d %s", r.status, p.Rule)
		}
	})
	t.Run("a deleted token is refused at once, remembered or not", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "server", "names": []string{"*.example.test"}, "uses": 5})
		issue(t, token.Secret, "", newCSR(t, nil, "a.example.test")).ok(t, 200)
		w.do(t, httpCall{method: http.MethodDelete, path: "/v1/enrollment-tokens/" + token.Token.Id, token: operator}).ok(t, 200)
		if r := issue(t, token.Secret, "", newCSR(t, nil, "b.example.test")); r.status != 401 {
			t.Errorf("got %d", r.status)
		}
		w.do(t, httpCall{method: http.MethodDelete, path: "/v1/enrollment-tokens/" + token.Token.Id, token: operator}).ok(t, 404)
	})
	t.Run("its secret is nowhere but in the answer", func(t *testing.T) {
		token := create(t, map[string]any{"profile": "server", "names": []string{"a.example.test"}})
		list := w.do(t, httpCall{method: http.MethodGet, path: "/v1/enrollment-tokens", token: operator}).ok(t, 200)
		hash := sha256.Sum256([]byte(token.Secret))
		for what, text := range map[string]string{"the list": string(list.body), "the log": w.logs.String()} {
			if strings.Contains(text, token.Secret) || strings.Contains(text, hex.EncodeToString(hash[:])) {
				t.Errorf("%s holds it", what)
			}
		}
	})
	t.Run("the list is paged and the trail tells who made what", func(t *testing.T) {
		seen, page := map[string]bool{}, ""
		for {
			var out certmillv1.ListEnrollmentTokensResponse
			w.do(t, httpCall{method: http.MethodGet, path: "/v1/enrollment-tokens?page_size=3&page_token=" + page, token: operator}).ok(t, 200).decode(t, &out)
			for _, token := range out.Tokens {
				seen[token.Id] = true
			}
			if page = out.NextPageToken; page == "" {
				break
			}
		}
		tokens := must(w.book.Tokens(t.Context()))(t)
		if len(seen) != len(tokens) || len(seen) < 5 {
			t.Errorf("%d listed of %d", len(seen), len(tokens))
		}
		var trail certmillv1.ListAuditResponse
		w.do(t, httpCall{method: http.MethodGet, path: "/v1/audit?page_size=1000", token: w.idp.token(t, "auditor")}).ok(t, 200).decode(t, &trail)
		actions := map[string]int{}
		for _, e := range trail.Entries {
			if e.Actor == w.idp.id("operator") {
				actions[e.Action]++
			}
		}
		if actions["enrollment_token.create"] != len(tokens)+1 || actions["enrollment_token.delete"] == 0 {
			t.Errorf("the trail has %v", actions)
		}
	})
	t.Run("what a token cannot be is refused", func(t *testing.T) {
		for rule, request := range map[string]map[string]any{
			"required":        {"names": []string{"a.example.test"}},
			"profile_unknown": {"profile": "nope", "names": []string{"a.example.test"}},
			"token_names":     {"profile": "server"},
			"token_uses":      {"profile": "server", "names": []string{"a.example.test"}, "uses": 1_000_001},
			"token_lifetime":  {"profile": "server", "names": []string{"a.example.test"}, "lifetime": "31d"},
		} {
			r := w.do(t, httpCall{method: http.MethodPost, path: "/v1/enrollment-tokens", contentType: typeJSON, token: operator, body: toJSON(t, request)})
			if p := r.problem(t); r.status != 400 || p.Rule != rule {
				t.Errorf("got %d %s, want 400 %s", r.status, p.Rule, rule)
			}
		}
	})
}

func TestRoles(t *testing.T) {
	w := newWorld(t)
	alice := w.idp.token(t, "alice")
	issued := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: alice, body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 200)
	serial := issued.header.Get("Certmill-Serial")
	token := map[string]any{"profile": "server", "names": []string{"a.example.test"}}
	calls := map[string]httpCall{
		"read":   {method: http.MethodGet, path: "/v1/certificates/" + serial},
		"list":   {method: http.MethodGet, path: "/v1/certificates"},
		"revoke": {method: http.MethodPost, path: "/v1/certificates/" + serial + "/revoke", contentType: typeJSON, body: []byte(`{"reason":"REVOCATION_REASON_SUPERSEDED","comment":"x"}`)},
		"token":  {method: http.MethodPost, path: "/v1/enrollment-tokens", contentType: typeJSON, body: toJSON(t, token)},
		"tokens": {method: http.MethodGet, path: "/v1/enrollment-tokens"},
		"audit":  {method: http.MethodGet, path: "/v1/audit"},
	}
	// Revocation changes what the others see, so admin and operator come last.
	for _, who := range []struct{ name, may string }{
		{"mallory", ""}, {"viewer", "read list tokens"}, {"auditor", "audit"},
		{"operator", "read list revoke token tokens"}, {"admin", "read list revoke token tokens audit"},
	} {
		for what, call := range calls {
			t.Run(who.name+" asks to "+what, func(t *testing.T) {
				call.token = w.idp.token(t, who.name)
				r := w.do(t, call)
				if may := strings.Contains(" "+who.may+" ", " "+what+" "); may && r.status >= 300 || !may && r.status != http.StatusForbidden {
					t.Errorf("status %d: %s", r.status, r.body)
				}
			})
		}
	}
	var first, second certmillv1.Certificate
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates/" + strings.ToUpper(serial[:2]+":"+serial[2:]), token: alice}).ok(t, 200).decode(t, &first)
	if first.Revocation.GetReason() != certmillv1.RevocationReason_REVOCATION_REASON_SUPERSEDED || first.Revocation.RevokedBy != w.idp.id("operator") {
		t.Errorf("the revocation is %v", first.Revocation)
	}
	again := calls["revoke"]
	again.token, again.body = alice, []byte(`{"reason":"REVOCATION_REASON_KEY_COMPROMISE"}`)
	w.do(t, again).expect(t, 409, "reason", "revocation_final")
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates/" + serial, token: alice}).ok(t, 200).decode(t, &second)
	if second.Revocation.Reason != first.Revocation.Reason || !second.Revocation.RevokedAt.AsTime().Equal(first.Revocation.RevokedAt.AsTime()) {
		t.Error("another reason changed the revocation")
	}
	chain := parseChain(t, w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates/" + serial, token: alice, header: http.Header{"Accept": {typeChain}}}).ok(t, 200).body)
	if len(chain) != 2 {
		t.Errorf("%d certificates", len(chain))
	}
}

func TestListCertificates(t *testing.T) {
	w := newWorld(t)
	alice, viewer := w.idp.token(t, "alice"), w.idp.token(t, "viewer")
	for i := range 5 {
		w.do(t, httpCall{method: http.MethodPost, path: fmt.Sprintf("/v1/certificates?owner=o%d&lifetime=%dh", i%2, i+1), contentType: pemType, token: alice, body: armour(newCSR(t, nil, fmt.Sprintf("l%d.example.test", i)))}).ok(t, 200)
	}
	list := func(t *testing.T, token, query string) []string {
		var names []string
		for page := ""; ; {
			var out certmillv1.ListCertificatesResponse
			w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates?page_size=2&" + query + "&page_token=" + page, token: token}).ok(t, 200).decode(t, &out)
			for _, c := range out.Certificates {
				names = append(names, strings.TrimPrefix(c.Names[0], "dns:"))
				if c.Pem != "" || c.Chain != nil {
					t.Error("a list holds chains")
				}
			}
			if page = out.NextPageToken; page == "" {
				return names
			}
		}
	}
	for query, want := range map[string]int{
		"": 5, "owner=o1": 2, "name=L3.example.test": 1, "name=dns:l3.example.test": 1, "name=ip:10.0.0.1": 0,
		"caller=" + url.QueryEscape(w.idp.id("alice")):                                                 5,
		"expires_before=" + url.QueryEscape(time.Now().Add(150*time.Minute).Format(time.RFC3339)):      2,
		"expires_after=" + url.QueryEscape(time.Now().Add(150*time.Minute).UTC().Format(time.RFC3339)): 3,
	} {
		t.Run("by "+query, func(t *testing.T) {
			if got := list(t, viewer, query); len(got) != want {
				t.Errorf("%v, want %d", got, want)
			}
		})
	}
	if got := list(t, alice, "caller="+url.QueryEscape(w.idp.id("alice"))); len(got) != 5 {
		t.Errorf("her own: %v", got)
	}
}
