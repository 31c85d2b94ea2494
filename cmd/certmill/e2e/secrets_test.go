package e2e

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

// TestSecretsStayInTheirFiles looks for the secrets of a running service everywhere
// where they have no business: command lines, environments, logs at level debug, exported
// traces, metrics, answers to callers, the configuration, and what the processes print of
// their goroutines when they are made to (SIGQUIT). A core dump there is none
// (TestProcessesLeaveNoCore).
func TestSecretsStayInTheirFiles(t *testing.T) {
	s, traces := observe(t)
	secrets := s.secrets(t)
	for _, want := range []string{"PIN", "PostgreSQL's password", "Redis's password", "queue key", "NATS seed"} {
		if secrets[want] == "" {
			t.Errorf("there is no %s to look for", want)
		}
	}
	places := map[string][]byte{}
	maps.Copy(secrets, s.useTokens(t, places))
	for _, pid := range tree(s.cmd.Process.Pid) {
		name := s.describe(pid)
		for _, file := range []string{"cmdline", "environ"} {
			if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)); err == nil {
				places[name+"'s "+file] = data
			}
		}
	}
	for role, address := range s.operators(t) {
		for _, path := range []string{"/metrics", "/readyz", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline"} {
			places[role+path] = fetch(t, "http://"+address+path)
		}
	}
	eventually(t, 30*time.Second, func() error {
		sent := traces.services()
		for _, service := range []string{"certmill-gateway", "certmill-signer", "certmill-presigner"} {
			if !sent[service] {
				return fmt.Errorf("there are no traces of %s; there are those of %v", service, sent)
			}
		}
		return nil
	})
	// The logs last, with what the processes print of their goroutines.
	roles := []string{"gateway", "signer-1", "signer-2", "presigner", "responder", "maintenance"}
	for _, role := range roles {
		s.quit(t, role)
	}
	for _, pattern := range []string{"log/*", "config/*", "cli.yaml", "profiles/*"} {
		files, _ := filepath.Glob(s.file(pattern))
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil {
				places[f] = data
			}
		}
	}
	places["what certmill dev prints"] = []byte(s.out.String())
	traces.mu.Lock()
	places["the exported traces"] = bytes.Clone(traces.raw.Bytes())
	traces.mu.Unlock()
	if len(places) < 60 {
		t.Errorf("only %d places were looked at", len(places))
	}
	for place, data := range places {
		for what, secret := range secrets {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s holds the %s", place, what)
			}
		}
	}
}

// useTokens gives the service tokens of every kind to accept and to refuse, and returns
// those that callers keep secret; its answers are places.
func (s *service) useTokens(t *testing.T, places map[string][]byte) map[string]string {
	t.Helper()
	secrets := map[string]string{}
	var made struct{ Secret string }
	s.runJSON(t, &made, "token", "create", "--profile", "server", "--name", "secret.test", "--uses", "2")
	secrets["enrollment token"] = made.Secret
	dir := t.TempDir()
	file := func(name, secret string) string {
		writeFile(t, filepath.Join(dir, name), []byte(secret))
		return filepath.Join(dir, name)
	}
	token := file("token", made.Secret)
	out, err := s.run(t, "issue", "--cert", "", "--token-file", token, "--dns", "secret.test", "--out", filepath.Join(dir, "a.pem"), "--key-out", filepath.Join(dir, "a.key"))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	places["the answer to a token"] = []byte(out)
	key, err := os.ReadFile(filepath.Join(dir, "a.key"))
	if err != nil {
		t.Fatal(err)
	}
	secrets["private key of the caller"] = strings.Split(string(key), "\n")[1]
	// One that is good and is refused; one that nobody has made; a JWT of a stranger.
	jwt := "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.eyJzdWIiOiJzdHJhbmdlciJ9." + strings.Repeat("c2lnbmF0dXJlIG9mIGEgc3RyYW5nZXI", 2)
	secrets["bearer token that nobody made"] = "this-bearer-token-is-nobodys-0123456789"
	secrets["JWT of a stranger"] = jwt
	for name, secret := range map[string]string{"spent": made.Secret, "unknown": secrets["bearer token that nobody made"], "jwt": jwt} {
		out, err := s.run(t, "issue", "--cert", "", "--token-file", file(name, secret), "--dns", "other.test", "--out", filepath.Join(dir, name+".pem"))
		if err == nil {
			t.Errorf("the token %s was accepted", name)
		}
		places["the refusal of the token "+name] = []byte(out)
		places["the refusal by REST of the token "+name] = s.refusedByREST(t, secret)
	}
	return secrets
}

