package gateway

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// issuer is one generation of an issuing key, with what every answer repeats of it.
type issuer struct {
	ledger.Issuer
	cert *x509.Certificate
	// chain is the issuer and what stands between it and its root, without the root.
	chain    [][]byte
	chainPEM string
	// links are the issuer and what stands above it, the root too.
	links []*x509.Certificate
}

// issuerSet is a snapshot of the ledger's issuers. It is immutable.
type issuerSet struct {
	byID   map[int32]*issuer
	active map[string]*issuer // by name
	byDER  map[string]*issuer
	bundle *certmillv1.TrustBundle
	// roots are, by the name of an issuer, what those who trust it must trust: the roots of
	// all its generations and the other generations of those roots, the present one first.
	roots map[string][][]byte
	// sequence grows whenever a generation is added, expires or is closed.
	sequence int
	// certs are the issuing certificates that have not expired.
	certs  []*x509.Certificate
	loaded time.Time
}

// issuerCache reads the issuers from the ledger now and then. While the ledger is
// away the last snapshot stays in use: what issuers sign does not change.
type issuerCache struct {
	source IssuerSource
	log    *slog.Logger
	now    func() time.Time
	every  time.Duration
	set    atomic.Pointer[issuerSet]
	flight singleflight.Group
	// changed is called after every snapshot.
	changed func(*issuerSet)
}

func newIssuerCache(source IssuerSource, every time.Duration, log *slog.Logger, now func() time.Time) *issuerCache {
	c := &issuerCache{source: source, log: log, now: now, every: every, changed: func(*issuerSet) {}}
	c.set.Store(&issuerSet{bundle: &certmillv1.TrustBundle{}})
	return c
}

func (c *issuerCache) current() *issuerSet { return c.set.Load() }

// run keeps the snapshot fresh until ctx ends.
func (c *issuerCache) run(ctx context.Context) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := c.refresh(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("the issuers could not be read; the last known ones stay in use", "error", err)
		}
	}
}

func (c *issuerCache) refresh(ctx context.Context) error {
	rows, err := c.source.Issuers(ctx)
	if err != nil {
		return fmt.Errorf("reading the issuers: %w", err)
	}
	set, err := newIssuerSet(rows, c.now())
	if err != nil {
		return err
	}
	c.set.Store(set)
	c.changed(set)
	return nil
}

// get returns a generation by id. One that was made since the last reading is read
// now; a flood of such requests makes one reading.
func (c *issuerCache) get(ctx context.Context, id int32) (*issuer, error) {
	if i := c.current().byID[id]; i != nil {
		return i, nil
	}
	done := c.flight.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, c.refresh(ctx)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if i := c.current().byID[id]; i != nil {
		return i, nil
	}
	return nil, problem.Down("issuer", time.Second, fmt.Errorf("issuer generation %d is not in the ledger", id))
}

func newIssuerSet(rows []ledger.Issuer, now time.Time) (*issuerSet, error) {
	set := &issuerSet{
		byID: map[int32]*issuer{}, active: map[string]*issuer{}, byDER: map[string]*issuer{},
		bundle: &certmillv1.TrustBundle{}, loaded: now,
	}
	roots := map[string]bool{}
	var rootPEM bytes.Buffer
	for _, row := range rows {
		i, err := newIssuer(row)
		if err != nil {
			return nil, fmt.Errorf("reading issuer %s (generation %d): %w", row.Name, row.ID, err)
		}
		set.byID[row.ID] = i
		set.sequence++
		if i.over(now) {
			set.sequence++
			continue
		}
		set.byDER[string(row.DER)] = i
		set.certs = append(set.certs, i.cert)
		if row.State == "active" {
			set.active[row.Name] = i
		}
		set.bundle.Issuers = append(set.bundle.Issuers, row.DER)
		if root := i.root(); !roots[string(root)] {
			roots[string(root)] = true
			set.bundle.Roots = append(set.bundle.Roots, root)
			_ = pem.Encode(&rootPEM, &pem.Block{Type: "CERTIFICATE", Bytes: root}) // a buffer never fails
		}
	}
	set.bundle.Pem = rootPEM.String()
	set.roots = rootsByName(set, now)
	return set, nil
}

