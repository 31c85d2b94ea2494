package judge

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

// trial is a small history in which every promise was kept: two certificates, one by
// an order, the first revoked.
type trial struct {
	t       *testing.T
	key     *ecdsa.PrivateKey
	ca      *x509.Certificate
	start   time.Time
	history []Event
	books   Books
	rules   Rules
}

func newTrial(t *testing.T) *trial {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &trial{t: t, key: key, start: time.Now().Truncate(time.Second)}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: c.start.Add(-time.Hour), NotAfter: c.start.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	c.ca = c.sign(root, root)
	c.rules = Rules{Roots: x509.NewCertPool(), Issuing: x509.NewCertPool(), RevokedWithin: time.Second, Settle: 5 * time.Second, Grace: 100 * time.Millisecond, MaxLifetime: 24 * time.Hour}
	c.rules.Roots.AddCert(c.ca)
	c.books = Books{Orders: map[string]ledger.Order{}, Accounts: []ledger.Account{{
		Epoch: ledger.Epoch{ID: 7, Issuer: 1, Signer: "s", EpochReport: ledger.EpochReport{Signatures: 2, Committed: 2, Final: true}}, Rows: 2,
	}}}
	first := c.issue(1, Issue, nil)
	c.history = append(c.history, Event{At: c.at(2), Took: 10 * time.Millisecond, Kind: Submit, Op: 2, Key: "key-2", Outcome: OK, Order: "o-2", Deadline: time.Second})
	second := c.issue(2, Order, nil)
	c.books.Orders["o-2"] = ledger.Order{ID: "o-2", State: ledger.OrderIssued, Certificate: &ledger.Certificate{}}
	c.ocsp(3, first, Good)
	c.history = append(c.history, Event{At: c.at(4), Took: 10 * time.Millisecond, Kind: Revoke, Op: 3, Serial: first, Outcome: OK, Deadline: time.Second})
	c.row(first).Revoked = &ledger.Revocation{}
	c.ocsp(4.5, first, Good) // within the bound
	c.ocsp(20, first, Revoked)
	c.ocsp(20, second, Good)
	c.ocsp(20, "10000000000700000000000000000000", "refused")
	c.history = append(c.history, Event{At: c.at(30), Kind: Leak, Node: "signer-1", Name: "in_flight", Value: 0})
	return c
}

func (c *trial) at(seconds float64) time.Time {
	return c.start.Add(time.Duration(seconds * float64(time.Second)))
}

func (c *trial) sign(template, parent *x509.Certificate) *x509.Certificate {
	c.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, c.key.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

// issue adds a certificate to the history and to the books.
func (c *trial) issue(op int, kind Kind, change func(*x509.Certificate)) string {
	c.t.Helper()
	name := "op-" + string(rune('0'+op)) + ".test"
	notBefore, notAfter := c.start.Add(-time.Minute), c.start.Add(20*time.Hour)
	n, err := serial.New(rand.Reader, 7, notBefore, notAfter)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: n.Big(), NotBefore: notBefore, NotAfter: notAfter, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(template)
	}
	cert := c.sign(template, c.ca)
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	c.history = append(c.history, Event{At: c.at(float64(op)), Took: 10 * time.Millisecond, Deadline: time.Second, Kind: kind, Op: op, Key: "key-" + string(rune('0'+op)),
		Name: name, Profile: "server", SPKI: spki[:], Outcome: OK, Serial: n.String(), DER: cert.Raw, Node: "gateway-1"})
	c.books.Certificates = append(c.books.Certificates, ledger.Listed{Certificate: ledger.Certificate{Serial: n, Issuer: 1, Profile: "server", Names: []string{"dns:" + name}, DER: cert.Raw}})
	return n.String()
}

func (c *trial) ocsp(at float64, serial, outcome string) {
	c.history = append(c.history, Event{At: c.at(at), Took: time.Millisecond, Kind: OCSP, Node: "responder-1", Serial: serial, Outcome: outcome, Deadline: time.Second})
}

func (c *trial) row(serial string) *ledger.Listed {
	for i := range c.books.Certificates {
		if c.books.Certificates[i].Serial.String() == serial {
			return &c.books.Certificates[i]
		}
	}
	c.t.Fatalf("no row %s", serial)
	return nil
}

