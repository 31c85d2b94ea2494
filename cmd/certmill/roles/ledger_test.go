package roles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheLedgersToolsSayWhichFileTheyTake(t *testing.T) {
	file := filepath.Join(t.TempDir(), "signer.yaml")
	for text, hint := range map[string]bool{"name: x\nledger:\n  url: postgres://h/d\n": true, "ledger:\n  max_connections: 3\n": false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadLedger(Source{File: file})
		if err == nil || strings.Contains(err.Error(), "config/maintenance.yaml") != hint {
			t.Errorf("%q: %v", text, err)
		}
	}
}
