package ledgertest

import (
	"crypto/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

var issuerTests = map[string]func(*testing.T, *env){
	"one generation of a name is active": issuerGenerations,
	"OCSP signers":                       ocspSigners,
	"epochs are never given twice":       epochs,
	"signatures only grow":               signatures,
	"an account closes when every signature has a row or is a stray": account,
}

func issuerGenerations(t *testing.T, e *env) {
	put := func(name, state, der string) int32 {
		id, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: name, State: state, DER: []byte(der), Chain: [][]byte{[]byte("root")}, KeyURI: "pkcs11:object=" + der})
		noError(t, err)
		return id
	}
	first := put("main", ledger.IssuerActive, "one")
	other := put("other", ledger.IssuerActive, "two")
	second := put("main", ledger.IssuerActive, "three")
	if again := put("main", ledger.IssuerActive, "three"); again != second {
		t.Errorf("the same certificate has ids %d and %d", second, again)
	}
	all, err := e.Issuers(t.Context())
	noError(t, err)
	states := map[int32]string{}
	for _, i := range all {
		states[i.ID] = i.State
		if len(i.Chain) != 1 || string(i.Chain[0]) != "root" || i.Created.IsZero() {
			t.Errorf("issuer %+v", i)
		}
	}
	if len(all) != 3 || states[first] != ledger.IssuerRetired || states[second] != ledger.IssuerActive || states[other] != ledger.IssuerActive {
		t.Errorf("states %v", states)
	}
	_, err = e.PutIssuer(t.Context(), ledger.Issuer{Name: "x", State: "odd", DER: []byte("x")})
	wantKind(t, err, problem.Invalid)
}

func ocspSigners(t *testing.T, e *env) {
	issuer, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: "main", State: ledger.IssuerActive, DER: []byte("one")})
	noError(t, err)
	s := ledger.OCSPSigner{Issuer: issuer, DER: []byte("ocsp"), KeyURI: "pkcs11:object=ocsp"}
	s.ID, err = e.PutOCSPSigner(t.Context(), s)
	noError(t, err)
	if id, err := e.PutOCSPSigner(t.Context(), s); err != nil || id != s.ID {
		t.Errorf("again: %d, %v", id, err)
	}
	all, err := e.OCSPSigners(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != s.ID || all[0].KeyURI != s.KeyURI || !slices.Equal(all[0].DER, s.DER) {
		t.Errorf("%+v, %v", all, err)
	}
}

func epochs(t *testing.T, e *env) {
	other := e.another(t, e.url)
	ids := make([]uint32, 40)
	var wg sync.WaitGroup
	for i := range ids {
		l := []*ledger.Ledger{e.Ledger, other}[i%2]
		wg.Go(func() {
			var err error
			if ids[i], err = l.StartEpoch(t.Context(), ledger.Epoch{Signer: "s", Issuer: 1, Token: "t"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(ids)
	if ids[0] == 0 || len(slices.Compact(ids)) != 40 {
		t.Errorf("epochs %v", ids)
	}
}

func signatures(t *testing.T, e *env) {
	id, err := e.StartEpoch(t.Context(), ledger.Epoch{Signer: "s", Issuer: 3, Token: "t"})
	noError(t, err)
	noError(t, e.ReportSignatures(t.Context(), id, 10, true))
	noError(t, e.ReportSignatures(t.Context(), id, 7, false)) // late
	all, err := e.Epochs(t.Context())
	noError(t, err)
	if len(all) != 1 || all[0].Signatures != 10 || !all[0].Final || all[0].Issuer != 3 || all[0].Signer != "s" || all[0].Token != "t" || all[0].Started.IsZero() {
		t.Errorf("epochs %+v", all)
	}
	wantKind(t, e.ReportSignatures(t.Context(), id+1, 1, false), problem.NotFound)
}

func account(t *testing.T, e *env) {
	id, err := e.StartEpoch(t.Context(), ledger.Epoch{Signer: "s", Issuer: 1, Token: "t"})
	noError(t, err)
	serialOf := func() serial.Number {
		n, err := serial.New(rand.Reader, id, e.clock.Now(), e.clock.Now().Add(time.Hour))
		noError(t, err)
		return n
	}
	committed := e.entry(t, time.Hour)
	committed.Serial = serialOf()
	commitOne(t, e.Ledger, committed)
	duplicate, died := serialOf(), serialOf()
	state := func() (ledger.Account, ledger.AccountState) {
		t.Helper()
		all, err := e.Accounts(t.Context())
		noError(t, err)
		if len(all) != 1 || all[0].ID != id {
			t.Fatalf("accounts %+v", all)
		}
		return all[0], all[0].State(e.clock.Now(), time.Minute)
	}
	report := ledger.EpochReport{Signatures: 4, Committed: 1, Discarded: 1, CRLs: 1}
	noError(t, e.ReportEpoch(t.Context(), id, report))
	if _, s := state(); s != ledger.AccountRunning {
		t.Errorf("while it reports: %s", s)
	}
	e.clock.advance(2 * time.Minute)
	if _, s := state(); s != ledger.AccountDied {
		t.Errorf("silent for two minutes: %s", s)
	}
	report.Final = true
	noError(t, e.ReportEpoch(t.Context(), id, report))
	// The serial that has a row was a stray when its signer looked.
	strays := []ledger.Stray{{Serial: duplicate, Reason: ledger.StrayDuplicate}, {Serial: committed.Serial, Reason: ledger.StrayUnknown}}
	noError(t, e.RecordStrays(t.Context(), strays))
	if a, s := state(); s != ledger.AccountBroken || a.Accounted() != 3 {
		t.Errorf("one signature is missing: %s, %d of %d", s, a.Accounted(), a.Signatures)
	}
	for range 2 {
		noError(t, e.RecordStrays(t.Context(), []ledger.Stray{{Serial: died, Reason: ledger.StrayDied}}))
	}
	a, s := state()
	if s != ledger.AccountClosed || a.Rows != 1 || len(a.Strays) != 2 {
		t.Errorf("everything is accounted for: %s, %+v", s, a)
	}
	// The rows leave; what the signer has counted stays.
	report.Discarded = 2
	noError(t, e.ReportEpoch(t.Context(), id, report))
	e.clock.advance(14 * 24 * time.Hour)
	if _, err := e.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := e.count(t, `SELECT count(*) FROM signature_strays`); n != 0 {
		t.Errorf("%d strays are left after their time", n)
	}
	if a, s := state(); s != ledger.AccountClosed || !a.RowsLeft {
		t.Errorf("after the rows have left: %s, %+v", s, a)
	}
}
