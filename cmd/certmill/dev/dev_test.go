package dev

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTheBinaryIsShownAsAShellFindsIt covers the folders a person may stand in.
func TestTheBinaryIsShownAsAShellFindsIt(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(bin, "certmill")
	for in, want := range map[string]string{bin: "./certmill", dir: "bin/certmill", "/": binary[1:]} {
		t.Chdir(in)
		if got := shownAs(binary); got != want {
			t.Errorf("in %s it is shown as %s, not %s", in, got, want)
		}
	}
}
