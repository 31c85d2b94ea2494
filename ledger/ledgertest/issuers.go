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
	"one generation of a name is active":                             issuerGenerations,
	"a generation is prepared, then active, retired, closed":         rollover,
	"what a generation still has":                                    unexpired,
	"a ledger that was restored":                                     restored,
	"a drained signer":                                               drains,
	"what a process without a broker says of itself":                 reports,
	"OCSP signers":                                                   ocspSigners,
	"epochs are never given twice":                                   epochs,
	"signatures only grow":                                           signatures,
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

// epochOf begins an epoch of a generation.
func (e *env) epochOf(t *testing.T, issuer int32) uint32 {
	t.Helper()
	id, err := e.StartEpoch(t.Context(), ledger.Epoch{Signer: "s", Issuer: issuer, Token: "t"})
	noError(t, err)
	return id
}

// entryOf is an entry with a serial of an epoch.
func (e *env) entryOf(t *testing.T, epoch uint32, issuer int32, lifetime time.Duration) ledger.Entry {
	t.Helper()
	entry := e.entry(t, lifetime)
	entry.Issuer = issuer
	n, err := serial.New(rand.Reader, epoch, entry.NotBefore, entry.NotAfter)
	noError(t, err)
	entry.Serial = n
	return entry
}

// unexpired compares Unexpired with what is there: epochs of three generations by turns,
// certificates of every class of lifetime, and some epochs without any.
func unexpired(t *testing.T, e *env) {
	const day = 24 * time.Hour
	lifetimes := []time.Duration{time.Hour, 3 * day, 20 * day, 200 * day, 500 * day, 900 * day}
	var issuers []int32
	for _, name := range []string{"a", "b", "c", "none"} {
		id, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: name, State: ledger.IssuerActive, DER: []byte(name)})
		noError(t, err)
		issuers = append(issuers, id)
	}
	all := map[int32][]time.Time{}
	for i := range 18 {
		issuer := issuers[i%3]
		epoch := e.epochOf(t, issuer)
		for k, life := range lifetimes {
			if (i*7+k*5)%4 == 0 || issuer == issuers[1] && life > 30*day {
				continue
			}
			entry := e.entryOf(t, epoch, issuer, life)
			commitOne(t, e.Ledger, entry)
			all[issuer] = append(all[issuer], entry.NotAfter)
		}
	}
	for _, step := range []time.Duration{0, 2 * time.Hour, 4 * day, 25 * day, 180 * day, 400 * day, 400 * day} {
		e.clock.advance(step)
		for _, issuer := range issuers {
			var latest time.Time
			for _, end := range all[issuer] {
				if end.After(e.clock.Now()) && end.After(latest) {
					latest = end
				}
			}
			got, err := e.Unexpired(t.Context(), issuer)
			noError(t, err)
			// All of one lifetime end within a second or two of each other here.
			if got.IsZero() != latest.IsZero() || latest.Sub(got).Abs() > time.Minute {
				t.Errorf("%s on, generation %d has certificates until %s, not %s", step, issuer, latest, got)
			}
		}
	}
}

func restored(t *testing.T, e *env) {
	if at, err := e.RestoredAt(t.Context()); err != nil || !at.IsZero() {
		t.Errorf("restored at %v, %v", at, err)
	}
	issuer, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: "main", State: ledger.IssuerActive, DER: []byte("one")})
	noError(t, err)
	last := e.epochOf(t, issuer)
	var times []time.Time
	for range 2 {
		done, err := e.Restored(t.Context(), "operator", 50)
		noError(t, err)
		if done.FirstLost != last+1 || done.LastLost != last+50 {
			t.Errorf("epochs %d to %d are lost; the last was %d", done.FirstLost, done.LastLost, last)
		}
		at, err := e.RestoredAt(t.Context())
		noError(t, err)
		times = append(times, at)
		if next := e.epochOf(t, issuer); next <= done.LastLost {
			t.Errorf("epoch %d is given although %d is lost", next, done.LastLost)
		} else {
			last = next
		}
	}
	if times[0].IsZero() || !times[1].After(times[0]) {
		t.Errorf("two restorations at %v", times)
	}
}

