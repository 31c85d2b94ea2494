package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

// parentEnv makes this test binary a parent that starts Redis, says so and waits to
// be killed.
const parentEnv = "CERTMILL_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentEnv); dir != "" {
		beParent(dir)
	}
	goleak.VerifyTestMain(m)
}

func beParent(path string) {
	d, err := OpenDir(path)
	if err == nil {
		var r *Redis
		if r, err = StartRedis(context.Background(), d, RedisOptions{Throwaway: true}); err == nil {
			fmt.Println(r.Addr())
			select {}
		}
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

// needs skips the test where a program is missing, and fails it in CI.
func needs(t *testing.T, err error) {
	t.Helper()
	var missing *MissingError
	if errors.As(err, &missing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// open makes a data directory that PostgreSQL's user can reach.
func open(t *testing.T) *Dir {
	t.Helper()
	path, err := os.MkdirTemp("", "certmill-local-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.RemoveAll(path), d.Close()); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestPostgreSQLGoesOnWithItsDataAndPort(t *testing.T) {
	ctx, d := t.Context(), open(t)
	// What an interrupted first start leaves behind.
	if err := os.MkdirAll(d.Path("pg", "data.new", "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := StartPostgreSQL(ctx, d, PostgreSQLOptions{})
	needs(t, err)
	for range 2 { // the second finds it there
		if err := first.CreateDatabase(ctx, "kept"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pgx.Connect(ctx, first.URL("kept")); err == nil {
		t.Error("PostgreSQL takes a connection without a password")
	}
	execute(t, first, "CREATE TABLE t AS SELECT 42 AS n")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	second, err := StartPostgreSQL(ctx, d, PostgreSQLOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if first.URL("kept") != second.URL("kept") {
		t.Errorf("the port moved: %s, then %s", first.URL("kept"), second.URL("kept"))
	}
	execute(t, second, "INSERT INTO t VALUES (43)")
}

func TestPostgreSQLHasItsLogFilesMadeAhead(t *testing.T) {
	d := open(t)
	// A start that was interrupted before it came to this.
	p, err := StartPostgreSQL(t.Context(), d, PostgreSQLOptions{})
	needs(t, err)
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"on first use", "after a restart"} {
		p, err := StartPostgreSQL(t.Context(), d, PostgreSQLOptions{WALAhead: 96 << 20})
		needs(t, err)
		conn, err := p.connect(t.Context(), "postgres")
		if err != nil {
			t.Fatal(err)
		}
		ahead, err := walFilesAhead(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		if ahead < 4 || ahead > 6 {
			t.Errorf("%s: %d files of 16 MB ahead for 96 MB", when, ahead)
		}
		if err := errors.Join(conn.Close(t.Context()), p.Stop()); err != nil {
			t.Fatal(err)
		}
	}
}

func execute(t *testing.T, p *PostgreSQL, sql string) {
	t.Helper()
	conn, err := p.connect(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestAServerThatCannotStartShowsItsLog(t *testing.T) {
	d := open(t)
	p, err := StartPostgreSQL(t.Context(), d, PostgreSQLOptions{Throwaway: true})
	needs(t, err)
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	data, err := postgresDir(d, mustCredential(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(data + "/global/pg_control"); err != nil {
		t.Fatal(err)
	}
	_, err = StartPostgreSQL(t.Context(), d, PostgreSQLOptions{Throwaway: true})
	if err == nil || !strings.Contains(err.Error(), "pg_control") {
		t.Errorf("got %v", err)
	}
}

func mustCredential(t *testing.T) *syscall.Credential {
	t.Helper()
	cred, err := serverCredential()
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

func TestRedisAndNATSWantTheirCredentials(t *testing.T) {
	d := open(t)
	r, err := StartRedis(t.Context(), d, RedisOptions{})
	needs(t, err)
	defer func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	}()
	client := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer client.Close()
	if err := client.Ping(t.Context()).Err(); !redis.HasErrorPrefix(err, "NOAUTH") {
		t.Errorf("Redis without a password: %v", err)
	}
	n, err := StartNATS(d, NATSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Stop()
	if conn, err := nats.Connect(n.URL(), nats.MaxReconnects(0)); err == nil {
		conn.Close()
		t.Error("NATS takes a client without an nkey")
	}
	connectNATS(t, n).Close()
	for _, file := range []string{"redis.password", "nats.nk", "redis.conf"} {
		if info, err := os.Stat(d.Path(file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

func connectNATS(t *testing.T, n *NATS) *nats.Conn {
	t.Helper()
	option, err := nats.NkeyOptionFromSeed(n.NKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nats.Connect(n.URL(), option)
	if err != nil {
		t.Fatalf("with the nkey: %v", err)
	}
	return conn
}

func TestNATSForgetsItsStreamsWhereItIsTold(t *testing.T) {
	d := open(t)
	stands := func(o NATSOptions) bool {
		n, err := StartNATS(d, o)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Stop()
		conn := connectNATS(t, n)
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		_, err = js.Stream(t.Context(), "S")
		if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Fatal(err)
		}
		stood := err == nil
		if _, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
			t.Fatal(err)
		}
		return stood
	}
	if stands(NATSOptions{}) {
		t.Error("a new server has a stream")
	}
	if !stands(NATSOptions{}) {
		t.Error("a stream is lost between two starts")
	}
	if stands(NATSOptions{Forget: true}) {
		t.Error("a stream is kept by a server that is to forget")
	}
}

func TestATokenIsInitialisedOnce(t *testing.T) {
	d := open(t)
	s, err := OpenSoftHSM(d)
	needs(t, err)
	first, err := s.Token(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Token(t.Context(), "one")
	if err != nil || first != second {
		t.Errorf("the second time: %v, %v", first == second, err)
	}
	if found, err := os.ReadDir(d.Path("softhsm")); err != nil || len(found) != 1 {
		t.Errorf("%d tokens, %v", len(found), err)
	}
}

func TestADataDirectoryHasOneHolder(t *testing.T) {
	d := open(t)
	if _, err := OpenDir(d.Path()); !errors.Is(err, ErrLocked) {
		t.Errorf("a second holder: %v", err)
	}
}

func TestPortsAreRememberedAndNotSharedAndFree(t *testing.T) {
	d := open(t)
	a, err := d.Port("a", 0)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := d.Port("b", a); err != nil || b == a {
		t.Errorf("b got %d, a's, or %v", b, err)
	}
	d.Release("a")
	again := &Dir{path: d.path, ports: map[string]int{"a": a}, held: map[string]net.Listener{}}
	if got, err := again.Port("a", 1); err != nil || got != a {
		t.Errorf("a moved from %d to %d, %v", a, got, err)
	}
	// again holds it, as any other program could.
	if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(a))); err == nil {
		l.Close()
		t.Error("the port is not held")
	}
	defer again.Release("a")
	if got, err := d.Port("a", 0); err != nil || got == a {
		t.Errorf("a taken port was given out: %d, %v", got, err)
	}
}

func TestAChildThatHangsIsKilledWithItsGroup(t *testing.T) {
	d := open(t)
	log, err := d.Log("stubborn")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(Command{Name: "stubborn", Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo deaf; while :; do sleep 60; done"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(t.Context(), "the trap", func() (bool, error) { return logTail(log) == "deaf", nil }); err != nil {
		t.Fatal(err)
	}
	if p.Status() != "" {
		t.Errorf("it has ended: %s", p.Status())
	}
	if err := p.Stop(syscall.SIGTERM, 50*time.Millisecond); err == nil {
		t.Error("Stop does not say that it had to kill")
	}
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "killed") || !strings.Contains(err.Error(), "deaf") {
		t.Errorf("how it ended: %v", err)
	}
	if err := syscall.Kill(-p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		// What sleeps in the group is adopted by init, which needs a moment.
		if err := poll(t.Context(), "the group to end", func() (bool, error) { return errors.Is(syscall.Kill(-p.PID(), 0), syscall.ESRCH), nil }); err != nil {
			t.Error(err)
		}
	}
}

func TestAGroupIsStoppedWhole(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"a shell with a child", "(trap 'echo child >> $0; exit' TERM; echo ready >> $0; while :; do sleep 0.02; done) & wait", ""},
		{"a deaf one", "trap '' TERM; echo ready >> $0; while :; do sleep 0.02; done", "did not stop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := filepath.Join(t.TempDir(), "said")
			text := func() string { b, _ := os.ReadFile(said); return string(b) }
			p, err := Start(Command{Name: "group", Path: "/bin/sh", Args: []string{"-c", c.script, said}})
			if err != nil {
				t.Fatal(err)
			}
			if err := poll(t.Context(), "the start", func() (bool, error) { return text() == "ready\n", nil }); err != nil {
				t.Fatal(err)
			}
			grace := 20 * time.Second
			if c.want != "" {
				grace = 100 * time.Millisecond
			}
			if err := p.StopGroup(syscall.SIGTERM, grace); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Error(err)
			}
			if p.Status() == "" || c.want == "" && text() != "ready\nchild\n" {
				t.Errorf("status %q, and it said %q", p.Status(), text())
			}
			if err := p.StopGroup(syscall.SIGTERM, grace); err != nil {
				t.Errorf("stopping what has ended: %v", err)
			}
		})
	}
}

func TestChildrenDoNotOutliveAKilledParent(t *testing.T) {
	if _, err := Find("redis-server"); err != nil {
		needs(t, err)
	}
	d := open(t)
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+d.Path("parent"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr := strings.TrimSpace(line)
	if _, _, serr := net.SplitHostPort(addr); err != nil || serr != nil {
		t.Fatalf("the parent said %q, %v", line, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // "signal: killed"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = poll(ctx, "Redis to end", func() (bool, error) {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return true, nil
		}
		return false, conn.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBuffersAreAShareOfTheMachineWithinBounds(t *testing.T) {
	for memory, want := range map[int64]int64{0: 256 << 20, 1 << 30: 256 << 20, 16 << 30: 2 << 30, 1 << 40: 4 << 30} {
		if got := sharedBuffers(memory); got != want {
			t.Errorf("%d bytes of memory give %d, want %d", memory, got, want)
		}
	}
}
