package ledgertest

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var tokenTests = map[string]func(*testing.T, *env){
	"a token of one use has one winner of 1,000":        tokenRace,
	"a token of n uses has n winners":                   tokenUses,
	"a retry costs no use":                              tokenRetry,
	"a late retry is refused":                           tokenLate,
	"one request at many gateways costs one use":        tokenSameRequest,
	"unknown, expired and deleted tokens admit nothing": tokenRefused,
	"tokens are listed, found and deleted":              tokenAdmin,
}

func newToken(t *testing.T, e *env, uses int) ledger.Token {
	t.Helper()
	token, err := e.CreateToken(t.Context(), ledger.Token{
		Hash: sha256.Sum256([]byte(rand.Text())), Profile: "server", Names: []string{"dns:a.test"}, Uses: uses,
		Expires: e.clock.Now().Add(time.Hour).UTC().Truncate(time.Second), Owner: "team", CreatedBy: "admin",
	})
	noError(t, err)
	return token
}

// contest uses a token for n different requests at once, at two gateways.
func contest(t *testing.T, e *env, token ledger.Token, n int) (winners int) {
	other := e.another(t, e.url)
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		l := []*ledger.Ledger{e.Ledger, other}[i%2]
		wg.Go(func() {
			_, err := l.UseToken(t.Context(), token.Hash, ledger.NewRequestKey(fmt.Sprint(i)), time.Hour)
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, &problem.Error{Kind: problem.Unauthenticated, Rule: "token_used"}):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return int(won.Load())
}

func tokenRace(t *testing.T, e *env) {
	if n := contest(t, e, newToken(t, e, 1), 1000); n != 1 {
		t.Errorf("%d winners", n)
	}
}

func tokenUses(t *testing.T, e *env) {
	if n := contest(t, e, newToken(t, e, 50), 200); n != 50 {
		t.Errorf("%d winners", n)
	}
}

func tokenRetry(t *testing.T, e *env) {
	token := newToken(t, e, 1)
	key := ledger.NewRequestKey("one")
	for range 3 {
		got, err := e.UseToken(t.Context(), token.Hash, key, time.Hour)
		if err != nil || got.ID != token.ID || got.Used != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	_, err := e.UseToken(t.Context(), token.Hash, ledger.NewRequestKey("two"), time.Hour)
	wantKind(t, err, problem.Unauthenticated)
	e.clock.advance(2 * time.Hour) // a retry stays admitted past the token's end, while its key stands
	_, err = e.UseToken(t.Context(), token.Hash, key, 3*time.Hour)
	noError(t, err)
}

// A key that stands no longer would make another certificate: that is another use,
// which the request has no right to even where the token has some left.
func tokenLate(t *testing.T, e *env) {
	for uses := range 2 {
		token, key := newToken(t, e, uses+1), ledger.NewRequestKey("one")
		_, err := e.UseToken(t.Context(), token.Hash, key, time.Minute)
		noError(t, err)
		e.clock.advance(time.Minute)
		_, err = e.UseToken(t.Context(), token.Hash, key, time.Minute)
		if want := (&problem.Error{Kind: problem.Unauthenticated, Rule: "token_used"}); !errors.Is(err, want) {
			t.Errorf("with %d uses: %v, want %s", uses+1, err, want.Rule)
		}
		got, err := e.TokenByHash(t.Context(), token.Hash)
		if err != nil || got.Used != 1 {
			t.Errorf("%d uses are taken, %v", got.Used, err)
		}
	}
}

func tokenSameRequest(t *testing.T, e *env) {
	token := newToken(t, e, 10)
	key := ledger.NewRequestKey("one")
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, err := e.UseToken(t.Context(), token.Hash, key, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := e.TokenByHash(t.Context(), token.Hash)
	if err != nil || got.Used != 1 {
		t.Errorf("%d uses, %v", got.Used, err)
	}
}

func tokenRefused(t *testing.T, e *env) {
	token := newToken(t, e, 5)
	deleted := newToken(t, e, 5)
	noError(t, e.DeleteToken(t.Context(), deleted.ID, "admin"))
	e.clock.advance(time.Hour + time.Second)
	for rule, hash := range map[string][32]byte{"token_expired": token.Hash, "token_unknown": deleted.Hash} {
		want := &problem.Error{Kind: problem.Unauthenticated, Rule: rule}
		if _, err := e.UseToken(t.Context(), hash, ledger.NewRequestKey("x"), time.Hour); !errors.Is(err, want) {
			t.Errorf("use: %v, want %s", err, rule)
		}
		if _, err := e.TokenByHash(t.Context(), hash); !errors.Is(err, want) {
			t.Errorf("read: %v, want %s", err, rule)
		}
	}
}

func tokenAdmin(t *testing.T, e *env) {
	token := newToken(t, e, 3)
	got, err := e.TokenByHash(t.Context(), token.Hash)
	noError(t, err)
	got.Created, token.Created = time.Time{}, time.Time{} // the database keeps microseconds
	if !reflect.DeepEqual(got, token) {
		t.Errorf("read %+v, wrote %+v", got, token)
	}
	all, err := e.Tokens(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != token.ID {
		t.Errorf("%+v, %v", all, err)
	}
	noError(t, e.DeleteToken(t.Context(), token.ID, "admin"))
	wantKind(t, e.DeleteToken(t.Context(), token.ID, "admin"), problem.NotFound)
	wantKind(t, e.DeleteToken(t.Context(), "x", "admin"), problem.Invalid)
	for name, bad := range map[string]ledger.Token{
		"no use": {Hash: token.Hash, Expires: token.Expires}, "past": {Hash: token.Hash, Uses: 1},
	} {
		if _, err := e.CreateToken(t.Context(), bad); problem.KindOf(err) != problem.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	token.Uses = 1
	_, err = e.CreateToken(t.Context(), token)
	noError(t, err)
	_, err = e.CreateToken(t.Context(), token)
	wantKind(t, err, problem.Conflict)
}
