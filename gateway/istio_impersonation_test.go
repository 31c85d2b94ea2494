package gateway

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	istioauth "github.com/certmill/certmill/proto/istio/v1/auth"
)

const vault = "spiffe://cluster.local/ns/bank/sa/vault"

// ztunnel is the node proxy of node-1.
var ztunnel = apiToken{namespace: "istio-system", account: "ztunnel", pod: "ztunnel-1", uid: "uid-z1"}

func (m *mesh) actFor(ctx context.Context, t testing.TB, csr, id string) ([]string, error) {
	return m.ask(ctx, &istioauth.IstioCertificateRequest{Csr: csr, Metadata: meta(t, map[string]any{"ImpersonatedIdentity": id})})
}

func TestANodeProxyActsForThePodsOfItsNode(t *testing.T) {
	m := newMesh(t)
	node := as(t.Context(), m.api.account(t, m.idp, ztunnel, time.Hour))
	m.api.set(func() {
		m.api.pods = []apiPod{
			{"istio-system", "ztunnel-1", "uid-z1", "ztunnel", "node-1", "Running"},
			{"bank", "vault-1", "uid-v1", "vault", "node-1", "Pending"},
			{"bank", "ledger-1", "uid-l1", "ledger", "node-2", "Running"},
			{"bank", "job-1", "uid-j1", "job", "node-1", "Succeeded"},
			{"shop", "vault-2", "uid-v2", "vault", "node-2", "Running"},
		}
	})
	ask := func(id string) ([]string, error) { return m.actFor(node, t, meshCSR(t, id), id) }

	wantSAN(t, m.leafOf(t, must(ask(vault))(t)), vault)
	for id, rule := range map[string]string{
		"spiffe://cluster.local/ns/bank/sa/ledger":      "not_on_node",
		"spiffe://cluster.local/ns/bank/sa/job":         "not_on_node", // it has ended
		"spiffe://cluster.local/ns/shop/sa/vault":       "not_on_node",
		"spiffe://cluster.local/ns/bank/sa/nobody":      "not_on_node",
		"spiffe://other.example.test/ns/bank/sa/vault":  "foreign_identity",
		"spiffe://cluster.local/operator/root":          "foreign_identity",
		"spiffe://cluster.local/ns/bank/sa/vault/extra": "foreign_identity",
	} {
		_, err := ask(id)
		refused(t, err, codes.PermissionDenied, rule)
	}
	_, err := ask("spiffe://cluster.local/ns/bank/../sa/vault")
	refused(t, err, codes.InvalidArgument, "spiffe_id")

	t.Run("one CSR for two identities makes two certificates", func(t *testing.T) {
		m.api.set(func() {
			m.api.pods = append(m.api.pods, apiPod{"bank", "till-1", "uid-t1", "till", "node-1", "Running"})
		})
		csr := meshCSR(t, vault)
		wantSAN(t, m.leafOf(t, must(m.actFor(node, t, csr, vault))(t)), vault)
		wantSAN(t, m.leafOf(t, must(m.actFor(node, t, csr, "spiffe://cluster.local/ns/bank/sa/till"))(t)), "spiffe://cluster.local/ns/bank/sa/till")
	})
	t.Run("what runs on a node is asked again after pod_ttl", func(t *testing.T) {
		_, before := m.api.asked()
		must(ask(vault))(t)
		if _, lists := m.api.asked(); lists != before {
			t.Error("the API server was asked again at once")
		}
		m.api.set(func() { m.api.pods[1].node = "node-2" })
		m.clock.advance(11 * time.Second)
		_, err := ask(vault)
		refused(t, err, codes.PermissionDenied, "not_on_node")
	})
	t.Run("the node proxy's pod is another one", func(t *testing.T) {
		m.clock.advance(11 * time.Second)
		m.api.set(func() { m.api.pods[0].uid = "uid-z2" })
		_, err := ask("spiffe://cluster.local/ns/bank/sa/till")
		refused(t, err, codes.PermissionDenied, "node_pod")
		m.api.set(func() { m.api.pods = m.api.pods[1:] })
		_, err = ask("spiffe://cluster.local/ns/bank/sa/till")
		refused(t, err, codes.PermissionDenied, "node_pod")
	})
	t.Run("the API server is away", func(t *testing.T) {
		m.api.set(func() { m.api.fail = 503 })
		_, err := ask("spiffe://cluster.local/ns/bank/sa/till")
		refused(t, err, codes.Unavailable, "kubernetes")
	})
}

func TestNobodyElseActsForAnother(t *testing.T) {
	m := newMesh(t)
	unbound := ztunnel
	unbound.pod = ""
	for what, c := range map[string]struct {
		token, rule string
	}{
		"an ordinary workload":              {m.cart(t), "node_account"},
		"the account of another namespace":  {m.api.account(t, m.idp, apiToken{namespace: "shop", account: "ztunnel", pod: "p", uid: "u"}, time.Hour), "node_account"},
		"a token that is bound to no pod":   {m.api.account(t, m.idp, unbound, time.Hour), "unbound_token"},
		"a caller of no cluster whatsoever": {m.idp.token(t, "alice"), "node_account"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := m.actFor(as(t.Context(), c.token), t, meshCSR(t, vault), vault)
			refused(t, err, codes.PermissionDenied, c.rule)
		})
	}
}

// Where no API server is configured the trust in the node account has to do.
func TestANodeProxyOfAClusterWithoutAnAPIServer(t *testing.T) {
	m := newMesh(t)
	who := ztunnel
	who.audiences = []string{"istio-ca"}
	there := metadata.AppendToOutgoingContext(as(t.Context(), m.other.sign(t, "ES256", m.other.ec, "ec", kubernetesClaims(who, time.Hour))), "clusterid", "other")
	const id = "spiffe://other.example.test/ns/bank/sa/vault"
	wantSAN(t, m.leafOf(t, must(m.actFor(there, t, meshCSR(t, id), id))(t)), id)
	_, err := m.actFor(there, t, meshCSR(t, vault), vault)
	refused(t, err, codes.PermissionDenied, "foreign_identity")
}
