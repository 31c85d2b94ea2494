package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/problem"
)

// The ledger's users, one for each role. The owner has the schema; it migrates,
// maintains and performs ceremonies. `certmill dev` has none of them.
const (
	OwnerUser     = "certmill_owner"
	GatewayUser   = "certmill_gateway"
	SignerUser    = "certmill_signer"
	PresignerUser = "certmill_presigner"
	ViewerUser    = "certmill_viewer" // reads everything: dashboards, status, auditors
)

// right is what a user may do to a table.
type right string

const (
	read   right = "SELECT"
	add    right = "INSERT"
	change right = "UPDATE"
	remove right = "DELETE"
)

// grants says what each user may do to which tables, and is all that it may. Nobody
// changes or deletes a certificate, a revocation or an audit entry.
var grants = map[string]map[string][]right{
	GatewayUser: {
		"certificates": {read}, "certificate_names": {read}, "ledger_state": {read},
		// An order that fails keeps its request key from getting a certificate.
		"requests": {read, add, change},
		"issuers":  {read}, "signer_epochs": {read}, "goose_db_version": {read},
		"revocations": {read, add},
		"orders":      {read, add, change},
		// A token counts its uses, and ends early when an operator deletes it.
		"enrollment_tokens": {read, add, change, remove}, "token_uses": {read, add},
		"audit": {read, add}, "audit_head": {read, change},
		// An operator may take back what he has pulled forward.
		"early_renewals": {read, add, remove},
		// The status of the service tells of CRLs.
		"crl_sets": {read}, "crls": {read},
		// The maintenance, which is the owner, tells of itself.
		"role_reports": {read},
	},
	SignerUser: {
		"certificates": {read, add}, "certificate_names": {read, add}, "ledger_state": {read},
		// A request key whose time is over is given to the next certificate.
		"requests":      {read, add, change},
		"signer_epochs": {read, add, change}, "orders": {read, change},
		"issuers": {read}, "revocations": {read}, "goose_db_version": {read},
		// The pieces of a CRL go when a later one stands; they can be made again.
		"crl_sets": {read, add}, "crls": {read, add, change}, "crl_chunks": {read, add, change, remove},
		"signature_strays": {read, add}, "ocsp_signers": {read, add}, "signer_drains": {read},
		// It walks the audit chain before it signs the chain's head.
		"audit": {read}, "audit_head": {read}, "audit_heads": {read, add},
	},
	PresignerUser: {
		"certificates": {read}, "revocations": {read}, "issuers": {read}, "ocsp_signers": {read}, "signer_epochs": {read},
		"crl_sets": {read}, "crls": {read}, "crl_chunks": {read}, "ledger_state": {read}, "goose_db_version": {read},
	},
	ViewerUser: {everyTable: {read}},
}

// everyTable stands for all tables of the schema.
const everyTable = "*"

// wanted returns whether a user shall have a right to a table.
func wanted(user, table string, r right) bool {
	return slices.Contains(grants[user][table], r) || slices.Contains(grants[user][everyTable], r)
}

// sequences are those that a user needs to add rows, where the dialect has sequences
// of their own (CockroachDB).
var sequences = map[string][]string{SignerUser: {"signer_epoch_ids", "crl_set_ids", "ocsp_signer_ids"}}

