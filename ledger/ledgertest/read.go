package ledgertest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
)

var readTests = map[string]func(*testing.T, *env){
	"lists page by key through every filter":                    lists,
	"a filter that hardly passes gives bounded pages":           sparseFilter,
	"a token that is none is refused":                           badToken,
	"statuses tell good from revoked from unknown":              statuses,
	"what expires is counted by owner, and what nobody renewed": expires,
	"a sweep visits every certificate with OCSP":                sweep,
}

// population commits n certificates of every class of lifetime.
func population(t *testing.T, e *env, n int) []ledger.Entry {
	t.Helper()
	lifetimes := []time.Duration{time.Hour, 30 * time.Hour, 7 * 24 * time.Hour, 90 * 24 * time.Hour, 300 * 24 * time.Hour, 1000 * 24 * time.Hour}
	all := make([]ledger.Entry, n)
	for i := range all {
		x := e.entry(t, lifetimes[i%len(lifetimes)], fmt.Sprintf("dns:host-%d.test", i%7))
		if i%5 == 0 {
			x.Names = append(x.Names, "dns:shared.test", fmt.Sprintf("dns:own-%d.test", i))
		}
		x.Owner = []string{"", "team-a", "team-b"}[i%3]
		x.Caller = fmt.Sprintf("mtls:caller-%d", i%4)
		all[i] = x
	}
	for from := 0; from < n; from += ledger.MaxBatch {
		for _, r := range e.CommitBatch(t.Context(), all[from:min(from+ledger.MaxBatch, n)]) {
			noError(t, r.Err)
		}
	}
	slices.SortFunc(all, func(a, b ledger.Entry) int { return bytes.Compare(a.Serial[:], b.Serial[:]) })
	return all
}

func lists(t *testing.T, e *env) {
	all := population(t, e, 2000)
	now := e.clock.Now()
	named := func(name string) func(*ledger.Entry) bool {
		return func(x *ledger.Entry) bool { return slices.Contains(x.Names, name) }
	}
	for name, c := range map[string]struct {
		filter ledger.Filter
		want   func(*ledger.Entry) bool
	}{
		"all":               {ledger.Filter{}, func(*ledger.Entry) bool { return true }},
		"by first name":     {ledger.Filter{Name: "dns:host-3.test"}, named("dns:host-3.test")},
		"by a later name":   {ledger.Filter{Name: "dns:shared.test"}, named("dns:shared.test")},
		"by a name of one":  {ledger.Filter{Name: "dns:own-55.test"}, named("dns:own-55.test")},
		"by a name of none": {ledger.Filter{Name: "dns:none.test"}, named("dns:none.test")},
		"by owner":          {ledger.Filter{Owner: "team-a"}, func(x *ledger.Entry) bool { return x.Owner == "team-a" }},
		"by caller":         {ledger.Filter{Caller: "mtls:caller-2"}, func(x *ledger.Entry) bool { return x.Caller == "mtls:caller-2" }},
		"by expiry": {ledger.Filter{ExpiresAfter: now.Add(2 * time.Hour), ExpiresBefore: now.Add(100 * 24 * time.Hour)}, func(x *ledger.Entry) bool {
			return x.NotAfter.After(now.Add(2*time.Hour)) && x.NotAfter.Before(now.Add(100*24*time.Hour))
		}},
		"by all of them": {ledger.Filter{Name: "dns:shared.test", Owner: "team-b", Caller: "mtls:caller-1", ExpiresAfter: now.Add(24 * time.Hour)}, func(x *ledger.Entry) bool {
			return slices.Contains(x.Names, "dns:shared.test") && x.Owner == "team-b" && x.Caller == "mtls:caller-1" && x.NotAfter.After(now.Add(24*time.Hour))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var want []serial.Number
			for i := range all {
				if c.want(&all[i]) {
					want = append(want, all[i].Serial)
				}
			}
			var got []serial.Number
			token := ""
			for {
				page, next, err := e.List(t.Context(), c.filter, token, 170)
				noError(t, err)
				if len(page) > 170 {
					t.Fatalf("a page of %d", len(page))
				}
				for _, l := range page {
					got = append(got, l.Serial)
				}
				if token = next; next == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d certificates, want %d, or in another order", len(got), len(want))
			}
		})
	}
}

