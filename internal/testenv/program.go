package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// Program returns the path of a program. Where it is missing the test ends with the
// Debian package that has it, as Lacking ends it. Debian keeps servers in /usr/sbin,
// which is not on every PATH.
func Program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		Lacking(t, "%s is missing: apt-get install %s", name, debianPackage)
	}
	return path
}

// Lacking ends a test that this machine cannot run: it is skipped, and fails with CI=true.
func Lacking(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
