package judge

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// Books is what the ledger says when everything has come to rest.
type Books struct {
	Certificates []ledger.Listed // of the caller that made the load
	Accounts     []ledger.Account
	Orders       map[string]ledger.Order // those that were acknowledged; one that is not there is lost
}

// Rules are what the judge holds the history against.
type Rules struct {
	Roots   *x509.CertPool
	Issuing *x509.CertPool
	// RevokedWithin is how long a responder may go on with good after a revocation was
	// acknowledged, while no fault is at work; Settle is how long after a fault that
	// promise is suspended.
	RevokedWithin, Settle time.Duration
	// Grace is by how much an answer may miss its deadline, for scheduling.
	Grace time.Duration
	// MaxLifetime is the profile's.
	MaxLifetime time.Duration
}

// Finding is one invariant's judgement.
type Finding struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Broken int    `json:"broken"`
	Of     int    `json:"of"`
	// Evidence says of the first broken cases what they are.
	Evidence []string `json:"evidence,omitempty"`
}

// String is the line that a run ends with.
func (f Finding) String() string {
	return fmt.Sprintf("%-4s %s %d of %d", f.ID, f.Name, f.Broken, f.Of)
}

const maxEvidence = 5

func (f *Finding) broken(format string, args ...any) {
	f.Broken++
	if len(f.Evidence) < maxEvidence {
		f.Evidence = append(f.Evidence, fmt.Sprintf(format, args...))
	}
}

// Judge judges every invariant.
func Judge(history []Event, books Books, rules Rules) []Finding {
	c := newCourt(history, books, rules)
	findings := []Finding{
		{ID: "I1", Name: "released-without-ledger"},
		{ID: "I2", Name: "two-certificates-for-one-key"},
		{ID: "I3", Name: "serial-reused-or-outside-its-epoch"},
		{ID: "I4", Name: "acknowledged-order-lost"},
		{ID: "I5", Name: "revocation-forgotten"},
		{ID: "I6", Name: "good-after-revoked"},
		{ID: "I7", Name: "outside-its-profile"},
		{ID: "I8", Name: "answered-beyond-its-deadline"},
		{ID: "I9", Name: "in-flight-leaked"},
		{ID: "I10", Name: "never-issued-but-good"},
		{ID: "I11", Name: "signatures-unaccounted-for"},
	}
	for i, judge := range []func(*Finding){
		c.released, c.keys, c.serials, c.orders, c.revocations, c.goodAfterRevoked, c.profiles, c.deadlines, c.leaks, c.neverIssued, c.accounts,
	} {
		judge(&findings[i])
	}
	return findings
}

// court is a history with what its judges look up.
type court struct {
	history []Event
	rules   Rules
	books   Books
	rows    map[string]*ledger.Listed // by serial
	issued  []*Event                  // events that released a certificate
	acked   map[string]time.Time      // revocations by serial: when the first was acknowledged
	faults  []*Event
	stalls  []*Event
}

func newCourt(history []Event, books Books, rules Rules) *court {
	c := &court{history: history, rules: rules, books: books, rows: map[string]*ledger.Listed{}, acked: map[string]time.Time{}}
	for i := range books.Certificates {
		c.rows[books.Certificates[i].Serial.String()] = &books.Certificates[i]
	}
	for i := range history {
		e := &history[i]
		switch {
		case len(e.DER) > 0:
			c.issued = append(c.issued, e)
		case e.Kind == Revoke && e.Outcome == OK:
			if at, ok := c.acked[e.Serial]; !ok || e.End().Before(at) {
				c.acked[e.Serial] = e.End()
			}
		case e.Kind == Fault:
			c.faults = append(c.faults, e)
		case e.Kind == Stall:
			c.stalls = append(c.stalls, e)
		}
	}
	return c
}

// released: every certificate that a client holds is in the ledger, byte for byte.
func (c *court) released(f *Finding) {
	for _, e := range c.issued {
		f.Of++
		row := c.rows[e.Serial]
		switch {
		case row == nil:
			f.broken("certificate %s (key %s) is not in the ledger", e.Serial, e.Key)
		case !bytes.Equal(row.DER, e.DER):
			f.broken("certificate %s (key %s) is another in the ledger", e.Serial, e.Key)
		}
	}
}

