package deploytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
)

// clientTLS returns how a part proves itself.
func clientTLS(t *testing.T, s *Stack, part string) *tls.Config {
	t.Helper()
	folder := filepath.Join(s.Secrets(), part)
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "tls.pem"), filepath.Join(folder, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(secret(t, s, part, "ca.pem"))) {
		t.Fatal("no roots")
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

func secret(t *testing.T, s *Stack, part, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.Secrets(), part, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// natsRights tries every user of NATS with every subject of the others.
func natsRights(t *testing.T, s *Stack) {
	url := "tls://" + s.Address("nats-1", 4222)
	publish := map[string][]string{ // who may
		"certmill.sign.issuing.first":                                     {"gateway"},
		"certmill.reply.0000":                                             {"signer"},
		"certmill.event.issued.issuing":                                   {"signer"},
		"certmill.event.revoked.issuing":                                  {"gateway"},
		"$JS.API.STREAM.INFO.CERTMILL_SIGN":                               {"gateway", "signer", "viewer"},
		"$JS.API.STREAM.UPDATE.CERTMILL_SIGN":                             {"signer"},
		"$JS.API.STREAM.DELETE.CERTMILL_SIGN":                             nil,
		"$JS.API.STREAM.PURGE.CERTMILL_SIGN":                              nil,
		"$JS.API.STREAM.MSG.GET.CERTMILL_SIGN":                            nil,
		"$JS.API.STREAM.CREATE.ANOTHER":                                   nil,
		"$JS.API.CONSUMER.MSG.NEXT.CERTMILL_SIGN.sign-issuing-first":      {"signer"},
		"$JS.API.CONSUMER.CREATE.CERTMILL_SIGN.x.certmill.sign.issuing.>": {"signer"},
		"$JS.API.CONSUMER.DELETE.CERTMILL_SIGN.sign-issuing-first":        nil,
		"$JS.API.CONSUMER.MSG.NEXT.CERTMILL_EVENTS.presign-issued":        {"presigner"},
		"$JS.ACK.CERTMILL_SIGN.sign-issuing-first.1.1.1.1.0":              {"signer"},
		"certmill.presence.signer":                                        {"signer"},
		"certmill.presence.responder":                                     {"presigner"},
		"certmill.presence.presigner":                                     {"presigner"},
		"$SYS.REQ.SERVER.PING":                                            nil,
		"anything.else":                                                   nil,
	}
	subscribe := map[string][]string{
		"certmill.reply.*": {"gateway"}, "certmill.presence.*": {"gateway"}, "certmill.sign.>": nil, "certmill.event.>": nil,
		"_INBOX.>": nil, "$JS.>": nil, "$SYS.>": nil, ">": nil,
	}
	for _, role := range []string{"gateway", "signer", "presigner", "viewer"} {
		t.Run(role, func(t *testing.T) {
			c := natsUser(t, s, url, role)
			for subject, who := range publish {
				if refused := c.try(t, func() error { return c.conn.Publish(subject, nil) }); refused == slices.Contains(who, role) {
					t.Errorf("publishing on %s: refused %v", subject, refused)
				}
			}
			for subject, who := range subscribe {
				refused := c.try(t, func() error {
					sub, err := c.conn.SubscribeSync(subject)
					if err == nil {
						t.Cleanup(func() { _ = sub.Unsubscribe() })
					}
					return err
				})
				if refused == slices.Contains(who, role) {
					t.Errorf("subscribing to %s: refused %v", subject, refused)
				}
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		if _, err := nats.Connect(url, nats.Secure(clientTLS(t, s, "gateway"))); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("without an nkey: %v", err)
		}
		bare := clientTLS(t, s, "gateway")
		bare.Certificates = nil
		if _, err := nats.Connect(url, nats.Secure(bare)); err == nil {
			t.Error("without a client certificate a connection stands")
		}
	})
}

// natsConn is one user's connection.
type natsConn struct{ conn *nats.Conn }

func natsUser(t *testing.T, s *Stack, url, part string) *natsConn {
	t.Helper()
	nkey, err := nats.NkeyOptionFromSeed(filepath.Join(s.Secrets(), part, "nats.nk"))
	if err != nil {
		t.Fatal(err)
	}
	u := &natsConn{}
	u.conn, err = nats.Connect(url, nkey, nats.Secure(clientTLS(t, s, part)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.conn.Close)
	return u
}

// try reports whether the broker refused what do sends. The refusal comes before the
// answer to the ping, and each is an error of its own.
func (u *natsConn) try(t *testing.T, do func() error) bool {
	t.Helper()
	before := u.conn.LastError()
	if err := errors.Join(do(), u.conn.FlushTimeout(10*time.Second)); err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		t.Fatal(err)
	}
	after := u.conn.LastError()
	return after != before && errors.Is(after, nats.ErrPermissionViolation)
}

// redisRights tries every user of Redis with the commands of the others.
func redisRights(t *testing.T, s *Stack) {
	client := func(part, user, password string) *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: s.Address("redis-1", 6379), Username: user, Password: password, TLSConfig: clientTLS(t, s, part), MaxRetries: -1})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	const key = "certmill:ocsp:test"
	for _, c := range []struct {
		part, name string
		allowed    bool
		do         func(context.Context, *redis.Client) error
	}{
		{"presigner", "writes", true, func(ctx context.Context, c *redis.Client) error { return c.HSet(ctx, key, "f", "v").Err() }},
		{"presigner", "reads", true, func(ctx context.Context, c *redis.Client) error { return c.HGet(ctx, key, "f").Err() }},
		{"presigner", "writes elsewhere", false, func(ctx context.Context, c *redis.Client) error { return c.Set(ctx, "other", "v", 0).Err() }},
		{"presigner", "empties", false, func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() }},
		{"presigner", "configures", false, func(ctx context.Context, c *redis.Client) error { return c.ConfigSet(ctx, "maxmemory", "1").Err() }},
		{"presigner", "makes users", false, func(ctx context.Context, c *redis.Client) error { return c.Do(ctx, "ACL", "SETUSER", "x").Err() }},
		{"responder", "reads", true, func(ctx context.Context, c *redis.Client) error { return c.HGet(ctx, key, "f").Err() }},
		{"responder", "reads elsewhere", false, func(ctx context.Context, c *redis.Client) error { return c.Get(ctx, "other").Err() }},
		{"responder", "writes", false, func(ctx context.Context, c *redis.Client) error { return c.HSet(ctx, key, "f", "v").Err() }},
		{"responder", "says how it is", true, func(ctx context.Context, c *redis.Client) error {
			return c.HSet(ctx, "certmill:ocsp:presence", "test", "").Err()
		}},
		{"responder", "deletes what others say", false, func(ctx context.Context, c *redis.Client) error {
			return c.Del(ctx, "certmill:ocsp:presence").Err()
		}},
		{"responder", "deletes", false, func(ctx context.Context, c *redis.Client) error { return c.Del(ctx, key).Err() }},
		{"responder", "runs a script", false, func(ctx context.Context, c *redis.Client) error {
			return c.Eval(ctx, "return redis.call('DEL', KEYS[1])", []string{key}).Err()
		}},
		{"viewer", "reads an answer", false, func(ctx context.Context, c *redis.Client) error { return c.HGet(ctx, key, "f").Err() }},
		{"viewer", "asks how it is", true, func(ctx context.Context, c *redis.Client) error { return c.Info(ctx).Err() }},
	} {
		t.Run(c.part+" "+c.name, func(t *testing.T) {
			err := c.do(t.Context(), client(c.part, c.part, secret(t, s, c.part, "redis.password")))
			if refused := redis.HasErrorPrefix(err, "NOPERM"); refused == c.allowed || (c.allowed && err != nil) {
				t.Errorf("allowed %v: %v", c.allowed, err)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		if err := client("responder", "", "").Ping(t.Context()).Err(); !redis.HasErrorPrefix(err, "NOAUTH") {
			t.Errorf("without a user: %v", err)
		}
		if err := client("responder", "presigner", secret(t, s, "responder", "redis.password")).Ping(t.Context()).Err(); !redis.HasErrorPrefix(err, "WRONGPASS") {
			t.Errorf("with another's password: %v", err)
		}
	})
}

// insufficient is PostgreSQL's insufficient_privilege.
const insufficient = "42501"

// ledgerRights tries every user of the ledger beyond its rights.
func ledgerRights(t *testing.T, s *Stack) {
	for _, c := range []struct{ part, statement string }{
		{"gateway", "INSERT INTO certificates SELECT * FROM certificates"},
		{"gateway", "UPDATE certificates SET name = ''"},
		{"gateway", "DELETE FROM revocations"},
		{"gateway", "INSERT INTO issuers (name) VALUES ('mine')"},
		{"gateway", "CREATE TABLE mine (n int)"},
		{"signer", "DELETE FROM certificates"},
		{"signer", "DELETE FROM requests"},
		{"signer", "UPDATE certificates SET der = ''"},
		{"signer", "DELETE FROM signer_epochs"},
		{"signer", "TRUNCATE certificates"},
		{"signer", "INSERT INTO revocations SELECT * FROM revocations"},
		{"signer", "INSERT INTO issuers (name) VALUES ('mine')"},
		{"presigner", "INSERT INTO revocations SELECT * FROM revocations"},
		{"presigner", "UPDATE crls SET number = 0"},
		{"presigner", "SELECT * FROM enrollment_tokens"},
		{"viewer", "UPDATE orders SET state = 'failed'"},
	} {
		refused(t, s, c.part, c.statement)
	}
	for _, part := range []string{"gateway", "signer", "presigner", "viewer", "owner", "root"} {
		for _, statement := range []string{"UPDATE audit SET actor = ''", "DELETE FROM audit", "TRUNCATE audit"} {
			refused(t, s, part, statement)
		}
	}
	t.Run("who is not who he says", func(t *testing.T) {
		for what, url := range map[string]string{
			"another's certificate": s.LedgerURL("certmill_owner", "gateway"),
			"a broker's":            s.LedgerURL("certmill_signer", "nats"),
			"no certificate":        strings.Split(s.LedgerURL("certmill_signer", "signer"), "&sslcert")[0],
			"no TLS":                "postgres://certmill_signer@127.0.0.1:" + strconv.Itoa(s.ledger.Port()) + "/certmill?sslmode=disable",
		} {
			if conn, err := pgx.Connect(t.Context(), url); err == nil {
				_ = conn.Close(t.Context())
				t.Errorf("%s is enough to connect", what)
			}
		}
	})
}

func refused(t *testing.T, s *Stack, part, statement string) {
	t.Run(part+" "+statement, func(t *testing.T) {
		user := "certmill_" + part
		if part == "root" {
			user = part
		}
		conn, err := pgx.Connect(t.Context(), s.LedgerURL(user, part))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		_, err = conn.Exec(t.Context(), statement)
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != insufficient {
			t.Errorf("%v, want SQLSTATE %s", err, insufficient)
		}
	})
}

// noSecretInArguments looks for every secret in what any user of the machine can read.
func noSecretInArguments(t *testing.T, s *Stack) {
	var secrets []string
	for part, names := range map[string][]string{
		"gateway": {"nats.nk", "queue.key"}, "signer": {"nats.nk", "token.pin"}, "presigner": {"nats.nk", "redis.password"}, "responder": {"redis.password"},
	} {
		for _, name := range names {
			secrets = append(secrets, strings.Fields(secret(t, s, part, name))[0])
		}
	}
	for _, name := range s.started {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(s.Process(name).PID()) + "/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets {
			if strings.Contains(string(line), secret) || strings.Contains(s.Log(name), secret) {
				t.Errorf("%s shows a secret in its arguments or its log", name)
			}
		}
	}
}

// noRoleLacksARight looks through the roles' logs for what the servers refuse: work in
// the background fails there alone.
func noRoleLacksARight(t *testing.T, s *Stack) {
	for _, name := range s.started {
		if !strings.HasPrefix(s.file.Services[name].Image, "certmill") {
			continue
		}
		log, err := os.ReadFile(s.dir.Path("log", name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			for _, refusal := range []string{"SQLSTATE " + insufficient, "NOPERM", "Permissions Violation"} {
				if strings.Contains(line, refusal) {
					t.Errorf("%s: %s", name, line)
				}
			}
		}
	}
}