func reports(t *testing.T, e *env) {
	put := func(process, report string) {
		t.Helper()
		noError(t, e.PutReport(t.Context(), process, []byte(report)))
	}
	shown := func(want ...string) {
		t.Helper()
		all, err := e.Reports(t.Context())
		noError(t, err)
		var got []string
		for _, r := range all {
			got = append(got, string(r.Report))
			if r.Age < 0 || r.Age > time.Minute {
				t.Errorf("%s is %s old", r.Report, r.Age)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("reports %q, want %q", got, want)
		}
	}
	put("maintenance a", "first")
	put("maintenance b", "other")
	put("maintenance a", "second")
	shown("second", "other")
	_, err := e.connect(t).Exec(t.Context(), `UPDATE role_reports SET reported_at = now() - INTERVAL '11 minutes' WHERE process = 'maintenance b'`)
	noError(t, err)
	shown("second")
	put("maintenance a", "third")
	if n := e.count(t, `SELECT count(*) FROM role_reports`); n != 1 {
		t.Errorf("%d reports are kept", n)
	}
}

func rollover(t *testing.T, e *env) {
	generation := func(state, der string, chain ...[]byte) int32 {
		t.Helper()
		id, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: "main", State: state, DER: []byte(der), Chain: chain})
		noError(t, err)
		return id
	}
	states := func(want ...string) {
		t.Helper()
		all, err := e.Issuers(t.Context())
		noError(t, err)
		var got []string
		for _, i := range all {
			got = append(got, i.State)
		}
		if !slices.Equal(got, want) {
			t.Errorf("states %v, want %v", got, want)
		}
	}
	root := []byte("root")
	anchor := generation(ledger.IssuerRetired, "root")
	old := generation(ledger.IssuerActive, "one", root)
	next := generation(ledger.IssuerPrepared, "two", root)
	states(ledger.IssuerRetired, ledger.IssuerActive, ledger.IssuerPrepared)
	issued := e.entryOf(t, e.epochOf(t, old), old, time.Hour)
	commitOne(t, e.Ledger, issued)
	_, err := e.PutCRLSet(t.Context(), ledger.CRLSet{Issuer: old, URL: "http://crl.test/old", Shards: 2})
	noError(t, err)
	for _, id := range []int32{anchor, old, next} {
		wantKind(t, e.CloseIssuer(t.Context(), id, "local:ada", true), problem.Conflict)
	}
	generation(ledger.IssuerActive, "two", root)
	states(ledger.IssuerRetired, ledger.IssuerRetired, ledger.IssuerActive)
	if last, err := e.Unexpired(t.Context(), old); err != nil || !last.Equal(issued.NotAfter) {
		t.Errorf("unexpired until %s, %v; want %s", last, err, issued.NotAfter)
	}
	wantKind(t, e.CloseIssuer(t.Context(), old, "local:ada", false), problem.Conflict)
	states(ledger.IssuerRetired, ledger.IssuerRetired, ledger.IssuerActive)
	e.clock.advance(2 * time.Hour)
	for range 2 {
		noError(t, e.CloseIssuer(t.Context(), old, "local:ada", false))
	}
	states(ledger.IssuerRetired, ledger.IssuerClosed, ledger.IssuerActive)
	if sets, err := e.CRLSets(t.Context()); err != nil || len(sets) != 0 {
		t.Errorf("the closed generation's CRLs: %v, %v", sets, err)
	}
	_, err = e.PutIssuer(t.Context(), ledger.Issuer{Name: "main", State: ledger.IssuerActive, DER: []byte("one"), Chain: [][]byte{root}})
	wantKind(t, err, problem.Conflict)
	states(ledger.IssuerRetired, ledger.IssuerClosed, ledger.IssuerActive)
	if trail, err := e.Audit(t.Context(), 0, 10); err != nil || len(trail) != 1 || trail[0].Action != "issuer.close" || trail[0].Actor != "local:ada" {
		t.Errorf("the audit trail has %+v, %v", trail, err)
	}
}

func drains(t *testing.T, e *env) {
	want := func(names ...string) {
		t.Helper()
		all, err := e.Drains(t.Context())
		noError(t, err)
		var got []string
		for _, d := range all {
			if got = append(got, d.Signer); d.Actor != "local:ada" || e.clock.Now().Sub(d.Since).Abs() > time.Minute {
				t.Errorf("drain %+v", d)
			}
		}
		if !slices.Equal(got, names) {
			t.Errorf("drained are %v, want %v", got, names)
		}
	}
	want()
	noError(t, e.Drain(t.Context(), "hsm-2", "local:ada"))
	noError(t, e.Drain(t.Context(), "hsm-1", "local:ada"))
	noError(t, e.Drain(t.Context(), "hsm-1", "local:bob")) // it is drained
	want("hsm-1", "hsm-2")
	for range 2 {
		noError(t, e.Undrain(t.Context(), "hsm-2", "local:bob"))
	}
	want("hsm-1")
	wantKind(t, e.Drain(t.Context(), "", "local:ada"), problem.Invalid)
	trail, err := e.Audit(t.Context(), 0, 10)
	noError(t, err)
	if len(trail) != 3 || trail[2].Action != "signer.undrain" || trail[2].Subject != "hsm-2" || trail[2].Actor != "local:bob" {
		t.Errorf("the audit trail has %+v", trail)
	}
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
