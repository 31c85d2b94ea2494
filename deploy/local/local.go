// Package local starts the real servers on one machine: PostgreSQL and Redis as
// child processes, NATS with JetStream inside this process, and SoftHSM tokens. All
// data, logs and secrets stay under one data directory, and everything listens on
// loopback only. `certmill dev` and the tests stand on it.
//
// Children do not outlive their parent, even when it is killed with SIGKILL.
package local

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// MissingError says that a program is not installed, and how to install it.
type MissingError struct {
	Program string // for example "redis-server"
	Package string // its Debian package
}

// Error names the program and the command that installs it.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed: `make deps` installs it, or `apt-get install -y %s`", e.Program, e.Package)
}

// packages maps programs to Debian's packages.
var packages = map[string]string{
	"postgres":      "postgresql",
	"initdb":        "postgresql",
	"redis-server":  "redis-server",
	"softhsm2-util": "softhsm2",
	softHSMModule:   "softhsm2",
}

// Debian keeps PostgreSQL's server programs off PATH, a folder for each version.
var postgresDirs = []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"}

// Find returns the path of a program: on PATH, in sbin, or where Debian keeps
// PostgreSQL. It fails with a *MissingError.
func Find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return filepath.Abs(path)
	}
	dirs := []string{"/usr/sbin", "/usr/local/sbin"}
	for _, pattern := range postgresDirs {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, newestFirst(found)...)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", &MissingError{Program: program, Package: packages[program]}
}

// newestFirst sorts folders with a version number in them: longer means higher
// ("15" before "9"), then by text.
func newestFirst(dirs []string) []string {
	dirs = slices.Clone(dirs)
	sort.Slice(dirs, func(i, j int) bool {
		if len(dirs[i]) != len(dirs[j]) {
			return len(dirs[i]) > len(dirs[j])
		}
		return dirs[i] > dirs[j]
	})
	return dirs
}

// logTail returns the end of a log file for an error message.
func logTail(path string) string {
	const most = 1500
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return strings.TrimSpace(string(data))
}