// refusedByREST presents a bearer token with no CSR.
func (s *service) refusedByREST(t *testing.T, token string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "curl", "--silent", "--include", "--cacert", s.file("root.pem"), "--header", "Authorization: Bearer "+token,
		"--data-binary", "no CSR", "https://localhost:"+portOf(s.setting(t, "gateway", "listen"))+"/v1/certificates?profile=server").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("application/problem+json")) {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// quit has a role print its goroutines and end, and waits until its log has them and
// another process has taken its place.
func (s *service) quit(t *testing.T, role string) {
	t.Helper()
	pid := s.pid(t, role)
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		log, err := os.ReadFile(s.file("log/" + role + ".log"))
		if err != nil {
			return err
		}
		if !bytes.Contains(log, []byte("SIGQUIT: quit")) || !bytes.Contains(log, []byte("\ngoroutine ")) {
			return fmt.Errorf("%s has not printed its goroutines", role)
		}
		if now := s.pid(t, role); now == pid {
			return fmt.Errorf("%s has not been replaced", role)
		}
		return s.ready(t, role)
	})
}

// TestProcessesLeaveNoCore: a core dump would hold the PIN.
func TestProcessesLeaveNoCore(t *testing.T) {
	s := dev(t)
	n := 0
	for _, pid := range tree(s.cmd.Process.Pid) {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			continue // it has ended
		}
		n++
		for line := range strings.Lines(string(limits)) {
			if strings.HasPrefix(line, "Max core file size") && strings.Join(strings.Fields(line), " ") != "Max core file size 0 0 bytes" {
				t.Errorf("%s: %s", s.describe(pid), strings.TrimSpace(line))
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d processes were looked at", n)
	}
	for _, role := range []string{"gateway", "signer-1", "presigner", "responder"} {
		// The files of an undumpable process belong to root, whoever runs it.
		info, err := os.Stat(fmt.Sprintf("/proc/%d/environ", s.pid(t, role)))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
			t.Errorf("the memory of the %s is open to user %d", role, owner)
		}
	}
}

// secrets reads what `certmill dev` keeps secret, by what it is.
func (s *service) secrets(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for what, pattern := range map[string]string{
		"PIN": "*.pin", "SO PIN": "*.so-pin", "PostgreSQL's password": "postgresql.password", "Redis's password": "redis.password",
		"queue key": "queue.key", "NATS seed": "*.nk",
	} {
		files, _ := filepath.Glob(s.file(pattern))
		more, _ := filepath.Glob(s.file(filepath.Join("*", pattern)))
		for i, f := range append(files, more...) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			name := what
			if i > 0 {
				name = fmt.Sprintf("%s of %s", what, filepath.Base(f))
			}
			if text := strings.TrimSpace(string(data)); len(text) >= 6 {
				found[name] = text
			}
		}
	}
	keys, _ := filepath.Glob(s.file("*.key"))
	for _, f := range keys {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(string(data), "\n"); strings.HasPrefix(lines[0], "-----BEGIN") && len(lines) > 1 {
			found["private key of "+filepath.Base(f)] = lines[1]
		}
	}
	return found
}

// operators returns where each role's operator listens.
func (s *service) operators(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(s.file("config/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no configuration found: %v", err)
	}
	found := map[string]string{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var c struct{ Telemetry struct{ Listen string } }
		if err := yaml.Unmarshal(data, &c); err == nil && c.Telemetry.Listen != "" {
			found[strings.TrimSuffix(filepath.Base(f), ".yaml")] = c.Telemetry.Listen
		}
	}
	return found
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// tree returns a process and all below it.
func tree(root int) []int {
	children := map[int][]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		// The name, in brackets, may hold anything; state and parent come after it.
		after := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(after) > 1 {
			parent, _ := strconv.Atoi(after[1])
			children[parent] = append(children[parent], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// describe names a process for a person.
func (s *service) describe(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return fmt.Sprintf("%s (%d)", strings.TrimSpace(string(name)), pid)
}