// event returns the first event of a kind.
func (c *trial) event(kind Kind) *Event {
	for i := range c.history {
		if c.history[i].Kind == kind {
			return &c.history[i]
		}
	}
	c.t.Fatalf("no event of kind %s", kind)
	return nil
}

func TestAHistoryInWhichEverythingWasKeptIsAcquitted(t *testing.T) {
	c := newTrial(t)
	for _, f := range Judge(c.history, c.books, c.rules) {
		if f.Broken != 0 {
			t.Errorf("%s: %v", f, f.Evidence)
		}
		if f.Of == 0 {
			t.Errorf("%s has judged nothing", f)
		}
	}
}

// Each of these histories breaks one promise, and must be condemned for it alone.
func TestHistoriesThatMustBeCondemned(t *testing.T) {
	for name, tc := range map[string]struct {
		id    string
		spoil func(*trial)
	}{
		"a certificate was released and is not in the ledger": {"I1", func(c *trial) {
			// Its OCSP answer would be condemned too: take the one of the order.
			serial := c.event(Order).Serial
			c.books.Certificates = c.books.Certificates[:1]
			c.drop(serial)
		}},
		"the ledger has another certificate under the serial": {"I1", func(c *trial) { c.books.Certificates[0].DER = []byte("other") }},
		"two certificates for one key": {"I2", func(c *trial) {
			again := *c.event(Issue)
			c.issue(1, Issue, nil)
			c.history[len(c.history)-1].Key = again.Key
		}},
		"a second row for one name, never released": {"I2", func(c *trial) {
			c.issue(1, Issue, nil)
			c.history = c.history[:len(c.history)-1]
		}},
		"one serial for two keys": {"I3", func(c *trial) {
			e := *c.event(Issue)
			e.Key = "key-other"
			c.history = append(c.history, e)
		}},
		"a serial of an epoch that nobody has begun": {"I3", func(c *trial) { c.books.Accounts[0].ID = 8 }},
		"a serial of another issuer's epoch":         {"I3", func(c *trial) { c.books.Accounts[0].Issuer = 2 }},
		"an order is not in the ledger":              {"I4", func(c *trial) { delete(c.books.Orders, "o-2") }},
		"an order has no outcome":                    {"I4", func(c *trial) { c.books.Orders["o-2"] = ledger.Order{State: ledger.OrderPending} }},
		"a revocation is not in the ledger":          {"I5", func(c *trial) { c.row(c.event(Issue).Serial).Revoked = nil }},
		"good, after the same responder said revoked": {"I6", func(c *trial) {
			c.ocsp(21, c.event(Issue).Serial, Good)
			c.ocsp(22, c.event(Issue).Serial, Revoked)
		}},
		"good, too long after the revocation": {"I6", func(c *trial) { c.ocsp(5.5, c.event(Issue).Serial, Good) }},
		"a certificate for another key":       {"I7", func(c *trial) { c.event(Issue).SPKI = []byte("other") }},
		"a certificate for another name":      {"I7", func(c *trial) { c.reissue(func(t *x509.Certificate) { t.DNSNames = []string{"other.test"} }) }},
		"a certificate of a CA":               {"I7", func(c *trial) { c.reissue(func(t *x509.Certificate) { t.IsCA, t.BasicConstraintsValid = true, true }) }},
		"a certificate for clients": {"I7", func(c *trial) {
			c.reissue(func(t *x509.Certificate) { t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		}},
		"a certificate that lives too long":   {"I7", func(c *trial) { c.rules.MaxLifetime = time.Hour }},
		"a certificate that is not valid yet": {"I7", func(c *trial) { c.reissue(func(t *x509.Certificate) { t.NotBefore = c.start.Add(time.Hour) }) }},
		"another profile in the ledger":       {"I7", func(c *trial) { c.books.Certificates[0].Profile = "workload" }},
		"an answer beyond its deadline":       {"I8", func(c *trial) { c.event(Issue).Took = 1200 * time.Millisecond }},
		"something is in flight at rest":      {"I9", func(c *trial) { c.event(Leak).Value = 1 }},
		"good of what was never issued":       {"I10", func(c *trial) { c.ocsp(25, "10000000000700000000000000000001", Good) }},
		"a signature is missing":              {"I11", func(c *trial) { c.books.Accounts[0].Signatures++ }},
		"an epoch has not ended":              {"I11", func(c *trial) { c.books.Accounts[0].Final = false }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTrial(t)
			tc.spoil(c)
			for _, f := range Judge(c.history, c.books, c.rules) {
				if (f.Broken > 0) != (f.ID == tc.id) {
					t.Errorf("%s: %v", f, f.Evidence)
				}
				if f.Broken > 0 && len(f.Evidence) == 0 {
					t.Errorf("%s gives no evidence", f)
				}
			}
		})
	}
}

// reissue makes the first certificate another, in the history and in the books.
func (c *trial) reissue(change func(*x509.Certificate)) {
	e, row := c.event(Issue), &c.books.Certificates[0]
	template, err := x509.ParseCertificate(e.DER)
	if err != nil {
		c.t.Fatal(err)
	}
	change(template)
	cert := c.sign(template, c.ca)
	e.DER, row.DER = cert.Raw, cert.Raw
}

// drop forgets what was asked about a serial.
func (c *trial) drop(serial string) {
	var left []Event
	for _, e := range c.history {
		if e.Kind != OCSP || e.Serial != serial {
			left = append(left, e)
		}
	}
	c.history = left
}

func TestGoodAfterARevocationIsExcusedByAFaultAlone(t *testing.T) {
	c := newTrial(t)
	c.ocsp(5.5, c.event(Issue).Serial, Good)
	c.history = append(c.history, Event{Kind: Fault, At: c.at(3), Took: 500 * time.Millisecond})
	for _, f := range Judge(c.history, c.books, c.rules) {
		if f.Broken > 0 {
			t.Errorf("%s: %v", f, f.Evidence)
		}
	}
}

func TestALateAnswerIsExcusedByAStallOfTheClientsAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		at     float64
		took   time.Duration
		broken int
	}{
		"they stood still for as long":    {1.9, 600 * time.Millisecond, 0},
		"they stood still for a moment":   {1.9, 300 * time.Millisecond, 1},
		"they stood still before":         {0.2, 700 * time.Millisecond, 1},
		"they stood still after its end":  {2.6, time.Minute, 1},
		"they stood still over its start": {0.9, 700 * time.Millisecond, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTrial(t)
			e := c.event(Issue) // from 1 to 2.5 of 1 s, with 0.1 s of grace
			e.Took = 1500 * time.Millisecond
			c.history = append(c.history, Event{Kind: Stall, At: c.at(tc.at), Took: tc.took})
			if f := Judge(c.history, c.books, c.rules)[7]; f.ID != "I8" || f.Broken != tc.broken {
				t.Errorf("%s: %v", f, f.Evidence)
			}
		})
	}
}

