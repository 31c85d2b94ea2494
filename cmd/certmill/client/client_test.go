package client

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestFilesOfAContextLieBesideItAndFlagsWin(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cli.yaml")
	if err := os.WriteFile(file, []byte("gateway: a:1\nca_file: root.pem\ncert_file: /abs/c.pem\nkey_file: k.pem\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CERTMILL_CLI_GATEWAY", "b:2")
	got, err := Load(file, []string{"key_file=here.pem"})
	if err != nil {
		t.Fatal(err)
	}
	want := Context{Gateway: "b:2", CAFile: filepath.Join(dir, "root.pem"), CertFile: "/abs/c.pem", KeyFile: "here.pem", Timeout: Default().Timeout}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestWithoutAGatewayTheErrorSaysWhatToDo(t *testing.T) {
	if _, err := Load("", nil); !errors.Is(err, ErrNoContext) {
		t.Errorf("no context: %v", err)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a context file that is not there: %v", err)
	}
	if _, err := Load("", []string{"gateway=a:1", "cert_file=c"}); err == nil {
		t.Error("a certificate without its key is accepted")
	}
}
