package e2e

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/runbooks"
)

// configurations are the service's files, by the names that the runbooks give them.
var configurations = map[string]string{
	"signer.yaml": "config/signer-1.yaml", "presigner.yaml": "config/presigner.yaml", "ledger.yaml": "config/maintenance.yaml", "root.pem": "root.pem",
}

// elsewhere are commands of the runbooks that this test leaves to others.
var elsewhere = []string{
	"ledger maintain --every",      // never ends; certmill dev runs it
	"ca rollover prepare --config", // TestTheIssuerIsRolledOverAndASignerDrainedUnderLoad
	"ca rollover activate --config",
	"ca rollover close --config",
	"signer undrain NAME",
}

// exits are the exit codes of commands that judge what they find: the service is one that
// other tests have hurt.
var exits = map[string][]int{"status": {0, 10}, "ledger reconcile": {0, 1}, "ocsp verify": {0, 1}}

// TestTheRunbooksCommandsRun runs every command of the runbooks, as it stands there, on
// a running service.
func TestTheRunbooksCommandsRun(t *testing.T) {
	s := dev(t)
	dir := t.TempDir()
	if out, err := s.run(t, "issue", "--profile", "server", "--dns", "runbook.test", "--out", filepath.Join(dir, "cert.pem"), "--key-out", filepath.Join(dir, "cert.key")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	writeFile(t, filepath.Join(dir, "ca.yaml"), []byte("{}\n")) // certmill dev's CA is the default one
	pages, err := runbooks.Read()
	if err != nil {
		t.Fatal(err)
	}
	ran := map[string]bool{}
	for _, page := range pages {
		commands, err := page.Commands()
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range commands {
			line := strings.Join(words, " ")
			if ran[line] || slices.ContainsFunc(elsewhere, func(e string) bool { return strings.HasPrefix(line, e) }) {
				continue
			}
			ran[line] = true
			t.Run(line, func(t *testing.T) { s.follow(t, dir, words) })
		}
	}
	if len(ran) < 10 {
		t.Errorf("only %d commands were run", len(ran))
	}
}

// follow runs one command until it ends as it should: what it asks may still be coming
// back from an earlier test.
func (s *service) follow(t *testing.T, dir string, words []string) {
	args := slices.Clone(words)
	for i, word := range args {
		if file := configurations[word]; file != "" {
			args[i] = s.file(file)
		}
		if word == "cert.pem" || word == "ca.yaml" || word == "head.json" {
			args[i] = filepath.Join(dir, word)
		}
	}
	want := exits[strings.Join(words[:min(2, len(words))], " ")]
	if want == nil {
		want = []int{0}
	}
	deadline := time.Now().Add(30 * time.Second)
	run := func() (string, error) {
		cmd := s.command(t, args...)
		cmd.Env = append(cmd.Env, "SOFTHSM2_CONF="+s.file("softhsm2.conf"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run()
	for !slices.Contains(want, exitCode(err)) && time.Now().Before(deadline) {
		time.Sleep(200 * time.Millisecond)
		out, err = run()
	}
	if !slices.Contains(want, exitCode(err)) {
		t.Errorf("exit code %d, want one of %d:\n%s", exitCode(err), want, out)
	}
	if words[0] == "renew-early" { // nobody else's certificates are to be hurried
		s.endEarlyRenewals(t)
	}
}

func (s *service) endEarlyRenewals(t *testing.T) {
	t.Helper()
	out, err := s.printed(t, "renew-early", "list", "-o", "json")
	var list struct {
		EarlyRenewals []struct{ ID string } `json:"early_renewals"`
	}
	if jerr := json.Unmarshal([]byte(out), &list); err != nil || jerr != nil || len(list.EarlyRenewals) == 0 {
		t.Fatalf("%v, %v\n%s", err, jerr, out)
	}
	for _, e := range list.EarlyRenewals {
		if out, err := s.run(t, "renew-early", "end", e.ID); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