// keys: one key, one certificate, among what was released and among the rows.
func (c *court) keys(f *Finding) {
	serials := map[string]map[string]bool{} // by key, and by name, which is the key's alone
	add := func(group, serial string) {
		if serials[group] == nil {
			serials[group] = map[string]bool{}
		}
		serials[group][serial] = true
	}
	for _, e := range c.issued {
		add("key "+e.Key, e.Serial)
		add("name dns:"+e.Name, e.Serial)
	}
	for n, row := range c.rows {
		for _, name := range row.Names {
			add("name "+name, n)
		}
	}
	for group, found := range serials {
		f.Of++
		if len(found) > 1 {
			f.broken("%s has %d certificates", group, len(found))
		}
	}
}

// serials: none comes twice for two keys, and each belongs to an epoch of its issuer that
// began before the certificate was made.
func (c *court) serials(f *Finding) {
	epochs := map[uint32]*ledger.Account{}
	for i := range c.books.Accounts {
		epochs[c.books.Accounts[i].ID] = &c.books.Accounts[i]
	}
	keyOf := map[string]string{}
	for _, e := range c.issued {
		if key, ok := keyOf[e.Serial]; ok && key != e.Key {
			f.broken("serial %s stands for the keys %s and %s", e.Serial, key, e.Key)
		}
		keyOf[e.Serial] = e.Key
	}
	for _, row := range c.rows {
		f.Of++
		epoch := epochs[row.Serial.Epoch()]
		switch {
		case epoch == nil:
			f.broken("serial %s: there is no epoch %d", row.Serial, row.Serial.Epoch())
		case epoch.Issuer != row.Issuer:
			f.broken("serial %s: epoch %d is of issuer %d, not %d", row.Serial, epoch.ID, epoch.Issuer, row.Issuer)
		}
	}
}

// orders: each that was acknowledged has its certificate, or states its failure.
func (c *court) orders(f *Finding) {
	seen := map[string]bool{}
	for i := range c.history {
		e := &c.history[i]
		if e.Kind != Submit || e.Outcome != OK || seen[e.Order] {
			continue
		}
		seen[e.Order] = true
		f.Of++
		o, ok := c.books.Orders[e.Order]
		switch {
		case !ok:
			f.broken("order %s (key %s) was acknowledged and is not in the ledger", e.Order, e.Key)
		case o.State == ledger.OrderPending:
			f.broken("order %s (key %s) still has no outcome", e.Order, e.Key)
		case o.State == ledger.OrderIssued && o.Certificate == nil:
			f.broken("order %s (key %s) is issued and has no certificate", e.Order, e.Key)
		}
	}
}

// revocations: what was acknowledged is in the ledger, and every responder says so in the end.
func (c *court) revocations(f *Finding) {
	type asked struct{ node, serial string }
	last := map[asked]*Event{}
	for i := range c.history {
		if e := &c.history[i]; e.Kind == OCSP && (e.Outcome == Good || e.Outcome == Revoked) {
			if k := (asked{e.Node, e.Serial}); last[k] == nil || last[k].At.Before(e.At) {
				last[k] = e
			}
		}
	}
	for n, at := range c.acked {
		f.Of++
		if row := c.rows[n]; row == nil || row.Revoked == nil {
			f.broken("the revocation of %s was acknowledged and is not in the ledger", n)
		}
		for k, e := range last {
			if k.serial == n && e.Outcome == Good && e.At.After(at.Add(c.rules.RevokedWithin+c.rules.Settle)) {
				f.broken("%s said good of %s in the end, %s after its revocation was acknowledged", k.node, n, e.At.Sub(at).Round(time.Millisecond))
			}
		}
	}
}

// goodAfterRevoked: once revoked is said, no responder goes back; and without a fault,
// good ends within the bound.
func (c *court) goodAfterRevoked(f *Finding) {
	said := map[string]time.Time{} // node and serial: when revoked was first said
	for i := range c.history {
		if e := &c.history[i]; e.Kind == OCSP && e.Outcome == Revoked {
			k := e.Node + " " + e.Serial
			if at, ok := said[k]; !ok || e.End().Before(at) {
				said[k] = e.End()
			}
		}
	}
	for i := range c.history {
		e := &c.history[i]
		if e.Kind != OCSP || e.Outcome != Good {
			continue
		}
		f.Of++
		if at, ok := said[e.Node+" "+e.Serial]; ok && e.At.After(at) {
			f.broken("%s said good of %s, %s after it had said revoked", e.Node, e.Serial, e.At.Sub(at).Round(time.Millisecond))
			continue
		}
		if at, ok := c.acked[e.Serial]; ok && e.At.Sub(at) > c.rules.RevokedWithin && !c.disturbed(at, e.End()) {
			f.broken("%s said good of %s, %s after its revocation was acknowledged, with all parts up", e.Node, e.Serial, e.At.Sub(at).Round(time.Millisecond))
		}
	}
}

