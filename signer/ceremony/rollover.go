package ceremony

import (
	"context"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

// A rollover replaces the key of an issuing CA while it is at work:
//
//	Prepare    a new key, its certificate by the root and an OCSP signer; published, issues nothing
//	Activate   the new generation issues; the old one is retired: CRLs and OCSP answers go on
//	CloseIssuer (of the ledger) ends the old one when its last certificate has expired
//
// Signers follow within their issuer_refresh. For that long some sign by the old key and
// others by the new one, and either is good.

// RolloverBook keeps a rollover; *ledger.Ledger is one.
type RolloverBook interface {
	Registrar
	AppendAudit(ctx context.Context, e ledger.AuditEntry) (ledger.AuditEntry, error)
}

// Next is the generation of an issuing CA that takes over.
type Next struct {
	CA   CA
	OCSP Delegate
	// Before is the generation that is active until the next one is.
	Before ledger.Issuer
	// root is the one that has certified what is prepared; nil without its key.
	root *CA
}

// Prepare makes what is missing of the next generation of spec's issuing CA and returns
// it. It needs the root's key in the token. It may be ended at any point and begun
// again; where a generation is prepared already, it is taken as it is.
func Prepare(ctx context.Context, spec Spec, actor string, token *hsm.Token, book RolloverBook, deps Deps) (*Next, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	c := &ceremony{Deps: deps.withDefaults(), spec: spec, token: token, book: book}
	g, err := c.generations(ctx, spec.Issuing.Name)
	if err != nil {
		return nil, err
	}
	next := &Next{Before: *g.active}
	ca, err := c.prepared(ctx, g, actor, book)
	if err != nil {
		return nil, fmt.Errorf("preparing the next generation of %q: %w", spec.Issuing.Name, err)
	}
	delegate, err := c.delegate(ctx, ca)
	if err != nil {
		return nil, fmt.Errorf("making its OCSP signer: %w", err)
	}
	next.CA, next.OCSP = *ca, *delegate
	// What was prepared before does not need the root's key; its transcript does.
	if root, err := c.registered(ctx, spec.Root.Name); err == nil {
		next.root = root
	}
	return next, nil
}

// prepared returns the prepared generation, made where there is none.
func (c *ceremony) prepared(ctx context.Context, g generations, actor string, book RolloverBook) (*CA, error) {
	if g.prepared != nil {
		return c.open(ctx, *g.prepared)
	}
	root, err := c.registered(ctx, c.spec.Root.Name)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, problem.New(problem.NotFound, "the ledger has no root %q", c.spec.Root.Name)
	}
	// The number in the label is the same when a ceremony that was ended is begun again.
	label := fmt.Sprintf("%s %d", c.spec.Issuing.Name, g.count+1)
	_, err = book.AppendAudit(ctx, ledger.AuditEntry{Actor: actor, Action: "issuer.prepare", Subject: c.spec.Issuing.Name, Detail: fmt.Sprintf("key %q, to follow generation %d", label, g.active.ID)})
	if err != nil {
		return nil, fmt.Errorf("recording it: %w", err)
	}
	return c.generation(ctx, c.spec.Issuing, label, ledger.IssuerPrepared, root)
}

// Activate has the prepared generation of spec's issuing CA issue from now on. It is a
// Conflict where the generation has been published for less than published, in which
// gateways come to know it and makers make its first CRLs, or where it lacks its OCSP
// signer. Its key must be in the token.
func Activate(ctx context.Context, spec Spec, published time.Duration, actor string, token *hsm.Token, book RolloverBook, deps Deps) (*Next, error) {
	c := &ceremony{Deps: deps.withDefaults(), spec: spec, token: token, book: book}
	g, err := c.generations(ctx, spec.Issuing.Name)
	if err != nil {
		return nil, err
	}
	if g.prepared == nil {
		return nil, problem.New(problem.NotFound, "no generation of %q is prepared; generation %d is active", spec.Issuing.Name, g.active.ID)
	}
	ca, err := c.open(ctx, *g.prepared)
	if err != nil {
		return nil, err
	}
	delegate, err := c.newestDelegate(ctx, ca.Issuer.ID)
	if err != nil {
		return nil, err
	}
	if delegate == nil || !c.Now().Before(delegate.Certificate.NotAfter) {
		return nil, problem.New(problem.Conflict, "generation %d has no OCSP signer; prepare it again", ca.Issuer.ID)
	}
	if left := published - c.Now().Sub(ca.Issuer.Created); left > 0 {
		return nil, &problem.Error{Kind: problem.Conflict, Field: "published_for", Rule: "min",
			Detail: fmt.Sprintf("generation %d was prepared at %s and is to be published for %s; try again in %s", ca.Issuer.ID, ca.Issuer.Created.Format(time.RFC3339), published, left.Round(time.Second))}
	}
	_, err = book.AppendAudit(ctx, ledger.AuditEntry{Actor: actor, Action: "issuer.activate", Subject: spec.Issuing.Name, Detail: fmt.Sprintf("generation %d, in place of %d", ca.Issuer.ID, g.active.ID)})
	if err != nil {
		return nil, fmt.Errorf("recording the activation: %w", err)
	}
	ca.Issuer.State = ledger.IssuerActive
	if _, err := book.PutIssuer(ctx, ca.Issuer); err != nil {
		return nil, fmt.Errorf("activating generation %d: %w", ca.Issuer.ID, err)
	}
	c.Log.Info("issuer rolled over", "name", spec.Issuing.Name, "generation", ca.Issuer.ID, "before", g.active.ID)
	return &Next{CA: *ca, OCSP: *delegate, Before: *g.active}, nil
}

// generations are those of one issuing CA.
type generations struct {
	active   *ledger.Issuer
	prepared *ledger.Issuer // nil where there is none
	count    int
}

// generations reads them; it is NotFound where none is active.
func (c *ceremony) generations(ctx context.Context, name string) (g generations, err error) {
	rows, err := c.book.Issuers(ctx)
	if err != nil {
		return g, fmt.Errorf("reading the issuers: %w", err)
	}
	for i := range rows {
		if rows[i].Name != name {
			continue
		}
		g.count++
		switch rows[i].State {
		case ledger.IssuerActive:
			g.active = &rows[i]
		case ledger.IssuerPrepared:
			g.prepared = &rows[i]
		}
	}
	if g.active == nil {
		return g, problem.New(problem.NotFound, "the ledger has no active issuing CA %q; make it with \"certmill ca init\"", name)
	}
	return g, nil
}
