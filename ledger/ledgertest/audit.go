package ledgertest

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

var auditTests = map[string]func(*testing.T, *env){
	"rows from many goroutines are one chain":     auditChain,
	"tampering is found at the row":               tampering,
	"the database refuses to change an audit row": appendOnly,
	"a token and its audit row stand or fall":     tokenAudit,
	"signed heads are kept in their order":        signedHeads,
}

func auditChain(t *testing.T, e *env) {
	other := e.another(t, e.url)
	var wg sync.WaitGroup
	for i := range 60 {
		l := []*ledger.Ledger{e.Ledger, other}[i%2]
		wg.Go(func() {
			if _, err := l.AppendAudit(t.Context(), ledger.AuditEntry{Actor: fmt.Sprint(i), Action: "test"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n, err := e.VerifyAudit(t.Context())
	if err != nil || n != 60 {
		t.Errorf("%d rows, %v", n, err)
	}
	page, err := e.Audit(t.Context(), 57, 2)
	if err != nil || len(page) != 2 || page[0].Sequence != 58 || page[1].Sequence != 59 {
		t.Errorf("page %+v, %v", page, err)
	}
}

func tampering(t *testing.T, e *env) {
	e.onPostgreSQL(t) // a superuser there can put the trigger aside
	for range 10 {
		_, err := e.AppendAudit(t.Context(), ledger.AuditEntry{Actor: "a", Action: "b", Subject: "c", Detail: "d"})
		noError(t, err)
	}
	conn := e.connect(t)
	_, err := conn.Exec(t.Context(), `SET session_replication_role = replica`)
	noError(t, err)
	for sql, row := range map[string]int64{
		`UPDATE audit SET detail = 'x' WHERE seq = 4`:                              4,
		`UPDATE audit SET actor = 'ab', action = '' WHERE seq = 6`:                 6,
		`UPDATE audit SET recorded_at = recorded_at + interval '1s' WHERE seq = 1`: 1,
		`DELETE FROM audit WHERE seq = 5`:                                          5,
		`DELETE FROM audit WHERE seq >= 9`:                                         9,
		`UPDATE audit SET hash = decode(repeat('ab', 32), 'hex') WHERE seq = 10`:   10,
		`UPDATE audit_head SET hash = decode(repeat('ab', 32), 'hex')`:             10,
	} {
		saved, err := e.Audit(t.Context(), 0, 100)
		noError(t, err)
		_, err = conn.Exec(t.Context(), sql)
		noError(t, err)
		_, err = e.VerifyAudit(t.Context())
		if broken, ok := errors.AsType[*ledger.BrokenChainError](err); !ok || broken.Sequence != row {
			t.Errorf("after %s: %v, want a break at row %d", sql, err, row)
		}
		_, err = conn.Exec(t.Context(), `DELETE FROM audit`)
		noError(t, err)
		for _, a := range saved {
			_, err = conn.Exec(t.Context(), `INSERT INTO audit VALUES ($1, $2, $3, $4, $5, $6, $7)`, a.Sequence, a.Time, a.Actor, a.Action, a.Subject, a.Detail, a.Hash[:])
			noError(t, err)
		}
		_, err = conn.Exec(t.Context(), `UPDATE audit_head SET hash = $1`, saved[9].Hash[:])
		noError(t, err)
		_, err = e.VerifyAudit(t.Context())
		noError(t, err)
	}
}

func appendOnly(t *testing.T, e *env) {
	e.onPostgreSQL(t)
	_, err := e.AppendAudit(t.Context(), ledger.AuditEntry{Actor: "a", Action: "b"})
	noError(t, err)
	conn := e.connect(t)
	for _, sql := range []string{`UPDATE audit SET detail = 'x'`, `DELETE FROM audit`, `TRUNCATE audit`, `DELETE FROM audit_heads`, `TRUNCATE audit_heads`} {
		if _, err := conn.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// tokenAudit: no token comes or goes without its row, nor a row without its token.
func tokenAudit(t *testing.T, e *env) {
	e.onPostgreSQL(t) // whose triggers refuse the row
	token := newToken(t, e, 1)
	rows, err := e.Audit(t.Context(), 0, 10)
	noError(t, err)
	if len(rows) != 1 || rows[0].Action != "enrollment_token.create" || rows[0].Subject != token.ID || rows[0].Actor != "admin" {
		t.Fatalf("the trail of a token's creation: %+v", rows)
	}
	conn := e.connect(t)
	_, err = conn.Exec(t.Context(), `CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '42501'; END $$;
		CREATE TRIGGER no_audit BEFORE INSERT ON audit EXECUTE FUNCTION no_audit()`)
	noError(t, err)
	second := token
	second.Hash[0] ^= 1
	if _, err := e.CreateToken(t.Context(), second); err == nil {
		t.Error("a token was made without its audit row")
	}
	if err := e.DeleteToken(t.Context(), token.ID, "admin"); err == nil {
		t.Error("a token was deleted without its audit row")
	}
	if tokens, err := e.Tokens(t.Context()); err != nil || len(tokens) != 1 || tokens[0].ID != token.ID {
		t.Errorf("tokens %+v, %v", tokens, err)
	}
	_, err = conn.Exec(t.Context(), `DROP TRIGGER no_audit ON audit`)
	noError(t, err)
	noError(t, e.DeleteToken(t.Context(), token.ID, "oncall"))
	wantKind(t, e.DeleteToken(t.Context(), token.ID, "oncall"), problem.NotFound) // and writes no row
	_, err = e.CreateToken(t.Context(), ledger.Token{Hash: token.Hash, Uses: 1, Expires: token.Expires, CreatedBy: "admin"})
	noError(t, err)
	_, err = e.CreateToken(t.Context(), ledger.Token{Hash: token.Hash, Uses: 1, Expires: token.Expires, CreatedBy: "admin"})
	wantKind(t, err, problem.Conflict) // and writes no row
	rows, err = e.Audit(t.Context(), 0, 10)
	if err != nil || len(rows) != 3 || rows[1].Action != "enrollment_token.delete" || rows[1].Subject != token.ID || rows[1].Actor != "oncall" {
		t.Errorf("the trail: %+v, %v", rows, err)
	}
	if n, err := e.VerifyAudit(t.Context()); err != nil || n != 3 {
		t.Errorf("%d rows, %v", n, err)
	}
}

func signedHeads(t *testing.T, e *env) {
	der := []byte{0x30, 0}
	issuer, err := e.PutIssuer(t.Context(), ledger.Issuer{Name: "issuing", State: ledger.IssuerActive, DER: der, KeyURI: "pkcs11:object=x"})
	noError(t, err)
	if none, err := e.LastSignedHead(t.Context()); err != nil || none.Sequence != 0 || none.Signature != nil {
		t.Errorf("before the first: %+v, %v", none, err)
	}
	now := e.clock.Now().UTC().Truncate(time.Microsecond)
	head := func(seq int64, later time.Duration) ledger.SignedHead {
		return ledger.SignedHead{AuditHead: ledger.AuditHead{Sequence: seq, Hash: [32]byte{byte(seq)}}, SignedAt: now.Add(later), Issuer: issuer, Signature: []byte{1}}
	}
	want := []ledger.SignedHead{head(3, 0), head(3, time.Hour), head(7, time.Minute), head(9, 2*time.Minute)}
	for _, i := range []int{2, 0, 3, 1, 2} { // one of them twice
		noError(t, e.PutSignedHead(t.Context(), want[i]))
	}
	var got []ledger.SignedHead
	for {
		page, err := e.SignedHeads(t.Context(), last(got), 3)
		noError(t, err)
		if len(page) == 0 {
			break
		}
		got = append(got, page...)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if newest, err := e.LastSignedHead(t.Context()); err != nil || !reflect.DeepEqual(newest, want[3]) {
		t.Errorf("the newest is %+v, %v", newest, err)
	}
	if err := e.PutSignedHead(t.Context(), head(9, 5*time.Nanosecond)); err == nil {
		t.Error("a time that the database would round is taken")
	}
}

func last(heads []ledger.SignedHead) ledger.SignedHead {
	if len(heads) == 0 {
		return ledger.SignedHead{}
	}
	return heads[len(heads)-1]
}
