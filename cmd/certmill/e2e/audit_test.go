package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTheAuditTrailIsVerifiedOnlineAndOffline has a revocation recorded and the trail
// checked against heads that the signer has signed in the HSM, with nothing but the
// root for trust; then the export is changed.
func TestTheAuditTrailIsVerifiedOnlineAndOffline(t *testing.T) {
	s := dev(t)
	dir := t.TempDir()
	leaf, head, export := filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "head.json"), filepath.Join(dir, "audit.jsonl")
	for _, args := range [][]string{
		{"issue", "--profile", "server", "--dns", "audited.test", "--out", leaf, "--key-out", filepath.Join(dir, "leaf.key")},
		{"revoke", leaf, "--reason", "superseded"},
	} {
		if out, err := s.run(t, args...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	ledger := []string{"--config", s.file("config/maintenance.yaml")}
	verify := append([]string{"audit", "verify", "--roots", s.file("root.pem")}, ledger...)
	var report struct {
		Rows       int64 `json:"rows"`
		Heads      int64 `json:"heads"`
		SignedRows int64 `json:"signed_rows"`
	}
	// The signer signs when it has opened its token, and then every minute.
	for end := time.Now().Add(30 * time.Second); report.Heads == 0; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no head is signed within 30 s")
		}
		s.runJSON(t, &report, append(verify, "--max-age", "0")...)
	}
	s.runJSON(t, &report, append(verify, "--keep-head", head)...)
	if report.Rows < 1 {
		t.Errorf("the trail of a revocation: %+v", report)
	}
	s.runJSON(t, &report, append(verify, "--witness", head)...)
	var heads []json.RawMessage // each is a witness
	s.runJSON(t, &heads, append([]string{"audit", "heads", "--limit", "2"}, ledger...)...)
	if len(heads) == 0 || len(heads) > 2 {
		t.Fatalf("%d signed heads are listed", len(heads))
	}
	writeFile(t, head, heads[0])
	s.runJSON(t, &report, append(verify, "--witness", head)...)
	if out, err := s.run(t, append([]string{"audit", "heads"}, ledger...)...); err != nil || !strings.Contains(out, "issuing (") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := s.run(t, append([]string{"audit", "export", "--out", export}, ledger...)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	offline := []string{"audit", "verify", "--file", export, "--roots", s.file("root.pem"), "--witness", head}
	s.runJSON(t, &report, offline...)

	t.Run("a change is found", func(t *testing.T) {
		data, err := os.ReadFile(export)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Replace(data, []byte(`"action":"certificate.revoke"`), []byte(`"action":"certificate.praise"`), 1)
		if bytes.Equal(changed, data) {
			t.Fatal("the export holds no revocation")
		}
		writeFile(t, export, changed)
		if out, err := s.run(t, offline...); exitCode(err) != 1 || !strings.Contains(out, "not as it was written") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("roots of others are not taken", func(t *testing.T) {
		if out, err := s.run(t, append([]string{"audit", "verify", "--roots", leaf}, ledger...)...); exitCode(err) != 1 {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