func sparseFilter(t *testing.T, e *env) {
	all := population(t, e, 600)
	rare := all[len(all)-1]
	// Callers are indexed, so owner is checked row by row: with pages of 2 the one
	// that passes comes after many that do not.
	f := ledger.Filter{Caller: rare.Caller, Owner: rare.Owner, ExpiresAfter: rare.NotAfter.Add(-time.Second)}
	token, pages, found := "", 0, 0
	for {
		page, next, err := e.List(t.Context(), f, token, 2)
		noError(t, err)
		pages++
		for _, l := range page {
			if l.Caller != rare.Caller || l.Owner != rare.Owner || l.NotAfter.Before(rare.NotAfter) {
				t.Errorf("%s does not pass the filter", l.Serial)
			}
			found++
		}
		if token = next; next == "" {
			break
		}
	}
	if found == 0 || pages < 2 {
		t.Errorf("%d found on %d pages", found, pages)
	}
}

func badToken(t *testing.T, e *env) {
	for _, token := range []string{"x", "00", "zz000000000000000000000000000000"} {
		_, _, err := e.List(t.Context(), ledger.Filter{}, token, 10)
		wantKind(t, err, problem.Invalid)
	}
}

func statuses(t *testing.T, e *env) {
	good, bad, unknown := e.entry(t, time.Hour), e.entry(t, time.Hour), e.entry(t, time.Hour)
	commitOne(t, e.Ledger, good)
	commitOne(t, e.Ledger, bad)
	_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: bad.Serial, Reason: 4})
	noError(t, err)
	got, err := e.Statuses(t.Context(), []serial.Number{good.Serial, bad.Serial, unknown.Serial})
	noError(t, err)
	if len(got) != 2 {
		t.Fatalf("%d statuses", len(got))
	}
	for _, s := range got {
		if (s.Revoked != nil) != (s.Serial == bad.Serial) {
			t.Errorf("status %+v", s)
		}
		if s.Serial == good.Serial && (!s.NotAfter.Equal(good.NotAfter) || s.Issuer != good.Issuer || s.Revocation != good.Revocation) {
			t.Errorf("status %+v", s)
		}
	}
}

func sweep(t *testing.T, e *env) {
	all := population(t, e, 300)
	silent := e.entry(t, time.Hour)
	silent.Revocation = ledger.RevocationCRL
	commitOne(t, e.Ledger, silent)
	_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: all[150].Serial, Reason: 1})
	noError(t, err)
	e.clock.advance(2 * time.Hour) // those of one hour have expired
	var want, got []serial.Number
	for _, x := range all {
		if x.NotAfter.After(e.clock.Now()) {
			want = append(want, x.Serial)
		}
	}
	var after serial.Number
	revoked := 0
	for {
		page, err := e.SweepStatuses(t.Context(), after, 64)
		noError(t, err)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			if got = append(got, s.Serial); s.Revoked != nil {
				revoked++
			}
		}
		after = page[len(page)-1].Serial
	}
	if !slices.Equal(got, want) || revoked != 1 {
		t.Errorf("swept %d, want %d; %d revoked", len(got), len(want), revoked)
	}
}

func expires(t *testing.T, e *env) {
	day := 24 * time.Hour
	put := func(owner, name string, lifetime time.Duration) ledger.Entry {
		x := e.entry(t, lifetime, name)
		x.Owner = owner
		commitOne(t, e.Ledger, x)
		return x
	}
	// All of these were issued 19 days and 20 hours ago by the time they are counted.
	const past = 19*24*time.Hour + 20*time.Hour
	put("a", "dns:renewed.test", 20*day)
	put("a", "dns:renewed.test", 60*day)
	put("a", "dns:forgotten.test", 25*day)
	put("b", "dns:month.test", 45*day)
	put("b", "dns:later.test", 300*day)
	put("", "dns:nobody.test", 20*day)
	gone := put("c", "dns:gone.test", 20*day)
	_, _, err := e.Revoke(t.Context(), ledger.Revocation{Serial: gone.Serial, RevokedBy: "test"})
	noError(t, err)
	e.clock.advance(past)
	put("a", "dns:short.test", 5*time.Hour) // leaves by the day
	owners, whole, err := e.Expiring(t.Context())
	noError(t, err)
	want := []ledger.Expiring{{Owner: "", Within1: 1, Within7: 1, Within30: 1}, {Owner: "a", Within1: 1, Within7: 2, Within30: 2}, {Owner: "b", Within30: 1}}
	slices.SortFunc(owners, func(a, b ledger.Expiring) int { return strings.Compare(a.Owner, b.Owner) })
	if !whole || !slices.Equal(owners, want) {
		t.Errorf("got %+v, want %+v", owners, want)
	}
	seen, without, err := e.Successors(t.Context())
	noError(t, err)
	if seen != 3 || without != 2 {
		t.Errorf("of %d certificates in their last week %d have no successor; want 2 of 3", seen, without)
	}
}
