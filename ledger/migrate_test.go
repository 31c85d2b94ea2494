package ledger

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pressly/goose/v3"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger/migrations"
)

// TestASchemaInUseIsMigratedInTwoSteps begins with the schema before hashed keys, full of
// rows, migrates it while a program of then goes on to commit, and finishes it.
func TestASchemaInUseIsMigratedInTwoSteps(t *testing.T) {
	ctx := t.Context()
	cfg := config.Ledger{URL: testenv.PostgreSQL(t), MaxConnections: 4}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(withProvider(ctx, cfg, func(p *goose.Provider, _ fs.FS) error {
		_, err := p.UpTo(ctx, 9)
		return err
	}))
	conn, err := pgx.Connect(ctx, cfg.URL)
	ok(err)
	defer conn.Close(context.WithoutCancel(ctx))
	now := time.Now().UTC().Truncate(time.Second)
	today, err := serial.BucketOf(now, now.Add(time.Hour))
	ok(err)
	own := partitionName("certificates", today)
	_, err = conn.Exec(ctx, fmt.Sprintf(`CREATE TABLE %[1]s PARTITION OF certificates FOR VALUES FROM ('\x%[2]s') TO ('\x%[3]s');
		-- what a run has left that was killed while it built
		CREATE INDEX %[1]s_name_hash_part ON %[1]s (name)`, own, today.First(), (today+1).First()))
	ok(err)
	old := oldProgram{conn: conn, now: now}
	for _, lifetime := range []time.Duration{time.Hour, 300 * 24 * time.Hour} { // the second goes to the rest
		for range 50 {
			ok(old.commit(ctx, lifetime))
		}
	}

	// Step 10, while the old program goes on.
	migrated := make(chan error, 1)
	go func() { migrated <- Migrate(ctx, cfg) }()
	for done := false; !done; {
		select {
		case err := <-migrated:
			ok(err)
			done = true
		default:
			ok(old.commit(ctx, time.Hour))
		}
	}
	ok(old.commit(ctx, time.Hour))
	var invalid, hashed int
	ok(conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE NOT indisvalid), count(*) FILTER (WHERE pg_get_indexdef(indexrelid) LIKE '%hashtext(substr(name%')
		FROM pg_index WHERE indrelid IN ('certificates'::regclass, $1::text::regclass, 'certificates_rest'::regclass)`, own).Scan(&invalid, &hashed))
	if invalid != 0 || hashed != 3 {
		t.Errorf("%d indexes are not valid, %d by name are there of 3", invalid, hashed)
	}
	steps, err := MigrationStatus(ctx, cfg)
	ok(err)
	for _, s := range steps {
		if waits := s.Version > migrations.Version; s.Finish != waits || s.Applied.IsZero() != waits {
			t.Errorf("after Migrate step %d has finish %v, applied %v", s.Version, s.Finish, s.Applied)
		}
	}

	// Programs of now, from before the second step and from after it.
	before, err := Open(ctx, cfg, Deps{})
	ok(err)
	defer before.Close()
	ok(FinishMigration(ctx, cfg))
	after, err := Open(ctx, cfg, Deps{})
	ok(err)
	defer after.Close()
	if before.short || !after.short {
		t.Errorf("rows are short before the second step: %v, after it: %v", before.short, after.short)
	}
	for _, l := range []*Ledger{before, after} {
		number := old.serial(time.Hour)
		r := l.CommitBatch(ctx, []Entry{{RequestKey: NewRequestKey(number.String()), ReuseUntil: now.Add(time.Hour), Certificate: Certificate{
			Serial: number, Issuer: 1, Names: []string{"uri:" + old.id()}, Caller: "mtls:" + old.id(), NotBefore: now, NotAfter: now.Add(time.Hour), DER: []byte{1}, SPKI: [32]byte{1},
		}}})
		ok(r[0].Err)
		old.rows++
	}
	for _, l := range []*Ledger{before, after} {
		for what, f := range map[string]Filter{"caller": {Caller: "mtls:" + old.id()}, "name": {Name: "uri:" + old.id()}} {
			found := 0
			for token := ""; ; {
				page, next, err := l.List(ctx, f, token, MaxPage)
				ok(err)
				for _, c := range page {
					if c.Caller != "mtls:"+old.id() || len(c.Names) != 1 {
						t.Fatalf("a row is read as %+v", c.Certificate)
					}
				}
				found += len(page)
				if token = next; token == "" {
					break
				}
			}
			if found != old.rows {
				t.Errorf("by %s %d certificates are found of %d", what, found, old.rows)
			}
		}
	}
	var short, indexes int
	ok(conn.QueryRow(ctx, `SELECT count(*) FROM certificates WHERE caller = 'mtls:'`).Scan(&short))
	ok(conn.QueryRow(ctx, `SELECT count(*) FROM pg_indexes WHERE indexname IN ('certificates_name', 'certificates_caller')`).Scan(&indexes))
	if short != 1 || indexes != 0 {
		t.Errorf("%d rows are short, %d of the indexes of before are left; want 1 and none", short, indexes)
	}
}

// oldProgram writes rows as programs of schema 9 do.
type oldProgram struct {
	conn *pgx.Conn
	now  time.Time
	rows int
}

func (o *oldProgram) id() string { return "spiffe://example.test/old" }

func (o *oldProgram) serial(lifetime time.Duration) serial.Number {
	n, err := serial.New(strings.NewReader(fmt.Sprintf("%010d", o.rows)), 1, o.now, o.now.Add(lifetime))
	if err != nil {
		panic(err)
	}
	return n
}

func (o *oldProgram) commit(ctx context.Context, lifetime time.Duration) error {
	number := o.serial(lifetime)
	_, err := o.conn.Exec(ctx, `INSERT INTO certificates (serial, not_before, not_after, issuer, revocation, spki,
			profile, profile_version, name, caller, owner, service, environment, der)
		VALUES ($1, $2, $3, 1, 0, sha256('key'), 'workload', '0123456789ab', $4, $5, '', '', '', '\x01')`,
		number[:], o.now, o.now.Add(lifetime), "uri:"+o.id(), "mtls:"+o.id())
	if err == nil {
		o.rows++
	}
	return err
}
