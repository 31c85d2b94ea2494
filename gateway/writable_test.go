package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

// readOnly sets the world's database read-only, or writable again, for the sessions that
// come; those that are there end, as they do when another server takes over.
func readOnly(t *testing.T, url, setting string) {
	t.Helper()
	conn := must(pgx.Connect(t.Context(), url))(t)
	defer func() { must0(t, conn.Close(context.WithoutCancel(t.Context()))) }()
	for _, sql := range []string{
		`SET default_transaction_read_only = off`, // of this session
		`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = ` + setting + `', current_database()); END $$`,
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func TestALedgerThatTakesNoWritesIsToldAtOnce(t *testing.T) {
	url := ""
	w := newWorld(t, func(c *Config, _ *Deps) { url = c.Ledger.URL })
	alice := w.idp.token(t, "alice")
	ask := func(id, path string) httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: path, contentType: pemType, token: alice, header: http.Header{"Idempotency-Key": {id}}, body: armour(newCSR(t, nil, id+".example.test"))})
	}
	if r := ask("before", "/v1/certificates"); r.status != http.StatusOK {
		t.Fatalf("before: %d %s", r.status, r.body)
	}
	readOnly(t, url, "on")
	eventually(t, "the gateway is not ready", func() bool { return w.gateway.Ready() != nil })
	if err := w.gateway.Ready(); !strings.Contains(err.Error(), "takes no writes") {
		t.Errorf("it is not ready since %v", err)
	}
	asked := w.signer.count()
	for _, path := range []string{"/v1/certificates", "/v1/orders"} {
		r := ask("meanwhile", path)
		r.expect(t, http.StatusServiceUnavailable, "", ledger.ReadOnly)
		if r.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", path)
		}
	}
	if n := w.signer.count(); n != asked {
		t.Errorf("signers were asked %d times for what cannot be stored", n-asked)
	}
	if r := w.do(t, httpCall{method: http.MethodGet, path: "/v1/trust-bundle"}); r.status != http.StatusOK {
		t.Errorf("what needs no write is answered with %d", r.status)
	}
	readOnly(t, url, "off")
	eventually(t, "the gateway is ready again", func() bool { return w.gateway.Ready() == nil })
	eventually(t, "it issues", func() bool { return ask("meanwhile", "/v1/certificates").status == http.StatusOK })
}

// selfReport is a ledger's word on itself.
type selfReport struct {
	LedgerHealth
	err error
}

func (h *selfReport) Ping(context.Context) error { return h.err }

// TestADiskThatIsFullShowsInWrites: the ledger says of itself that all is well.
func TestADiskThatIsFullShowsInWrites(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	h := &selfReport{}
	w := newWritable(h, slog.New(slog.DiscardHandler), time.Second, func() time.Time { return now })
	full := &problem.Error{Kind: problem.Unavailable, Rule: ledger.ReadOnly}
	ask := func(want bool, when string) {
		t.Helper()
		w.learn(h.err)
		if taken := w.check() == nil; taken != want {
			t.Errorf("%s: writes are taken: %v", when, taken)
		}
	}
	w.note(full)
	ask(true, "after one refusal")
	w.note(nil)
	w.note(full)
	ask(true, "after refusals with a success between")
	w.note(errors.New("another failure"))
	w.note(full)
	ask(false, "after two in a row")
	now = now.Add(writableHold / 2)
	ask(false, "soon after")
	now = now.Add(writableHold)
	ask(true, "tried again")
	for range writableRow {
		w.note(full)
	}
	ask(false, "refused again")
	now = now.Add(writableHold + time.Millisecond)
	ask(false, "left alone for longer")
	now = now.Add(2 * writableHold)
	ask(true, "tried again")
	w.note(nil)
	h.err = full
	ask(false, "by its own word")
	h.err = problem.Down("ledger", time.Second, nil)
	ask(false, "then out of reach")
	h.err = nil
	ask(true, "by its own word again")
	h.err = problem.Down("ledger", time.Second, nil)
	ask(true, "out of reach: signers may reach it")
}