// disturbed reports whether a fault was at work between two times, or had just ended.
func (c *court) disturbed(from, to time.Time) bool {
	for _, e := range c.faults {
		if e.At.Before(to) && e.End().Add(c.rules.Settle).After(from) {
			return true
		}
	}
	return false
}

// profiles: what was released is what was asked for, within the profile.
func (c *court) profiles(f *Finding) {
	for _, e := range c.issued {
		f.Of++
		if err := c.fits(e); err != nil {
			f.broken("certificate %s (key %s): %v", e.Serial, e.Key, err)
		}
	}
}

func (c *court) fits(e *Event) error {
	cert, err := x509.ParseCertificate(e.DER)
	if err != nil {
		return err
	}
	if n, err := serial.FromBig(cert.SerialNumber); err != nil || n.String() != e.Serial {
		return fmt.Errorf("its serial is %x", cert.SerialNumber)
	}
	if spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo); !bytes.Equal(spki[:], e.SPKI) {
		return fmt.Errorf("it is for another key")
	}
	switch {
	case len(cert.DNSNames) != 1 || cert.DNSNames[0] != e.Name || len(cert.URIs)+len(cert.IPAddresses)+len(cert.EmailAddresses) > 0:
		return fmt.Errorf("its names are %v %v %v %v", cert.DNSNames, cert.URIs, cert.IPAddresses, cert.EmailAddresses)
	case cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature:
		return fmt.Errorf("CA %v, key usage %b", cert.IsCA, cert.KeyUsage)
	case len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth:
		return fmt.Errorf("its extended key usage is %v", cert.ExtKeyUsage)
	case cert.NotAfter.Sub(cert.NotBefore) > c.rules.MaxLifetime:
		return fmt.Errorf("it lives for %s", cert.NotAfter.Sub(cert.NotBefore))
	case cert.NotBefore.After(e.End().Add(time.Second)):
		return fmt.Errorf("it is not valid before %s, after it was released", cert.NotBefore)
	}
	if row := c.rows[e.Serial]; row != nil && row.Profile != e.Profile {
		return fmt.Errorf("the ledger says profile %s, not %s", row.Profile, e.Profile)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: c.rules.Roots, Intermediates: c.rules.Issuing, CurrentTime: e.End()})
	return err
}

// deadlines: no call lasts longer than it could, but for the time in which its client was
// kept from looking.
func (c *court) deadlines(f *Finding) {
	for i := range c.history {
		e := &c.history[i]
		if e.Deadline == 0 {
			continue
		}
		f.Of++
		if e.Took > e.Deadline+c.rules.Grace && e.Took > e.Deadline+c.rules.Grace+c.stalled(e) {
			f.broken("%s at %s took %s of %s", e.Kind, e.Node, e.Took.Round(time.Millisecond), e.Deadline)
		}
	}
}

// stalled returns for how much of a call the clients did not run.
func (c *court) stalled(e *Event) (d time.Duration) {
	for _, s := range c.stalls {
		from, to := s.At, s.End()
		if from.Before(e.At) {
			from = e.At
		}
		if to.After(e.End()) {
			to = e.End()
		}
		d += max(0, to.Sub(from))
	}
	return d
}

// leaks: at rest nothing is in flight.
func (c *court) leaks(f *Finding) {
	for i := range c.history {
		if e := &c.history[i]; e.Kind == Leak {
			f.Of++
			if e.Value != 0 {
				f.broken("%s: %s is %g at rest", e.Node, e.Name, e.Value)
			}
		}
	}
}

// neverIssued: good is said of what the ledger knows only.
func (c *court) neverIssued(f *Finding) {
	for i := range c.history {
		e := &c.history[i]
		if e.Kind != OCSP || e.Outcome == "" {
			continue
		}
		f.Of++
		if e.Outcome == Good && c.rows[e.Serial] == nil {
			f.broken("%s said good of %s, which the ledger does not know", e.Node, e.Serial)
		}
	}
}

// accounts: every signature has a row or is listed, those of the dead included.
func (c *court) accounts(f *Finding) {
	for i := range c.books.Accounts {
		a := &c.books.Accounts[i]
		f.Of++
		if a.Final && a.Signatures == a.Accounted() {
			continue
		}
		f.broken("epoch %d of %s: %d signatures, %d accounted for, ended %v", a.ID, a.Signer, a.Signatures, a.Accounted(), a.Final)
	}
}
