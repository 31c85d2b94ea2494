// Package hsmshim builds and steers a PKCS#11 module that stands before a real one
// and misbehaves on command. Tests use it to make SoftHSM late, deaf, forgetful,
// wrong or dead; load tests use it to give SoftHSM the latency and the number of
// cores of a hardware HSM. csrc/shim.c lists the rules.
package hsmshim

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed csrc/shim.c
var source []byte

// headers is the module whose pkcs11.h the shim is compiled with.
const headers = "github.com/miekg/pkcs11"

// Shim is a built module with its files. Its methods may be called from any process
// that knows the directory; the module itself may be loaded in several processes.
type Shim struct {
	// Module is the path of the shared object, to be given as the PKCS#11 module.
	Module string
	rules  string
	count  string
	real   string
}

// New compiles the shim into dir for the real module, with gcc and the PKCS#11
// headers of the Go module cache. Processes that load it need Env.
func New(dir, realModule string) (*Shim, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", headers).Output()
	if err != nil {
		return nil, fmt.Errorf("finding the PKCS#11 headers of %s: %w", headers, err)
	}
	s := &Shim{
		Module: filepath.Join(dir, "hsmshim.so"),
		rules:  filepath.Join(dir, "hsmshim.rules"),
		count:  filepath.Join(dir, "hsmshim.count"),
		real:   realModule,
	}
	src := filepath.Join(dir, "hsmshim.c")
	if err := os.WriteFile(src, source, 0o600); err != nil {
		return nil, err
	}
	cc := exec.Command("gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread",
		"-I", strings.TrimSpace(string(out)), "-o", s.Module, src, "-ldl")
	if text, err := cc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling the shim: %w\n%s", err, text)
	}
	if err := s.Set(); err != nil {
		return nil, err
	}
	return s, os.WriteFile(s.count, nil, 0o600)
}

// Env returns the variables, NAME=value, that a process needs before it loads Module.
func (s *Shim) Env() []string {
	return []string{"CERTMILL_SHIM_MODULE=" + s.real, "CERTMILL_SHIM_RULES=" + s.rules, "CERTMILL_SHIM_COUNT=" + s.count}
}

// Set replaces the rules; with none the shim is transparent. It takes effect at the
// next call, and starts the counts of all rules anew.
func (s *Shim) Set(rules ...string) error {
	old, statErr := os.Stat(s.rules)
	tmp := s.rules + ".new"
	if err := os.WriteFile(tmp, []byte(strings.Join(rules, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	// The shim looks at the modification time, which the kernel gives in coarse steps:
	// make sure that it differs.
	if fresh, err := os.Stat(tmp); statErr == nil && err == nil && !fresh.ModTime().After(old.ModTime()) {
		if err := os.Chtimes(tmp, time.Time{}, old.ModTime().Add(time.Millisecond)); err != nil {
			return err
		}
	}
	return os.Rename(tmp, s.rules)
}

// Signatures returns how many signatures the real module has made through this shim,
// in all processes, dead ones included.
func (s *Shim) Signatures() (int64, error) {
	st, err := os.Stat(s.count)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
