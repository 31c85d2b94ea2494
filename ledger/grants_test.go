package ledger

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/testenv"
)

// TestEveryUserHasItsRightsAndNoOthers makes the users, migrates as the owner, and
// compares what each may do with the table of grants, verb by verb.
func TestEveryUserHasItsRightsAndNoOthers(t *testing.T) {
	admin := config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 2}
	for range 2 { // the second finds them there
		if _, err := CreateUsers(t.Context(), admin); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(admin.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(OwnerUser)
	owner := config.Ledger{URL: u.String(), MaxConnections: 2}
	if err := Migrate(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	if done, err := ApplyGrants(t.Context(), owner); err != nil || len(done) != 0 {
		t.Errorf("the second time: %v, %v", done, err)
	}
	conn, err := pgx.Connect(t.Context(), owner.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	tables, err := tablesOf(t.Context(), conn)
	if err != nil || len(tables) < 15 {
		t.Fatalf("%v: %v", tables, err)
	}
	for user := range grants {
		for _, table := range tables {
			for _, r := range []right{read, add, change, remove, "TRUNCATE"} {
				var may bool
				if err := conn.QueryRow(t.Context(), `SELECT has_table_privilege($1, $2, $3)`, user, table, string(r)).Scan(&may); err != nil {
					t.Fatal(err)
				}
				if may != wanted(user, table, r) {
					t.Errorf("%s: %s on %s is %v", user, r, table, may)
				}
			}
		}
	}
	for user, of := range grants {
		for table := range of {
			if table != everyTable && !slices.Contains(tables, table) {
				t.Errorf("%s has rights to %s, which is no table", user, table)
			}
		}
	}
	// What was given by hand beside the table is taken away.
	if _, err := conn.Exec(t.Context(), `GRANT DELETE ON certificates TO `+SignerUser); err != nil {
		t.Fatal(err)
	}
	done, err := ApplyGrants(t.Context(), owner)
	if err != nil || len(done) != 1 || !strings.HasPrefix(done[0], "REVOKE DELETE") {
		t.Errorf("a right too many: %v, %v", done, err)
	}
}

// TestNobodyChangesWhatWasIssued holds the promise of the table itself.
func TestNobodyChangesWhatWasIssued(t *testing.T) {
	for user := range grants {
		for _, table := range []string{"certificates", "revocations", "audit", "audit_heads"} {
			for _, r := range []right{change, remove} {
				if wanted(user, table, r) {
					t.Errorf("%s may %s on %s", user, r, table)
				}
			}
		}
	}
}
