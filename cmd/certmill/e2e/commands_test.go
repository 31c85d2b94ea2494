package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/testenv"
)

// TestAFailedStepIsNamed gives the start a database that is not there.
func TestAFailedStepIsNamed(t *testing.T) {
	requirePrograms(t)
	out, err := exec.Command(binary, "dev", "--dir", t.TempDir(), "--demo", "--once", "--ledger-url", "postgres://127.0.0.1:1/none").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "certmill: migrating the ledger: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestOthersVerifyTheChain has every kind of key certified and the chain verified by
// openssl and gnutls.
func TestOthersVerifyTheChain(t *testing.T) {
	s := dev(t)
	for _, key := range []string{"ecdsa-p256", "ecdsa-p384", "rsa-2048", "ed25519"} {
		t.Run(key, func(t *testing.T) {
			dir := t.TempDir()
			leaf := filepath.Join(dir, "leaf.pem")
			out, err := s.run(t, "issue", "--profile", "server", "--dns", "tools.test", "--ip", "127.0.0.1", "--key-type", key, "--out", leaf, "--key-out", filepath.Join(dir, "leaf.key"))
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if out := tool(t, "openssl", "verify", "-x509_strict", "-CAfile", s.file("root.pem"), "-untrusted", leaf, "-verify_hostname", "tools.test", leaf); !strings.Contains(out, ": OK") {
				t.Error(out)
			}
			testenv.Program(t, "certtool", "gnutls-bin")
			if out := tool(t, "certtool", "--verify", "--verify-hostname", "tools.test", "--load-ca-certificate", s.file("root.pem"), "--infile", leaf); !strings.Contains(out, "Chain verification output: Verified") {
				t.Error(out)
			}
		})
	}
}

// TestMistakesEndWithTheirExitCode holds the exit codes that `certmill --help` promises,
// and that the message says what to do.
func TestMistakesEndWithTheirExitCode(t *testing.T) {
	s := dev(t)
	dir := t.TempDir()
	broken, config := filepath.Join(dir, "broken.csr"), filepath.Join(dir, "gateway.yaml")
	writeFile(t, broken, []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	writeFile(t, config, []byte("listen: 127.0.0.1:1\nlimts:\n  max_batch: 3\n"))
	const unknown = "40230000000100000000000000000000"
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no name":             {[]string{"issue"}, 2, "Give --dns"},
		"an unknown word":     {[]string{"isue"}, 2, "isue"},
		"an unknown form":     {[]string{"version", "-o", "xml"}, 2, "json"},
		"a missing flag":      {[]string{"token", "create", "--name", "a.test"}, 2, "profile"},
		"flags that clash":    {[]string{"issue", "--csr", broken, "--dns", "a.test"}, 2, "dns"},
		"an unknown flag":     {[]string{"issue", "--dnss", "x"}, 2, "--help"},
		"a broken CSR":        {[]string{"issue", "--csr", broken, "--profile", "server"}, 3, "csr"},
		"no such profile":     {[]string{"issue", "--dns", "a.test", "--profile", "none"}, 3, "none"},
		"a name not allowed":  {[]string{"issue", "--dns", "example.com", "--profile", "server"}, 4, "example.com"},
		"an unknown serial":   {[]string{"inspect", unknown}, 5, unknown},
		"no gateway there":    {[]string{"issue", "--dns", "a.test", "--gateway", "127.0.0.1:1", "--timeout", "1s"}, 7, "certmill dev"},
		"a wrong key":         {[]string{"config", "check", "--role", "gateway", "--config", config}, 2, `gateway.yaml:2: unknown key "limts"; did you mean "limits"?`},
		"a wrong reason":      {[]string{"revoke", unknown, "--reason", "certificateHold"}, 2, "superseded"},
		"an existing key":     {[]string{"issue", "--dns", "a.test", "--profile", "server", "--key-out", broken}, 2, "--force"},
		"no such signer":      {[]string{"signer", "drain", "nosuch", "--config", s.file("config/maintenance.yaml")}, 5, "signer-1, signer-2"},
		"one not drained":     {[]string{"signer", "undrain", "nosuch", "--config", s.file("config/maintenance.yaml")}, 0, "nosuch was not drained"},
		"another role's file": {[]string{"ledger", "status", "--config", s.file("config/signer-1.yaml")}, 2, "config/maintenance.yaml"},
		"no profile there":    {[]string{"ca", "issue", "--config", s.file("config/signer-1.yaml"), "--dns", "a.test"}, 2, "--profile is needed"},
		"no tokens' folder":   {[]string{"ca", "issue", "--config", s.file("config/signer-1.yaml"), "--profile", "server", "--dns", "a.test"}, 1, "SOFTHSM2_CONF"},
		"a context not there": {[]string{"list", "--context", filepath.Join(dir, "none.yaml")}, 2, "none.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := s.run(t, c.args...)
			if code := exitCode(err); code != c.code || !strings.Contains(out, c.says) {
				t.Errorf("exit code %d, want %d with %q:\n%s", code, c.code, c.says, out)
			}
		})
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TestATokenEnrolsWhatItIsForAndNoMore uses an enrollment token in place of a
// client certificate.
func TestATokenEnrolsWhatItIsForAndNoMore(t *testing.T) {
	s := dev(t)
	var made struct{ Secret string }
	s.runJSON(t, &made, "token", "create", "--profile", "server", "--name", "enrol.test")
	dir := t.TempDir()
	secret, where := filepath.Join(dir, "token"), filepath.Join(dir, "cli.yaml")
	writeFile(t, secret, []byte(made.Secret+"\n"))
	writeFile(t, where, []byte("gateway: "+s.setting(t, "gateway", "grpc_listen")+"\nserver_name: localhost\nca_file: "+s.file("root.pem")+"\ntoken_file: token\n"))
	for _, step := range []struct {
		name string
		code int
	}{{"other.test", 4}, {"enrol.test", 0}, {"enrol.test", 4}} {
		out, err := s.run(t, "issue", "--context", where, "--profile", "server", "--dns", step.name, "--out", "-")
		if code := exitCode(err); code != step.code {
			t.Errorf("%s: exit code %d, want %d\n%s", step.name, code, step.code, out)
		}
	}
}

func TestAnOrderEndsInACertificate(t *testing.T) {
	s := dev(t)
	csr := filepath.Join(t.TempDir(), "order.csr")
	writeFile(t, csr, newCSR(t, "order.test"))
	var order struct{ ID string }
	s.runJSON(t, &order, "order", "submit", "--profile", "server", "--csr", csr)
	out, err := s.run(t, "order", "get", order.ID, "--wait", "20s")
	if err != nil || !strings.HasPrefix(out, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestALedgerThatDiesComesBack kills PostgreSQL's postmaster: the service is short of
// its ledger for a while, then issues again.
func TestALedgerThatDiesComesBack(t *testing.T) {
	s := dev(t)
	found, err := filepath.Glob(filepath.Join(s.dir, "p*", "data", "postmaster.pid"))
	if more, _ := filepath.Glob(filepath.Join(s.dir, "postgresql", "postmaster.pid")); err == nil {
		found = append(found, more...)
	}
	if len(found) != 1 {
		t.Fatalf("no PostgreSQL is found in %s: %v", s.dir, found)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	out, err := s.run(t, "issue", "--profile", "server", "--dns", "ledger.test", "--out", "-", "--key-out", filepath.Join(t.TempDir(), "k"), "--timeout", "50s")
	if err != nil {
		t.Errorf("after the ledger's death: %v\n%s", err, out)
	}
	eventually(t, 30*time.Second, func() error { return s.ready(t, "gateway") })
}

// TestOCSPVerifyFindsWhatRedisHasLost empties Redis under a running service: verify
// says so, and says that all is well again once the presigner has mended it.
func TestOCSPVerifyFindsWhatRedisHasLost(t *testing.T) {
	s := dev(t)
	var issued struct{ Serial string }
	s.runJSON(t, &issued, "issue", "--profile", "server", "--dns", "verify.test",
		"--out", filepath.Join(t.TempDir(), "v.pem"), "--key-out", filepath.Join(t.TempDir(), "v.key"))
	type report struct {
		Certificates, Records, Differences int
		Listed                             []struct{ Serial, Kind, Detail string }
	}
	// It exits with 1 where something differs, and prints the report all the same.
	verify := func() (r report) {
		out, err := s.printed(t, "ocsp", "verify", "-o", "json", "--grace", "0s", "--config", s.file("config/presigner.yaml"))
		if jerr := json.Unmarshal([]byte(out), &r); jerr != nil || (err != nil) != (r.Differences > 0) {
			t.Fatalf("ocsp verify: %v, %v\n%s", err, jerr, out)
		}
		return r
	}
	// Certificates of other tests, whose signers were killed, may wait for their sweep,
	// so here it is this one's that counts.
	eventually(t, 20*time.Second, func() error {
		for _, d := range verify().Listed {
			if d.Serial == issued.Serial {
				return fmt.Errorf("%+v", d)
			}
		}
		return nil
	})
	password, err := os.ReadFile(s.file("redis.password"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Redis struct{ Addresses []string }
	}
	text, err := os.ReadFile(s.file("config/presigner.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &config); err != nil || len(config.Redis.Addresses) != 1 {
		t.Fatalf("the presigner's Redis: %v in %s", err, text)
	}
	db := redis.NewClient(&redis.Options{Addr: config.Redis.Addresses[0], Password: strings.TrimSpace(string(password))})
	defer db.Close()
	presigner := s.pid(t, "presigner")
	if err := syscall.Kill(presigner, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(presigner, syscall.SIGCONT) }() // also when it ends early
	err = db.FlushAll(t.Context()).Err()
	emptied := verify()
	if err := syscall.Kill(presigner, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if emptied.Records != 0 || emptied.Differences != emptied.Certificates || emptied.Certificates == 0 {
		t.Errorf("of an emptied Redis it says %d certificates, %d records, %d differences", emptied.Certificates, emptied.Records, emptied.Differences)
	}
	// The sweep that fills it again leaves nothing out, whoever's it is.
	eventually(t, 60*time.Second, func() error {
		if r := verify(); r.Differences > 0 {
			log, _ := os.ReadFile(s.file("log/presigner.log"))
			return fmt.Errorf("%d certificates, %d records, %d differences: %+v\n%s", r.Certificates, r.Records, r.Differences, r.Listed[0], log)
		}
		return nil
	})
}

// TestARefusalWithForceDestroysNoKey asks again for a name that has key and
// certificate, first in vain and then with success.
func TestARefusalWithForceDestroysNoKey(t *testing.T) {
	s := dev(t)
	key, cert := filepath.Join(t.TempDir(), "f.key"), filepath.Join(t.TempDir(), "f.pem")
	issue := func(profile string) (string, error) {
		return s.run(t, "issue", "--profile", profile, "--dns", "force.test", "--out", cert, "--key-out", key, "--force")
	}
	read := func() string {
		text, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(key + ".*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		return string(text)
	}
	if out, err := issue("server"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first := read()
	if out, err := issue("no-such-profile"); err == nil {
		t.Fatalf("an unknown profile was taken: %s", out)
	}
	if read() != first {
		t.Error("a refusal has changed the key")
	}
	if out, err := issue("server"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if read() == first {
		t.Error("the new certificate has the old key")
	}
}