// rootsByName gathers the roots of each issuer. A new root belongs to an issuer as soon
// as the ledger has it under the old one's name, before it signs anything: so those who
// fetch the roots trust it in time.
func rootsByName(set *issuerSet, now time.Time) map[string][][]byte {
	anchors := map[string]string{} // name of a root by its DER
	var live []*issuer
	for _, i := range set.byID {
		if i.over(now) {
			continue
		}
		live = append(live, i)
		if len(i.Chain) == 0 {
			anchors[string(i.DER)] = i.Name
		}
	}
	// The active generation comes first, then the newest.
	slices.SortFunc(live, func(a, b *issuer) int {
		if set.active[a.Name] == a || set.active[b.Name] == b {
			return boolOrder(set.active[a.Name] == a, set.active[b.Name] == b)
		}
		return int(b.ID - a.ID)
	})
	roots := map[string][][]byte{}
	add := func(name string, der []byte) {
		if !slices.ContainsFunc(roots[name], func(known []byte) bool { return bytes.Equal(known, der) }) {
			roots[name] = append(roots[name], der)
		}
	}
	for _, i := range live {
		add(i.Name, i.root())
	}
	for name, own := range roots {
		for _, der := range slices.Clone(own) {
			for _, anchor := range live {
				if len(anchor.Chain) == 0 && anchor.Name == anchors[string(der)] {
					add(name, anchor.DER)
				}
			}
		}
	}
	return roots
}

// boolOrder sorts true before false.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func newIssuer(row ledger.Issuer) (*issuer, error) {
	cert, err := x509.ParseCertificate(row.DER)
	if err != nil {
		return nil, err
	}
	i := &issuer{Issuer: row, cert: cert, links: []*x509.Certificate{cert}}
	for _, der := range row.Chain {
		above, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("its chain: %w", err)
		}
		i.links = append(i.links, above)
	}
	if len(row.Chain) > 0 {
		i.chain = append(i.chain, row.DER)
		i.chain = append(i.chain, row.Chain[:len(row.Chain)-1]...)
	}
	i.chainPEM = pemsOf(i.chain)
	return i, nil
}

func pemsOf(ders [][]byte) string {
	var b bytes.Buffer
	for _, der := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a buffer never fails
	}
	return b.String()
}

// crossed returns the issuer with the chain that a profile has delivered: with the
// cross-certificates that it asks for.
func (i *issuer) crossed(p *profile.Profile, now time.Time) *issuer {
	cross := p.CrossFor(i.links, now)
	if len(cross) == 0 {
		return i
	}
	out := *i
	out.chain = append(slices.Clone(i.chain), cross...)
	out.chainPEM += pemsOf(cross)
	return &out
}

// chainFor is crossed by the profile's name; one that has gone asks for nothing.
func (s *service) chainFor(profileName string, i *issuer) *issuer {
	p, err := s.profiles.Get(profileName)
	if err != nil {
		return i
	}
	return i.crossed(p, s.now())
}

// over reports whether the generation is of no use to anybody any more.
func (i *issuer) over(now time.Time) bool {
	return now.After(i.cert.NotAfter) || i.State == ledger.IssuerClosed
}

// root is the end of the chain: the issuer itself where it is its own root.
func (i *issuer) root() []byte {
	if len(i.Chain) == 0 {
		return i.DER
	}
	return i.Chain[len(i.Chain)-1]
}

func parsePEMCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// nearestExpiry is when the first active issuer expires, in Unix seconds.
func (c *issuerCache) nearestExpiry() float64 {
	var first time.Time
	for _, i := range c.current().active {
		if first.IsZero() || i.cert.NotAfter.Before(first) {
			first = i.cert.NotAfter
		}
	}
	if first.IsZero() {
		return 0
	}
	return float64(first.Unix())
}
