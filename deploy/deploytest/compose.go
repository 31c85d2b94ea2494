// Package deploytest starts the services of deploy/compose/compose.yaml as plain
// processes on loopback, with the very configuration files that compose mounts. What
// differs is what a test cannot have: PostgreSQL stands in for CockroachDB, and every
// service has ports of its own in place of a host of its own.
package deploytest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// File is what this package reads of a compose file.
type File struct {
	Services map[string]*Service `yaml:"services"`
}

// Service is one service of a compose file.
type Service struct {
	Image       string            `yaml:"image"`
	Entrypoint  []string          `yaml:"entrypoint"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Volumes     []string          `yaml:"volumes"`
	DependsOn   dependencies      `yaml:"depends_on"`
	Restart     string            `yaml:"restart"`
}

// once reports whether the service ends when its work is done.
func (s *Service) once() bool { return strings.HasPrefix(s.Restart, "on-failure") }

// dependencies is a list of services, or a map with conditions.
type dependencies []string

// UnmarshalYAML reads both forms.
func (d *dependencies) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.SequenceNode {
		return node.Decode((*[]string)(d))
	}
	var conditions map[string]any
	if err := node.Decode(&conditions); err != nil {
		return err
	}
	for name := range conditions {
		*d = append(*d, name)
	}
	slices.Sort(*d)
	return nil
}

// Read reads a compose file.
func Read(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f File
	if err := yaml.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &f, nil
}

// inOrder returns the services' names, each after those that it depends on.
func (f *File) inOrder() []string {
	var names, out []string
	for name := range f.Services {
		names = append(names, name)
	}
	slices.Sort(names)
	var visit func(string)
	visit = func(name string) {
		if slices.Contains(out, name) || f.Services[name] == nil {
			return
		}
		for _, d := range f.Services[name].DependsOn {
			visit(d)
		}
		out = append(out, name)
	}
	for _, name := range names {
		visit(name)
	}
	return out
}

// workingDir is where every service of the compose file works.
const workingDir = "/etc/certmill/"

// mounts returns where each path below the working directory comes from: "./x" of the
// compose file lies in project, "../x" in deploy.
func (s *Service) mounts(project, deploy string) (map[string]string, error) {
	out := map[string]string{}
	for _, v := range s.Volumes {
		parts := strings.Split(v, ":")
		target, below := strings.CutPrefix(parts[1], workingDir)
		if !below {
			return nil, fmt.Errorf("%s is not mounted below %s", v, workingDir)
		}
		switch {
		case strings.HasPrefix(parts[0], "./"):
			out[target] = filepath.Join(project, parts[0])
		case strings.HasPrefix(parts[0], "../"):
			out[target] = filepath.Join(deploy, "compose", parts[0])
		default:
			return nil, fmt.Errorf("%s is no file or folder of the project", v)
		}
	}
	return out, nil
}

var address = regexp.MustCompile(`\b([a-z]+(?:-[0-9]+)?|0\.0\.0\.0):([0-9]+)\b`)

// translate puts loopback and the port given in the place of every host:port in text.
func translate(text, service string, port func(service, port string) string) string {
	return address.ReplaceAllStringFunc(text, func(found string) string {
		m := address.FindStringSubmatch(found)
		host := m[1]
		if host == "0.0.0.0" {
			host = service
		}
		if p := port(host, m[2]); p != "" {
			return "127.0.0.1:" + p
		}
		return found
	})
}
