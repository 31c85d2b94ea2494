package ledgertest

import (
	"bytes"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

var crlTests = map[string]func(*testing.T, *env){
	"a distribution point is one issuer's": crlSets,
	"one at a time makes a CRL":            crlClaims,
	"numbers of CRLs never go back":        crlNumbers,
	"the pieces of the last two are kept":  crlChunks,
	"a scope is the same at every reading": crlScope,
}

func crlIssuer(t *testing.T, e *env, name string) int32 {
	t.Helper()
	id, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: name, State: ledger.IssuerActive, DER: []byte(name)})
	noError(t, err)
	return id
}

func crlSet(t *testing.T, e *env, shards int) ledger.CRLSet {
	t.Helper()
	s := ledger.CRLSet{Issuer: crlIssuer(t, e, "main"), URL: "http://crl.test/main-1/{shard}.crl", Shards: shards}
	var err error
	s.ID, err = e.PutCRLSet(t.Context(), s)
	noError(t, err)
	return s
}

func crlSets(t *testing.T, e *env) {
	s := crlSet(t, e, 4)
	if again, err := e.PutCRLSet(t.Context(), s); err != nil || again != s.ID {
		t.Errorf("again: %d, %v", again, err)
	}
	more := s
	more.Shards = 8
	var err error
	more.ID, err = e.PutCRLSet(t.Context(), more)
	noError(t, err)
	theirs := s
	theirs.Issuer = crlIssuer(t, e, "other")
	_, err = e.PutCRLSet(t.Context(), theirs)
	wantKind(t, err, problem.Conflict)
	sets, err := e.CRLSets(t.Context())
	if err != nil || !slices.Equal(sets, []ledger.CRLSet{s, more}) {
		t.Errorf("%+v, %v", sets, err)
	}
	crls, err := e.CRLs(t.Context())
	if err != nil || len(crls) != 12 || crls[3] != (ledger.CRL{Set: s.ID, Issuer: s.Issuer, Shard: 3}) {
		t.Errorf("%d CRLs, %v", len(crls), err)
	}
}

func crlClaims(t *testing.T, e *env) {
	s := crlSet(t, e, 1)
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, ok, err := e.ClaimCRL(t.Context(), s.ID, 0, 0, string(rune('a'+i)), time.Minute)
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if n := won.Load(); n != 1 {
		t.Fatalf("%d have the claim", n)
	}
	e.clock.advance(2 * time.Minute) // the winner has died
	now := e.clock.Now().UnixMilli()
	c, ok, err := e.ClaimCRL(t.Context(), s.ID, 0, 0, "heir", time.Minute)
	if err != nil || !ok || c.Number < now {
		t.Errorf("%+v, %v, %v", c, ok, err)
	}
	noError(t, e.ReleaseCRL(t.Context(), c))
	if _, ok, err := e.ClaimCRL(t.Context(), s.ID, 0, 1, "late", time.Minute); err != nil || ok {
		t.Errorf("a claim after a number that is not published: %v, %v", ok, err)
	}
	e.clock.advance(-time.Hour) // another machine's clock
	if next, ok, err := e.ClaimCRL(t.Context(), s.ID, 0, 0, "next", time.Minute); err != nil || !ok || next.Number != c.Number+1 {
		t.Errorf("%+v, %v, %v; after %+v", next, ok, err, c)
	}
}

func crlNumbers(t *testing.T, e *env) {
	s := crlSet(t, e, 1)
	slow, _, err := e.ClaimCRL(t.Context(), s.ID, 0, 0, "slow", time.Minute)
	noError(t, err)
	e.clock.advance(2 * time.Minute)
	fast, _, err := e.ClaimCRL(t.Context(), s.ID, 0, 0, "fast", time.Minute)
	noError(t, err)
	now := e.clock.Now().UTC().Truncate(time.Second)
	want := ledger.CRL{
		Set: s.ID, Issuer: s.Issuer, Number: fast.Number, Sequence: 7, ThisUpdate: now, NextUpdate: now.Add(time.Hour), Scheduled: now.Add(-time.Minute),
		Entries: 3, Bytes: 999, Chunks: 2, Digest: [32]byte{1, 2},
	}
	for range 2 { // the second for a lost answer
		if ok, err := e.PublishCRL(t.Context(), fast, want); err != nil || !ok {
			t.Fatalf("published %v, %v", ok, err)
		}
	}
	if ok, err := e.PublishCRL(t.Context(), slow, ledger.CRL{ThisUpdate: now}); err != nil || ok {
		t.Errorf("the slow one published %v, %v", ok, err)
	}
	crls, err := e.CRLs(t.Context())
	if err != nil || len(crls) != 1 || crls[0] != want {
		t.Errorf("%+v, %v", crls, err)
	}
}

