package profile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/internal/problem"
)

// maxFile bounds a profile's file, in bytes.
const maxFile = 1 << 20

// Set is the profiles of one directory. It is immutable and safe for concurrent use.
type Set struct {
	byName map[string]*Profile
	names  []string
}

// NewSet makes a set of profiles, whose names must differ.
func NewSet(profiles ...*Profile) (*Set, error) {
	s := &Set{byName: make(map[string]*Profile, len(profiles))}
	for _, p := range profiles {
		if s.byName[p.Name] != nil {
			return nil, fmt.Errorf("two profiles are called %q", p.Name)
		}
		s.byName[p.Name] = p
	}
	s.names = slices.Sorted(maps.Keys(s.byName))
	return s, nil
}

// Get returns a profile; a *problem.Error of kind Invalid where there is none.
func (s *Set) Get(name string) (*Profile, error) {
	if p := s.byName[name]; p != nil {
		return p, nil
	}
	return nil, problem.Rejected("profile", "profile_unknown", "there is no profile %.63q", name)
}

// Names returns the names in order. The slice must not be changed.
func (s *Set) Names() []string { return s.names }

// All returns the profiles in the order of their names.
func (s *Set) All() []*Profile {
	all := make([]*Profile, len(s.names))
	for i, n := range s.names {
		all[i] = s.byName[n]
	}
	return all
}

// Issuers returns the names of the issuers that the profiles use, in order.
func (s *Set) Issuers() []string {
	var issuers []string
	for _, p := range s.byName {
		issuers = append(issuers, p.IssuerNames()...)
	}
	slices.Sort(issuers)
	return slices.Compact(issuers)
}

// Equal reports whether two sets hold the same versions of the same profiles.
func (s *Set) Equal(other *Set) bool {
	return maps.EqualFunc(s.byName, other.byName, func(a, b *Profile) bool { return a.Version == b.Version })
}

// LoadDir reads every *.yaml file of a directory. The error joins what is wrong in all
// of them, with file and line where the YAML itself is at fault.
func LoadDir(dir string) (*Set, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("profiles: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("profiles: there is no *.yaml file in %s", dir)
	}
	var profiles []*Profile
	var errs []error
	for _, file := range files {
		p, err := LoadFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		profiles = append(profiles, p)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return NewSet(profiles...)
}

// LoadFile reads one profile, which must be called as its file is.
func LoadFile(file string) (*Profile, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: a profile has at most %d bytes", file, maxFile)
	}
	p, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if stem := strings.TrimSuffix(filepath.Base(file), ".yaml"); p.Name != stem {
		return nil, fmt.Errorf("%s: name: the profile is called %q; name its file %s.yaml", file, p.Name, p.Name)
	}
	return p, nil
}

// Parse reads a profile from YAML. An unknown key is an error that names its line.
func Parse(data []byte) (*Profile, error) {
	var s Spec
	d := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := d.Decode(&s); err != nil {
		return nil, err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("a file holds one profile; there is a second YAML document")
	}
	return Compile(s)
}

// Live is a Set that can be loaded again while it is in use.
type Live struct {
	dir string
	set atomic.Pointer[Set]
}

// NewLive loads a directory.
func NewLive(dir string) (*Live, error) {
	l := &Live{dir: dir}
	if _, err := l.Reload(); err != nil {
		return nil, err
	}
	return l, nil
}

// Set returns the set as it was last loaded. Take it once per request.
func (l *Live) Set() *Set { return l.set.Load() }

// Reload reads the directory again and reports whether a profile has changed. Where it
// fails the old set stays.
func (l *Live) Reload() (changed bool, err error) {
	s, err := LoadDir(l.dir)
	if err != nil {
		return false, err
	}
	old := l.set.Swap(s)
	return old == nil || !s.Equal(old), nil
}
