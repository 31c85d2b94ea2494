package deploytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/ocsp"

	"github.com/certmill/certmill/deploy/secrets"
)

// rotation changes every secret as docs/operations.md says, while callers ask for
// certificates and for OCSP answers: none of them is left without, and what was before
// the rotation is worth nothing after it.
func rotation(t *testing.T, s *Stack) {
	long(t)
	before := filepath.Join(t.TempDir(), "before")
	if err := os.CopyFS(before, os.DirFS(s.Secrets())); err != nil {
		t.Fatal(err)
	}
	for server, err := range tryOld(t, s, before) {
		if err != nil {
			t.Fatalf("%s refuses the secrets in use: %v", server, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	load := newLoad(t, s)
	for worker := range 2 {
		running.Go(func() { load.run(ctx, worker+100) }) // keys that no other test has used
	}
	asking := newAsking(t, s)
	running.Go(func() { asking.run(ctx) })
	for _, step := range secrets.Steps {
		out, err := s.Run("gateway-1", "deploy", "secrets", "rotate", string(step), "--dir", s.Secrets(), "-o", "json")
		var report secrets.Report
		if jerr := json.Unmarshal([]byte(out), &report); err != nil || jerr != nil || len(report.Written) < 10 {
			t.Fatalf("%s: %v, %v\n%s", step, err, jerr, out)
		}
		bring(t, s, load, string(step))
	}
	stop()
	running.Wait()
	load.check(t)
	asking.check(t)
	for server, err := range tryOld(t, s, before) {
		if err == nil {
			t.Errorf("%s takes the secrets of before the rotation", server)
		}
	}
}

// bring restarts and reloads the parts after a step: servers that can read their files
// anew do, the others start again, one of each pair at a time.
func bring(t *testing.T, s *Stack, load *load, step string) {
	t.Helper()
	for _, name := range []string{"nats-1", "nats-2", "nats-3"} {
		if err := s.Process(name).Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ledger.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, together := range [][]string{{"redis-2"}, {"redis-1"}, {"signer-1", "gateway-1", "presigner", "responder-1"}, {"signer-2", "gateway-2", "responder-2"}} {
		issued := load.count()
		if err := s.Restart(together...); err != nil {
			t.Errorf("%s, %s: %v", step, together, err)
		}
		load.waitBeyond(t, issued+2, fmt.Sprintf("after %s, with %s restarted", step, together))
	}
}

// tryOld connects to each server with what a folder of secrets holds, and returns what
// each says.
func tryOld(t *testing.T, s *Stack, folder string) map[string]error {
	in := func(part, name string) string { return filepath.Join(folder, part, name) }
	// Today's roots: it is the servers that must refuse, not this client.
	config := func(part string) *tls.Config {
		pair, err := tls.LoadX509KeyPair(in(part, "tls.pem"), in(part, "tls.key"))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(secret(t, s, part, "ca.pem")))
		return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	nkey, err := nats.NkeyOptionFromSeed(in("gateway", "nats.nk"))
	if err != nil {
		t.Fatal(err)
	}
	conn, errNATS := nats.Connect("tls://"+s.Address("nats-1", 4222), nkey, nats.Secure(config("gateway")))
	if errNATS == nil {
		conn.Close()
	}
	// The same user with a certificate of today: its key alone must be refused.
	conn, errKey := nats.Connect("tls://"+s.Address("nats-1", 4222), nkey, nats.Secure(clientTLS(t, s, "gateway")))
	if errKey == nil {
		conn.Close()
	}
	password, err := os.ReadFile(in("presigner", "redis.password"))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Addr: s.Address("redis-1", 6379), Username: "presigner", Password: strings.TrimSpace(string(password)), TLSConfig: clientTLS(t, s, "presigner"), MaxRetries: -1})
	errRedis := client.Ping(t.Context()).Err()
	_ = client.Close()
	url := s.LedgerURL("certmill_gateway", "gateway")
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	serverName := cfg.TLSConfig.ServerName
	cfg.TLSConfig = config("gateway")
	cfg.TLSConfig.ServerName = serverName
	book, errLedger := pgx.ConnectConfig(t.Context(), cfg)
	if errLedger == nil {
		_ = book.Close(context.WithoutCancel(t.Context()))
	}
	return map[string]error{"NATS": errNATS, "NATS, of an nkey alone,": errKey, "Redis": errRedis, "the ledger": errLedger}
}

// asking is a relying party that asks the responders in turn, as one behind a balancer.
type asking struct {
	s         *Stack
	request   []byte
	issuer    *x509.Certificate
	answered  int
	twice     int // questions that the first responder did not answer
	forgotten []error
}

func newAsking(t *testing.T, s *Stack) *asking {
	t.Helper()
	folder := t.TempDir()
	leafFile := filepath.Join(folder, "asked.pem")
	if out, err := s.Run("gateway-1", append([]string{"issue", "--profile", "server", "--dns", "asked.test", "--out", leafFile, "--key-out", filepath.Join(folder, "asked.key")}, s.Client("gateway-1")...)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	leaf, issuer := readCertificate(t, leafFile), readCertificate(t, filepath.Join(s.Public(), "issuing.pem"))
	for _, responder := range []string{"responder-1", "responder-2"} {
		waitStatus(t, s, responder, leaf, issuer, ocsp.Good)
	}
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &asking{s: s, request: request, issuer: issuer}
}

func (a *asking) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		if err := a.ask(n); err != nil {
			a.forgotten = append(a.forgotten, err)
		} else {
			a.answered++
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ask goes from responder to responder until one says good.
func (a *asking) ask(first int) error {
	var last error
	for try, deadline := 0, time.Now().Add(callWithin); time.Now().Before(deadline); try++ {
		status, err := askOCSP(a.s.Address([]string{"responder-1", "responder-2"}[(first+try)%2], 8080), a.request, a.issuer)
		if err == nil && status == ocsp.Good {
			return nil
		}
		if last = err; err == nil {
			return fmt.Errorf("a good certificate is answered with %d", status)
		}
		if try == 0 {
			a.twice++
		}
		time.Sleep(10 * time.Millisecond)
	}
	return last
}

func (a *asking) check(t *testing.T) {
	t.Helper()
	for _, err := range a.forgotten {
		t.Errorf("OCSP: %v", err)
	}
	if a.answered < 20 {
		t.Errorf("only %d OCSP answers were asked for", a.answered)
	}
	t.Logf("%d OCSP answers, %d of them by the second responder asked", a.answered, a.twice)
}