func crlChunks(t *testing.T, e *env) {
	s := crlSet(t, e, 1)
	now := e.clock.Now()
	var numbers []int64
	seen := int64(0)
	for range 3 {
		c, ok, err := e.ClaimCRL(t.Context(), s.ID, 0, seen, "me", time.Minute)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		noError(t, e.PutCRLChunk(t.Context(), c, 0, []byte("old")))
		noError(t, e.PutCRLChunk(t.Context(), c, 0, []byte{byte(c.Number)}))
		noError(t, e.PutCRLChunk(t.Context(), c, 1, []byte("tail")))
		_, err = e.PublishCRL(t.Context(), c, ledger.CRL{ThisUpdate: now, NextUpdate: now, Scheduled: now, Chunks: 2})
		noError(t, err)
		seen = c.Number
		numbers = append(numbers, c.Number)
	}
	_, err := e.CRLChunk(t.Context(), s.ID, 0, numbers[0], 0)
	wantKind(t, err, problem.NotFound)
	for _, n := range numbers[1:] {
		if der, err := e.CRLChunk(t.Context(), s.ID, 0, n, 0); err != nil || !bytes.Equal(der, []byte{byte(n)}) {
			t.Errorf("CRL %d: %q, %v", n, der, err)
		}
	}
}

func crlScope(t *testing.T, e *env) {
	const many, shards = 40, 4
	start := e.clock.Now()
	serials := map[int]map[serial.Number]bool{}
	for i := range many {
		entry := e.entry(t, time.Duration(1+i%2)*time.Hour)
		entry.Revocation = ledger.RevocationCRL
		if i%10 == 9 {
			entry.Revocation = ledger.RevocationOCSP
		}
		commitOne(t, e.Ledger, entry)
		_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: entry.Serial, Reason: int16(i % 2)})
		noError(t, err)
		shard := crldp.Of(entry.Serial, shards)
		if serials[shard] == nil {
			serials[shard] = map[serial.Number]bool{}
		}
		serials[shard][entry.Serial] = entry.Revocation == ledger.RevocationCRL
	}
	issuer := e.entry(t, time.Hour).Issuer
	seq, err := e.RevocationSequence(t.Context())
	noError(t, err)
	total := 0
	for shard := range shards {
		scope := ledger.CRLScope{Issuer: issuer, Sequence: seq}
		scope.First, scope.Last = crldp.Slots(shard, shards)
		var got []ledger.CRLEntry
		var page []ledger.CRLEntry
		var after serial.Number
		for {
			page, err = e.CRLEntries(t.Context(), scope, after, 3, page)
			noError(t, err)
			if len(page) == 0 {
				break
			}
			got, after = append(got, page...), page[len(page)-1].Serial
		}
		unspecified := int64(0)
		for _, entry := range got {
			if !serials[shard][entry.Serial] {
				t.Errorf("shard %d has %s", shard, entry.Serial)
			}
			if entry.Reason == 0 {
				unspecified++
			}
		}
		count, err := e.CountCRLEntries(t.Context(), scope)
		if err != nil || count != (ledger.CRLCount{Entries: int64(len(got)), Unspecified: unspecified}) {
			t.Errorf("shard %d: %+v, %v; %d were read", shard, count, err, len(got))
		}
		total += len(got)
	}
	if total != many-many/10 {
		t.Errorf("%d entries in all shards, of %d", total, many-many/10)
	}
	all := ledger.CRLScope{Issuer: issuer, Last: [2]byte{0xff, 0xff}, Complete: true, Sequence: seq}
	for _, c := range []struct {
		what   string
		change func(*ledger.CRLScope)
		want   int64
	}{
		{"all", func(*ledger.CRLScope) {}, many},
		{"another issuer's", func(s *ledger.CRLScope) { s.Issuer++ }, 0},
		{"before the last", func(s *ledger.CRLScope) { s.Sequence-- }, many - 1},
		{"those that end late", func(s *ledger.CRLScope) { s.Unexpired = start.Add(90 * time.Minute) }, many / 2},
	} {
		scope := all
		c.change(&scope)
		if count, err := e.CountCRLEntries(t.Context(), scope); err != nil || count.Entries != c.want {
			t.Errorf("%s: %+v, %v; want %d", c.what, count, err, c.want)
		}
	}
}
