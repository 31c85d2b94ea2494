package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/certmill/certmill/ledger"
)

var auditTests = map[string]func(*testing.T, *env){
	"rows from many goroutines are one chain":     auditChain,
	"tampering is found at the row":               tampering,
	"the database refuses to change an audit row": appendOnly,
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
	for _, sql := range []string{`UPDATE audit SET detail = 'x'`, `DELETE FROM audit`, `TRUNCATE audit`} {
		if _, err := conn.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
