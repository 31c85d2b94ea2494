package meshtest

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"
	"istio.io/istio/pkg/security"
	"istio.io/istio/security/pkg/nodeagent/caclient/providers/citadel"
	"istio.io/istio/security/pkg/pki/util"
)

// fetcher is the token of a pod, as its volume has it.
type fetcher string

func (f fetcher) GetPlatformCredential() (string, error) { return string(f), nil }
func (f fetcher) GetIdentityProvider() string            { return "" }
func (f fetcher) Stop()                                  {}

// agent is Istio's CA client as istio-agent makes it.
func (s *service) agent(t testing.TB, address, token string, tls ...string) *citadel.CitadelClient {
	t.Helper()
	options := &security.Options{CAEndpoint: address, CAEndpointSAN: "localhost", ClusterID: "c1"}
	if token != "" {
		options.CredFetcher = fetcher(token)
	}
	files := &citadel.TLSOptions{RootCert: s.data("root.pem")}
	if len(tls) == 2 {
		files.Cert, files.Key = tls[0], tls[1]
	}
	c, err := citadel.NewCitadelClient(options, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// csr makes a CSR as istio-agent does.
func csr(t testing.TB, id string) (request, key []byte) {
	t.Helper()
	request, key, err := util.GenCSR(util.CertOptions{Host: id, ECSigAlg: util.EcdsaSigAlg})
	if err != nil {
		t.Fatal(err)
	}
	return request, key
}

func certificates(t testing.TB, text string) (list []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// judge holds an answer to what istio-agent and ztunnel demand, and returns the leaf:
// one certificate for each element, the leaf first; all roots in the last; the SAN equal
// to the identity; a chain that verifies.
func judge(t testing.TB, chain []string, id string, roots int) *x509.Certificate {
	t.Helper()
	if len(chain) < 2 {
		t.Fatalf("%d elements", len(chain))
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	last := certificates(t, chain[len(chain)-1])
	if len(last) != roots {
		t.Errorf("%d roots, want %d", len(last), roots)
	}
	for _, root := range last {
		options.Roots.AddCert(root)
	}
	var leaf *x509.Certificate
	for i, element := range chain[:len(chain)-1] {
		certs := certificates(t, element)
		if len(certs) != 1 {
			t.Fatalf("element %d holds %d certificates", i, len(certs))
		}
		if i == 0 {
			leaf = certs[0]
		} else {
			options.Intermediates.AddCert(certs[0])
		}
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id || len(leaf.DNSNames) > 0 {
		t.Errorf("the certificate names %v, want %s", leaf.URIs, id)
	}
	if _, err := leaf.Verify(options); err != nil {
		t.Error(err)
	}
	return leaf
}

func TestIstiosClientGetsAndRenews(t *testing.T) {
	s := shared
	s.gateway(t)
	const id = "spiffe://cluster.local/ns/shop/sa/cart"
	request, key := csr(t, "spiffe://cluster.local/ns/bank/sa/vault") // a name that is not its own
	chain, err := s.agent(t, s.grpc, s.token(t, "shop", "cart", time.Hour)).CSRSign(request, 3600)
	if err != nil {
		t.Fatal(err)
	}
	first := judge(t, chain, id, 1)

	t.Run("renewal by its certificate", func(t *testing.T) {
		dir := t.TempDir()
		certFile, keyFile := filepath.Join(dir, "cert-chain.pem"), filepath.Join(dir, "key.pem")
		if err := errors.Join(os.WriteFile(certFile, []byte(chain[0]+chain[1]), 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
			t.Fatal(err)
		}
		request, _ := csr(t, id)
		renewed, err := s.agent(t, s.grpc, "", certFile, keyFile).CSRSign(request, 3600)
		if err != nil {
			t.Fatal(err)
		}
		if again := judge(t, renewed, id, 1); again.SerialNumber.Cmp(first.SerialNumber) == 0 {
			t.Error("the renewal is the old certificate")
		}
	})
	t.Run("an expired token fails at once", func(t *testing.T) {
		request, _ := csr(t, id)
		began := time.Now()
		if _, err := s.agent(t, s.grpc, s.token(t, "shop", "cart", -time.Hour)).CSRSign(request, 3600); err == nil || !regexp.MustCompile("Unauthenticated").MatchString(err.Error()) {
			t.Errorf("got %v", err)
		}
		// Its first pause is 100 ms and the second 200 ms: it has not gone through all five.
		if took := time.Since(began); took > 2500*time.Millisecond {
			t.Errorf("it took %s, as if it were tried again", took)
		}
	})
	t.Run("a bad CSR is InvalidArgument", func(t *testing.T) {
		if _, err := s.agent(t, s.grpc, s.token(t, "shop", "cart", time.Hour)).CSRSign([]byte("no CSR"), 3600); err == nil || !regexp.MustCompile("InvalidArgument").MatchString(err.Error()) {
			t.Errorf("got %v", err)
		}
	})
}

func TestIstiosRetriesCarryItThroughAnOverload(t *testing.T) {
	s := shared
	s.gateway(t, "CERTMILL_GATEWAY_LIMITS_MAX_IN_FLIGHT=1", "CERTMILL_GATEWAY_LIMITS_MAX_BATCH=1")
	const agents = 12
	token := s.token(t, "storm", "proxy", time.Hour)
	var wait sync.WaitGroup
	start := make(chan struct{})
	for range agents {
		client, id := s.agent(t, s.grpc, token), "spiffe://cluster.local/ns/storm/sa/proxy"
		request, _ := csr(t, id)
		wait.Go(func() {
			<-start
			chain, err := client.CSRSign(request, 3600)
			if err != nil {
				// As istio-agent does: the next round, of the same CSR here.
				chain, err = client.CSRSign(request, 3600)
			}
			if err != nil {
				t.Error(err)
				return
			}
			judge(t, chain, id, 1)
		})
	}
	close(start)
	wait.Wait()
	if n := s.countOf(t, "spiffe://cluster.local/ns/storm/sa/proxy"); n != agents {
		t.Errorf("%d agents have made %d certificates", agents, n)
	}
	if !regexp.MustCompile(`certmill_gateway_requests_total\{[^}]*kind="overloaded"[^}]*route="mesh_issue"[^}]*\} [1-9]`).MatchString(s.scrape(t)) {
		t.Error("no agent met the overload, so nothing was tried")
	}
}

func (s *service) scrape(t testing.TB) string {
	t.Helper()
	r, err := http.Get("http://" + s.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestIstiosClientOutlivesARestart(t *testing.T) {
	s := shared
	g := s.gateway(t)
	const id = "spiffe://cluster.local/ns/shop/sa/restart"
	client := s.agent(t, s.grpc, s.token(t, "shop", "restart", time.Hour))
	request, _ := csr(t, id)
	before, err := client.CSRSign(request, 3600)
	if err != nil {
		t.Fatal(err)
	}
	g.kill()
	if _, err := client.CSRSign(request, 3600); err == nil {
		t.Fatal("a gateway that is dead has answered")
	}
	s.gateway(t)
	after, err := client.CSRSign(request, 3600)
	if err != nil {
		t.Fatal(err)
	}
	if judge(t, after, id, 1).SerialNumber.Cmp(judge(t, before, id, 1).SerialNumber) != 0 || s.countOf(t, id) != 1 {
		t.Error("one CSR, sent to two lives of the gateway, has made two certificates")
	}
}

// The certificate is committed and its answer lost: the next of the five tries finds it.
func TestAnAnswerLostOnItsWayMakesNoSecondCertificate(t *testing.T) {
	s := shared
	s.gateway(t)
	road := newRoad(t, s.grpc)
	const id = "spiffe://cluster.local/ns/shop/sa/lost"
	client := s.agent(t, road.address(), s.token(t, "shop", "lost", time.Hour))
	warm, _ := csr(t, id)
	if _, err := client.CSRSign(warm, 3600); err != nil {
		t.Fatal(err)
	}
	road.swallow(true)
	request, _ := csr(t, id)
	type answer struct {
		chain []string
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		chain, err := client.CSRSign(request, 3600)
		answers <- answer{chain, err}
	}()
	for end := time.Now().Add(20 * time.Second); s.countOf(t, id) < 2; {
		if time.Now().After(end) {
			t.Fatal("the request never arrived")
		}
	}
	road.swallow(false)
	road.cut()
	a := <-answers
	if a.err != nil {
		t.Fatal(a.err)
	}
	judge(t, a.chain, id, 1)
	if n := s.countOf(t, id); n != 2 {
		t.Errorf("two CSRs have made %d certificates", n)
	}
}

// road is the network between an agent and the gateway.
type road struct {
	listener net.Listener
	mu       sync.Mutex
	deaf     bool
	open     []net.Conn
	wait     sync.WaitGroup
}

func newRoad(t testing.TB, to string) *road {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &road{listener: l}
	r.wait.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			r.mu.Lock()
			r.open = append(r.open, near, far)
			r.mu.Unlock()
			r.wait.Go(func() { r.carry(far, near, false) })
			r.wait.Go(func() { r.carry(near, far, true) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); r.cut(); r.wait.Wait() })
	return r
}

func (r *road) address() string { return r.listener.Addr().String() }

// swallow makes answers get lost while requests go through.
func (r *road) swallow(deaf bool) { r.mu.Lock(); r.deaf = deaf; r.mu.Unlock() }

// cut ends all connections.
func (r *road) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.open {
		_ = c.Close()
	}
	r.open = nil
}

func (r *road) carry(to, from net.Conn, answers bool) {
	defer to.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		r.mu.Lock()
		lost := answers && r.deaf
		r.mu.Unlock()
		if n > 0 && !lost {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// ztunnel asks for others, over one connection, and wants each SAN to be what it asked
// for; the roots are several while a mesh moves from one CA to another.
func TestByZtunnelsRules(t *testing.T) {
	s := shared
	old := newTestCA(t, "the mesh's old CA")
	oldFile := filepath.Join(t.TempDir(), "old.pem")
	if err := os.WriteFile(oldFile, old.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.gateway(t, "CERTMILL_GATEWAY_SPIFFE_EXTRA_ROOTS=[{trust_domain: cluster.local, file: "+oldFile+"}]")
	roots := x509.NewCertPool()
	rootPEM, err := os.ReadFile(s.data("root.pem"))
	if err != nil || !roots.AppendCertsFromPEM(rootPEM) {
		t.Fatalf("root.pem: %v", err)
	}
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "localhost")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "clusterid", "c1", "authorization", "Bearer "+s.token(t, "istio-system", "ztunnel", time.Hour))
	for _, id := range []string{"spiffe://cluster.local/ns/a/sa/one", "spiffe://cluster.local/ns/b/sa/two"} {
		request, _ := csr(t, id)
		meta, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": id})
		if err != nil {
			t.Fatal(err)
		}
		out, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &pb.IstioCertificateRequest{Csr: string(request), ValidityDuration: 86400, Metadata: meta})
		if err != nil {
			t.Fatal(err)
		}
		judge(t, out.CertChain, id, 2)
		if last := certificates(t, out.CertChain[len(out.CertChain)-1]); !slices.ContainsFunc(last, old.cert.Equal) {
			t.Error("the old CA's root is missing")
		}
	}
}
