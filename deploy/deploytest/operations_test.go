package deploytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/testenv"
)

// TestTheOperationsPage runs the commands of docs/operations.md, section "One machine,
// process by process", as they stand there, in one shell and on an empty folder.
func TestTheOperationsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	script := commandsOf(t, string(page), "## One machine, process by process")
	source, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, credential := emptyFolder(t)
	env := []string{"SRC=" + source, "HOME=" + dir, "LC_ALL=C.UTF-8", "PATH=" + programs(t)}
	for name, port := range freePorts(t, "PGPORT", "NATS1", "NATS2", "NATS3", "ROUTE1", "ROUTE2", "ROUTE3", "MON1", "MON2", "MON3",
		"REDIS", "REST", "GRPC", "CONSOLE", "OCSP", "M1", "M2", "M3", "M4", "M5") {
		env = append(env, name+"="+strconv.Itoa(port))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// -x shows the command that failed; what it has started ends with the group.
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, env, 5*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: credential}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	if killed := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); killed == nil && err == nil {
		t.Error("the page's commands leave processes behind")
	}
	if err != nil {
		stopLedger(dir, credential)
		t.Fatalf("%v; the end of what the commands said:\n%s\n%s", err, last(out.String()), logs(dir))
	}
	for _, want := range []string{"web.pem: OK", "dns:after.test", "rolled.pem: OK"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in what the commands said:\n%s", want, last(out.String()))
		}
	}
	if plan, err := os.ReadFile(filepath.Join(dir, "log", "plan.sql")); err != nil || !bytes.Contains(plan, []byte("CREATE TABLE certificates")) {
		t.Errorf("the plan of the migration does not show its steps: %v\n%s", err, plan)
	}
	if console, err := os.ReadFile(filepath.Join(dir, "run", "console.html")); err != nil || !bytes.Contains(console, []byte("<html")) {
		t.Errorf("the console was not opened: %v\n%s", err, console)
	}
}

// commandsOf joins the shell blocks of a section.
func commandsOf(t *testing.T, page, heading string) string {
	t.Helper()
	_, section, found := strings.Cut(page, heading+"\n")
	if !found {
		t.Fatalf("the page has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var script strings.Builder
	blocks := 0
	for rest := section; ; blocks++ {
		_, after, found := strings.Cut(rest, "```sh\n")
		if !found {
			break
		}
		block, next, _ := strings.Cut(after, "```")
		script.WriteString(block)
		rest = next
	}
	if blocks < 8 {
		t.Fatalf("the section has %d blocks of commands: something else is read than what is meant", blocks)
	}
	return script.String()
}

// emptyFolder makes the folder, and says as whom to work in it: PostgreSQL refuses root.
func emptyFolder(t *testing.T) (string, *syscall.Credential) {
	t.Helper()
	dir, err := os.MkdirTemp("", "certmill-operations-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Geteuid() != 0 {
		return dir, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2, os.Chown(dir, uid, gid)); err != nil {
			t.Fatal(err)
		}
		return dir, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	testenv.Lacking(t, "root, and there is no user postgres or nobody to be")
	return "", nil
}

// programs returns a PATH with everything that the page asks for, copies of our own
// binaries first: the user may not reach where they were built.
func programs(t *testing.T) string {
	t.Helper()
	bin, err := os.MkdirTemp("", "certmill-bin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(bin) })
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"certmill": binaries.Certmill, "nats-server": binaries.NATS} {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, name), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	path := bin
	for _, program := range []string{"initdb", "pg_ctl", "psql", "redis-server", "softhsm2-util", "openssl", "curl"} {
		found, err := local.Find(program)
		if err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		path += ":" + filepath.Dir(found)
	}
	return path + ":/usr/bin:/bin"
}

// freePorts finds a free port for each name. They are held until all are found.
func freePorts(t *testing.T, names ...string) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out[name] = l.Addr().(*net.TCPAddr).Port
	}
	return out
}

// stopLedger ends a PostgreSQL that a failed run has left, which has a session of its own.
func stopLedger(dir string, credential *syscall.Credential) {
	if ctl, err := local.Find("pg_ctl"); err == nil {
		cmd := exec.Command(ctl, "-D", filepath.Join(dir, "data", "ledger"), "-m", "immediate", "-w", "stop")
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Credential: credential}
		_ = cmd.Run()
	}
}

func last(s string) string { return s[max(0, len(s)-4000):] }

// logs returns the end of every log.
func logs(dir string) string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(dir, "log", "*"))
	for _, f := range files {
		data, _ := os.ReadFile(f)
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(f), data[max(0, len(data)-800):])
	}
	return b.String()
}