func TestARevocationThatAResponderNeverLearnsIsForgotten(t *testing.T) {
	c := newTrial(t)
	c.history = append(c.history, Event{Kind: Fault, At: c.at(3), Took: 100 * time.Second})
	serial := c.event(Issue).Serial
	c.history = append(c.history, Event{At: c.at(40), Kind: OCSP, Node: "responder-2", Serial: serial, Outcome: Good})
	if f := Judge(c.history, c.books, c.rules)[4]; f.ID != "I5" || f.Broken != 1 {
		t.Errorf("%s: %v", f, f.Evidence)
	}
}

func TestAHistoryIsReadAsItWasWritten(t *testing.T) {
	c := newTrial(t)
	var file bytes.Buffer
	r := NewRecorder(&file)
	for _, e := range c.history {
		r.Add(e)
	}
	read, err := Read(&file)
	if err != nil || len(read) != len(c.history) {
		t.Fatalf("%d of %d events, %v", len(read), len(c.history), err)
	}
	for _, f := range Judge(read, c.books, c.rules) {
		if f.Broken != 0 {
			t.Errorf("%s: %v", f, f.Evidence)
		}
	}
	if _, err := Read(bytes.NewBufferString("{}\nno\n")); err == nil {
		t.Error("a line that is no event was read")
	}
}
