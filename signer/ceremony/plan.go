package ceremony

import (
	"context"
	"fmt"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/signer/hsm"
)

// Planned is one part of a CA as Init would leave it.
type Planned struct {
	Name string `json:"name"`
	// Make says that Init would make its certificate; else it stands already.
	Make bool `json:"make"`
	// NewKey says that Init would make its key too.
	NewKey bool `json:"new_key"`
	// Detail says what it is or would be, for people.
	Detail string `json:"detail"`
}

// Plan says what Init would make, and changes nothing. It fails where Init would fail
// before its first change.
func Plan(ctx context.Context, spec Spec, token *hsm.Token, book Registrar, deps Deps) ([]Planned, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	c := &ceremony{Deps: deps.withDefaults(), spec: spec, token: token, book: book}
	var plan []Planned
	var issuing *CA
	for _, ca := range []CASpec{spec.Root, spec.Issuing} {
		there, err := c.registered(ctx, ca.Name)
		if err != nil {
			return nil, err
		}
		issuing = there // the last one
		if there != nil {
			plan = append(plan, Planned{Name: ca.Name, Detail: fmt.Sprintf("%s, until %s", there.Certificate.Subject, there.Certificate.NotAfter.UTC().Format("2006-01-02"))})
			continue
		}
		fresh, err := c.lacksKey(ctx, ca.Name)
		if err != nil {
			return nil, err
		}
		plan = append(plan, Planned{Name: ca.Name, Make: true, NewKey: fresh, Detail: fmt.Sprintf("%s, %s, for %s", ca.CommonName, ca.KeyAlgorithm, ca.Lifetime)})
	}
	delegate, err := c.planDelegate(ctx, issuing)
	if err != nil {
		return nil, err
	}
	return append(plan, delegate), nil
}

func (c *ceremony) planDelegate(ctx context.Context, issuing *CA) (Planned, error) {
	p := Planned{Name: "ocsp signer", Make: true, NewKey: c.spec.OCSP.KeyFile == "", Detail: fmt.Sprintf("%s, for %s", c.spec.OCSP.KeyAlgorithm, c.spec.OCSP.Lifetime)}
	if c.spec.OCSP.KeyFile != "" {
		p.Detail += ", key in " + c.spec.OCSP.KeyFile
	}
	if issuing == nil {
		return p, nil
	}
	there, err := c.newestDelegate(ctx, issuing.Issuer.ID)
	if err != nil {
		return p, err
	}
	if there != nil && !c.spec.OCSP.due(there.Certificate, issuing.Certificate, c.Now()) {
		return Planned{Name: p.Name, Detail: fmt.Sprintf("%s, until %s", there.Certificate.Subject, there.Certificate.NotAfter.UTC().Format("2006-01-02"))}, nil
	}
	if p.NewKey {
		p.NewKey, err = c.lacksKey(ctx, delegateLabel(issuing))
	}
	return p, err
}

// lacksKey reports whether the token has no key with this label.
func (c *ceremony) lacksKey(ctx context.Context, label string) (bool, error) {
	_, err := c.token.Key(ctx, hsm.URI{Object: label}.String())
	if problem.KindOf(err) == problem.NotFound {
		return true, nil
	}
	return false, err
}
