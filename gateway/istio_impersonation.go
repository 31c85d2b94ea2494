package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/spiffe"
)

// impersonation is a question to the API server: does an identity run on the node of
// this pod?
type impersonation struct {
	podUID string
	of     spiffe.ID
}

// actFor returns the caller as one that acts for another identity, as a node proxy does
// for the workloads of its node. It must be a trusted node account of its cluster, show
// a token that is bound to its pod where the cluster's API server can be asked, and ask
// for an identity of the same cluster's trust domain; and then a pod with that identity
// must run on its node.
func (a *kubernetesAuth) actFor(ctx context.Context, c *Caller, identity string) (*Caller, error) {
	w := c.workload
	if w == nil || !slices.Contains(w.cluster.NodeAccounts, w.namespace+"/"+w.account) {
		return nil, refuseImpersonation("node_account", "the caller is no trusted node account, which alone may ask for another's identity")
	}
	id, err := spiffe.Parse(identity)
	if err != nil {
		return nil, problem.Rejected("metadata.ImpersonatedIdentity", "spiffe_id", "%s", problem.From(err).Detail)
	}
	namespace, account, ok := id.ServiceAccount()
	if !ok || id.TrustDomain != w.cluster.TrustDomain {
		return nil, refuseImpersonation("foreign_identity", fmt.Sprintf("the identity is no service account of trust domain %s", w.cluster.TrustDomain))
	}
	if w.cluster.api != nil {
		question := impersonation{w.podUID, id}
		if until, ok := w.cluster.runs.get(question); !ok || !a.now().Before(until) {
			asked := a.now()
			if err := w.runsBeside(ctx, namespace, account); err != nil {
				return nil, err
			}
			w.cluster.runs.put(question, asked.Add(w.cluster.PodTTL))
		}
	}
	acting := *c
	acting.Identity, acting.actsFor = identity, identity
	return &acting, nil
}

// runsBeside returns nil where a pod of the service account runs on w's own node.
func (w *workload) runsBeside(ctx context.Context, namespace, account string) error {
	if w.pod == "" || w.podUID == "" {
		return refuseImpersonation("unbound_token", "the node account's token is not bound to its pod, so its node is not known")
	}
	api := w.cluster.api
	own, err := api.pod(ctx, w.namespace, w.pod)
	switch {
	case errors.Is(err, errNotFound):
		return refuseImpersonation("node_pod", "the node account's pod is gone")
	case err != nil:
		return err
	case own.Metadata.UID != w.podUID || own.Spec.ServiceAccountName != w.account || !own.running():
		return refuseImpersonation("node_pod", "the node account's pod is another one now")
	case own.Spec.NodeName == "":
		return refuseImpersonation("node_pod", "the node account's pod runs on no node yet")
	}
	pods, err := api.podsOf(ctx, namespace, account, own.Spec.NodeName)
	if err != nil {
		return err
	}
	// The selector is the server's to apply; that it did is checked.
	here := func(p pod) bool {
		return p.running() && p.Spec.NodeName == own.Spec.NodeName && p.Spec.ServiceAccountName == account
	}
	if !slices.ContainsFunc(pods, here) {
		return refuseImpersonation("not_on_node", "no pod of that identity runs on the caller's node")
	}
	return nil
}

func refuseImpersonation(rule, detail string) error {
	return problem.Forbidden("metadata.ImpersonatedIdentity", rule, "%s", detail)
}
