package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/certmill/certmill/deploy/profiles"
)

// shareServerProfile puts a profile like "server" into the folder of a service that is
// still to be started, with the issuers issuing and issuing-b, 3:1; it returns its name.
func shareServerProfile(t *testing.T, dir string) string {
	t.Helper()
	text, err := profiles.FS.ReadFile("server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shared := strings.Replace(string(text), "name: server", "name: shared", 1)
	shared = strings.Replace(shared, "issuer: issuing", "issuers: [{name: issuing, weight: 3}, {name: issuing-b}]", 1)
	if err := os.MkdirAll(filepath.Join(dir, "profiles"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "profiles", "shared.yaml"), []byte(shared))
	return "shared"
}

// secondIssuer makes issuing-b under load and gives it a signer of its own, which is
// killed and started again; then it is rolled over, to the end. No request fails.
func secondIssuer(t *testing.T, s *service, load *strictLoad, hsm func(into any, args ...string)) {
	t.Helper()
	spec := filepath.Join(t.TempDir(), "ca.yaml")
	writeFile(t, spec, []byte("more: [{name: issuing-b, common_name: the second issuing CA}]\n"))
	var made []struct {
		Name string
		Made bool
	}
	hsm(&made, "ca", "init", "--spec", spec, "--out", t.TempDir())
	if len(made) != 5 || made[3].Name != "issuing issuing-b" || !made[3].Made || made[1].Made {
		t.Errorf("the ceremony made %+v", made)
	}
	load.more(t, 50)
	if by := load.issuers(); by["issuing-b"] > 0 {
		t.Errorf("an issuer without signers has issued: %v", by)
	}
	// It has a signer: a quarter is its.
	kill := startSignerB(t, s)
	load.until(t, "issuing-b has its signer", func() bool { n, _ := signersB(t, s); return n == 1 })
	if out, _ := s.printed(t, "status"); !strings.Contains(out, ", 25% of shared") || !strings.Contains(out, ", 75% of shared") {
		t.Errorf("the status does not show the issuers' shares:\n%s", out)
	}
	load.until(t, "issuing-b issues", func() bool { return load.issuers()["issuing-b"] > 0 })
	load.until(t, "a quarter of 400 certificates is issuing-b's", func() bool {
		load.issuers()
		load.more(t, 400)
		by := load.issuers()
		n := float64(by["issuing"] + by["issuing-b"])
		off, sigma := float64(by["issuing-b"])-n/4, math.Sqrt(n*3/16)
		// A machine so slow that the signer answers nothing for a second is stood in for.
		t.Logf("issuing-b has %d of %.0f certificates, %+.1f sigma off a quarter", by["issuing-b"], n, off/sigma)
		return math.Abs(off) < 6*sigma
	})
	// Its signer dies.
	kill()
	load.more(t, 100)
	load.until(t, "status says who stands in", func() bool {
		signers, findings := signersB(t, s)
		return signers == 0 && strings.Contains(findings, "issuing-b; its profiles' other issuers do its work")
	})
	load.issuers()
	load.more(t, 50)
	if by := load.issuers(); by["issuing-b"] > 0 {
		t.Errorf("the dead have signed: %v", by)
	}
	// And is started again.
	startSignerB(t, s)
	load.until(t, "issuing-b issues again", func() bool { return load.issuers()["issuing-b"] > 0 })
	rollOverB(t, s, load, spec, hsm)
}

// rollOverB prepares, activates and retires, and has each step written down.
func rollOverB(t *testing.T, s *service, load *strictLoad, spec string, hsm func(into any, args ...string)) {
	t.Helper()
	record := func(step string) []string {
		return []string{"--transcript", filepath.Join(s.dir, step+".json"), "--witness", "Ada Lovelace"}
	}
	var next struct{ Generation, Before int32 }
	of := []string{"--spec", spec, "--issuer", "issuing-b"}
	hsm(&next, slices.Concat([]string{"ca", "rollover", "prepare"}, of, record("prepare"))...)
	hsm(&next, slices.Concat([]string{"ca", "rollover", "activate", "--published-for", "0s"}, of, record("activate"))...)
	load.until(t, "the next generation of issuing-b has a signer", func() bool {
		for _, i := range statusOf(t, s).Issuers {
			if i.Generation == next.Generation {
				return i.State == "active" && i.Signers == 1
			}
		}
		return false
	})
	load.issuers()
	load.until(t, "issuing-b issues by it", func() bool { return load.issuers()["issuing-b"] > 0 })
	var closed any
	hsm(&closed, slices.Concat([]string{"ca", "rollover", "retire", "--force", "--generation", fmt.Sprint(next.Before)}, record("close"))...)
	load.more(t, 50)
	for _, step := range []string{"prepare", "activate", "close"} {
		out, err := s.run(t, "ca", "verify-transcript", filepath.Join(s.dir, step+".json"), "--root", filepath.Join(s.dir, "root.pem"))
		if err != nil || !strings.Contains(out, "rollover "+step) || !strings.Contains(out, "Ada Lovelace") {
			t.Errorf("the transcript of %s: %v\n%s", step, err, out)
		}
	}
}

// startSignerB starts a signer for issuing-b alone, until the test or kill ends it.
func startSignerB(t *testing.T, s *service) (kill func()) {
	t.Helper()
	cmd := exec.Command(binary, "signer", "--config", filepath.Join(s.dir, "config", "signer-1.yaml"),
		"--set", "name=signer-b", "--set", "issuers=issuing-b", "--set", "issuer_refresh=1s", "--set", "telemetry.listen=127.0.0.1:0")
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(s.dir, "softhsm2.conf"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill() // a second time it has gone
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	return kill
}

// serviceStatus is what `certmill status` says of issuers.
type serviceStatus struct {
	Issuers []struct {
		Name, State string
		Generation  int32
		Signers     int
	}
	Findings []struct{ Detail string }
}

func statusOf(t *testing.T, s *service) (status serviceStatus) {
	t.Helper()
	out, _ := s.printed(t, "status", "-o", "json") // its exit code tells of the service
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return status
}

// signersB returns how many signers issuing-b has, and the findings.
func signersB(t *testing.T, s *service) (signers int, findings string) {
	t.Helper()
	status := statusOf(t, s)
	for _, i := range status.Issuers {
		if i.Name == "issuing-b" {
			signers += i.Signers
		}
	}
	for _, f := range status.Findings {
		findings += f.Detail + "\n"
	}
	return signers, findings
}
