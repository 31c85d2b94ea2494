package ceremony

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"

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
	root, plan, err := c.planCA(ctx, spec.Root)
	if err != nil {
		return nil, err
	}
	cas := map[string]*CA{spec.Root.Name: root}
	_, issuers := spec.issuers()
	for i, ca := range issuers {
		there, planned, err := c.planCA(ctx, ca)
		if err != nil {
			return nil, err
		}
		delegate, err := c.planDelegate(ctx, there)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			delegate.Name += " of " + ca.Name
		}
		cas[ca.Name], plan = there, append(append(plan, planned...), delegate)
	}
	signers := []string{spec.Root.Name}
	for _, x := range spec.Cross {
		planned, err := c.planCross(ctx, x, cas[x.Subject])
		if err != nil {
			return nil, err
		}
		if plan = append(plan, planned); !slices.Contains(signers, x.By) {
			signers = append(signers, x.By)
		}
	}
	for _, name := range signers {
		if spec.CRL.NextUpdate > 0 {
			plan = append(plan, Planned{Name: "CRL of " + name, Make: true, Detail: c.crlText(name)})
		}
	}
	return plan, nil
}

func (c *ceremony) crlText(ca string) string {
	revoked := 0
	for _, r := range c.spec.CRL.Revoked {
		if r.by(c.spec) == ca {
			revoked++
		}
	}
	return fmt.Sprintf("for %s, with %d certificates that the spec has as revoked and those of the ledger", c.spec.CRL.NextUpdate, revoked)
}

// planCA returns a CA that stands, or nil, with its line.
func (c *ceremony) planCA(ctx context.Context, ca CASpec) (*CA, []Planned, error) {
	there, err := c.registered(ctx, ca.Name)
	if err != nil {
		return nil, nil, err
	}
	if there != nil {
		return there, []Planned{{Name: ca.Name, Detail: standing(there.Certificate)}}, nil
	}
	fresh, err := c.lacksKey(ctx, ca.Name)
	return nil, []Planned{{Name: ca.Name, Make: true, NewKey: fresh, Detail: fmt.Sprintf("%s, %s, for %s", ca.CommonName, ca.KeyAlgorithm, ca.Lifetime)}}, err
}

func standing(cert *x509.Certificate) string {
	return fmt.Sprintf("%s, until %s", cert.Subject, cert.NotAfter.UTC().Format("2006-01-02"))
}

// planCross fails where the CA that is to certify is unknown or its key not in the token.
func (c *ceremony) planCross(ctx context.Context, x CrossSpec, subject *CA) (Planned, error) {
	p := Planned{Name: x.Subject + "-by-" + x.By, Make: true, Detail: fmt.Sprintf("the key of %s certified by %s, for %s", x.Subject, x.By, x.Lifetime)}
	by, err := c.registered(ctx, x.By)
	if err == nil && by == nil {
		err = problem.New(problem.NotFound, "the ledger has no CA %q to certify %q", x.By, x.Subject)
	}
	if err != nil || subject == nil {
		return p, err
	}
	there, err := c.registeredCross(ctx, subject, by)
	if there != nil {
		p.Make, p.Detail = false, standing(there)
	}
	return p, err
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
		return Planned{Name: p.Name, Detail: standing(there.Certificate)}, nil
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
