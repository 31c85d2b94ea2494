package presign

import (
	"errors"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/ledgertest"
	"github.com/certmill/certmill/ocsp/ocsptest"
)

// The real ledger, from the first certificate to a verified Redis.
func TestOnARealLedger(t *testing.T) {
	w := newWorld(t)
	w.connect()
	book := ledgertest.Open(t, testenv.PostgreSQL(t), ledger.Deps{})
	issuer, err := book.PutIssuer(t.Context(), ledger.Issuer{Name: "test", State: ledger.IssuerActive, DER: w.ca.Certificate.Raw})
	noError(t, err)
	key := ocsptest.Key(t, "p256")
	_, err = book.PutOCSPSigner(t.Context(), ledger.OCSPSigner{Issuer: issuer, DER: w.ca.Delegate(t, key, time.Hour).Raw, KeyURI: "file:" + ocsptest.WriteKey(t, "ocsp.key", key)})
	noError(t, err)
	epoch, err := book.StartEpoch(t.Context(), ledger.Epoch{Signer: "test", Issuer: issuer})
	noError(t, err)
	w.presign(func(_ *Config, d *Deps) { d.Ledger = book })
	url := w.respond()

	issue := func(lifetime time.Duration) ledger.Status {
		t.Helper()
		e := ledgertest.Entry(t, time.Now(), lifetime)
		e.Issuer, e.Serial = issuer, ocsptest.Serial(t, epoch, e.NotBefore, e.NotAfter)
		for _, r := range book.CommitBatch(t.Context(), []ledger.Entry{e}) {
			noError(t, r.Err)
		}
		return ledger.Status{Serial: e.Serial, Issuer: issuer, NotBefore: e.NotBefore, NotAfter: e.NotAfter, Revocation: e.Revocation}
	}
	announced, silent := issue(time.Hour), issue(30*24*time.Hour)
	w.announceIssued(announced)
	w.eventually("good by its event", func() bool { return w.ask(url, announced.Serial) == "good" })
	w.eventually("good by the sweep", func() bool { return w.ask(url, silent.Serial) == "good" })
	never := ocsptest.Serial(t, epoch, time.Now(), time.Now().Add(time.Hour))
	w.eventually("complete, so that it is known what was never issued", func() bool { return w.ask(url, never) == "unauthorized" })
	_, first, err := book.Revoke(t.Context(), ledger.Revocation{Serial: silent.Serial, Reason: 4, RevokedBy: "test"})
	if err != nil || !first {
		t.Fatal(first, err)
	}
	start := time.Now()
	w.eventually("revoked by the poll", func() bool { return w.ask(url, silent.Serial) == "revoked" })
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a revocation took %s", took)
	}
	sum, err := Verify(t.Context(), book, w.store, 0, func(d Difference) { t.Errorf("%s: %s, %s", d.Serial, d.Kind, d.Detail) })
	if err != nil || sum.Certificates != 2 || sum.Records != 2 {
		t.Errorf("%+v, %v", sum, err)
	}
}

// While the ledger is down nothing is refreshed and nothing is said that it has not
// confirmed; what it said before stays.
func TestWithoutTheLedger(t *testing.T) {
	w := newWorld(t)
	p := w.presign()
	url := w.respond()
	st := w.issue(100 * time.Hour)
	w.eventually("good", func() bool { return w.ask(url, st.Serial) == "good" })
	w.ledger.Fail(problem.Down("ledger", time.Second, errors.New("test")))
	calls := w.ledger.Calls("SweepStatuses")
	w.ahead.Add(int64(13 * time.Hour))
	w.eventually("sweeps fail", func() bool { return w.ledger.Calls("SweepStatuses") > calls+1 })
	if rec, _ := w.record(st.Serial); w.now().Unix()-rec.ProducedAt < 3600 || w.ask(url, st.Serial) != "good" {
		t.Error("refreshed without the ledger, or lost")
	}
	w.ahead.Add(int64(12 * time.Hour))
	if got := w.ask(url, st.Serial); got != "try later" {
		t.Errorf("after nextUpdate: %s", got)
	}
	w.ledger.Fail(nil)
	w.eventually("good again", func() bool { return w.ask(url, st.Serial) == "good" })
	if p.metric(t, "mismatches_total", mismatchExpired) == 0 {
		t.Error("that an answer had expired is not counted")
	}
}