// CreateUsers makes the ledger's users where they are missing and gives the database
// to the owner. cfg must be an administrator's: root of CockroachDB, a superuser of
// PostgreSQL. The users have no password: they prove themselves by a client
// certificate with their name (sslcert in ledger.url).
func CreateUsers(ctx context.Context, cfg config.Ledger) (made []string, err error) {
	err = onConnection(ctx, cfg, func(conn *pgx.Conn, d dialect) error {
		have, err := users(ctx, conn)
		if err != nil {
			return err
		}
		for _, user := range append([]string{OwnerUser}, slices.Sorted(maps.Keys(grants))...) {
			if slices.Contains(have, user) {
				continue
			}
			// CREATE ROLE has no IF NOT EXISTS on PostgreSQL.
			if _, err := conn.Exec(ctx, "CREATE ROLE "+name(user)+" LOGIN"); err != nil {
				return fmt.Errorf("making the user %s: %w", user, err)
			}
			made = append(made, user)
		}
		var database string
		if err := conn.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
			return err
		}
		statements := []string{
			"ALTER DATABASE " + name(database) + " OWNER TO " + name(OwnerUser),
			"REVOKE ALL ON DATABASE " + name(database) + " FROM PUBLIC",
			"REVOKE CREATE ON SCHEMA public FROM PUBLIC",
			"GRANT CREATE ON SCHEMA public TO " + name(OwnerUser),
		}
		for user := range grants {
			statements = append(statements, "GRANT CONNECT ON DATABASE "+name(database)+" TO "+name(user))
		}
		for _, s := range statements {
			if _, err := conn.Exec(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	})
	return made, err
}

// ApplyGrants brings the rights of the ledger's users to what this program's schema
// asks, and returns the statements that this took: none the second time. Rights are
// added before others are taken away, so that programs at work notice nothing. Users
// that do not exist are left out. Migrate does it as its last step.
func ApplyGrants(ctx context.Context, cfg config.Ledger) (done []string, err error) {
	err = onConnection(ctx, cfg, func(conn *pgx.Conn, d dialect) error {
		have, err := users(ctx, conn)
		if err != nil {
			return err
		}
		for _, user := range slices.Sorted(maps.Keys(grants)) {
			if !slices.Contains(have, user) {
				continue
			}
			statements, err := grantStatements(ctx, conn, d, user)
			if err != nil {
				return err
			}
			for _, s := range statements {
				if _, err := conn.Exec(ctx, s); err != nil {
					return fmt.Errorf("%s: %w", s, err)
				}
				done = append(done, s)
			}
		}
		return nil
	})
	return done, err
}

// grantStatements returns what makes a user's rights what they should be.
func grantStatements(ctx context.Context, conn *pgx.Conn, d dialect, user string) ([]string, error) {
	have, err := rightsOf(ctx, conn, user)
	if err != nil {
		return nil, err
	}
	tables, err := tablesOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	var give, take []string
	for _, table := range tables {
		for _, r := range []right{read, add, change, remove} {
			want, held := wanted(user, table, r), have[table][r]
			switch {
			case want && !held:
				give = append(give, fmt.Sprintf("GRANT %s ON TABLE %s TO %s", r, name(table), name(user)))
			case held && !want:
				take = append(take, fmt.Sprintf("REVOKE %s ON TABLE %s FROM %s", r, name(table), name(user)))
			}
		}
	}
	if d == cockroach {
		for _, s := range sequences[user] {
			var held bool
			if err := conn.QueryRow(ctx, `SELECT has_sequence_privilege($1, $2, 'USAGE')`, user, s).Scan(&held); err != nil {
				return nil, fmt.Errorf("reading the rights of %s to %s: %w", user, s, err)
			}
			if held {
				continue
			}
			give = append(give, fmt.Sprintf("GRANT USAGE, SELECT ON SEQUENCE %s TO %s", name(s), name(user)))
		}
	}
	return append(give, take...), nil
}

// tablesOf returns the tables of the schema; partitions go with their parents.
func tablesOf(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1`)
	if err != nil {
		return nil, fmt.Errorf("reading the ledger's tables: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the ledger's tables: %w", err)
	}
	return names, nil
}

// rightsOf returns the rights on tables that were granted to a user.
func rightsOf(ctx context.Context, conn *pgx.Conn, user string) (map[string]map[right]bool, error) {
	rows, err := conn.Query(ctx, `SELECT table_name::text, privilege_type::text FROM information_schema.table_privileges
		WHERE table_schema = 'public' AND grantee = $1`, user)
	if err != nil {
		return nil, fmt.Errorf("reading the rights of %s: %w", user, err)
	}
	have := map[string]map[right]bool{}
	var table, privilege string
	_, err = pgx.ForEachRow(rows, []any{&table, &privilege}, func() error {
		if have[table] == nil {
			have[table] = map[right]bool{}
		}
		have[table][right(strings.ToUpper(privilege))] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the rights of %s: %w", user, err)
	}
	return have, nil
}

// users returns the names of all users of the server.
func users(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT rolname::text FROM pg_catalog.pg_roles`)
	if err != nil {
		return nil, fmt.Errorf("reading the database's users: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the database's users: %w", err)
	}
	return names, nil
}

// onConnection works with one connection that is closed after it.
func onConnection(ctx context.Context, cfg config.Ledger, work func(*pgx.Conn, dialect) error) (err error) {
	pc, err := poolConfig(cfg)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, pc.ConnConfig)
	if err != nil {
		return problem.Down("ledger", time.Second, err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	d, err := dialectOf(ctx, conn)
	if err != nil {
		return problem.Down("ledger", time.Second, err)
	}
	return work(conn, d)
}

func name(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }
