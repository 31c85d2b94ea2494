package ledgertest

import (
	"slices"
	"sync"
	"testing"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var issuerTests = map[string]func(*testing.T, *env){
	"one generation of a name is active": issuerGenerations,
	"OCSP signers":                       ocspSigners,
	"epochs are never given twice":       epochs,
	"signatures only grow":               signatures,
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
