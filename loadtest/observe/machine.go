package observe

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Machine describes where a run was made; results of different machines do not compare.
type Machine struct {
	Cores  int    `json:"cores"`
	CPU    string `json:"cpu,omitempty"`
	Memory string `json:"memory,omitempty"`
	Kernel string `json:"kernel,omitempty"`
	OS     string `json:"os"`
	Go     string `json:"go"`
	// Build is the revision of this program.
	Build string `json:"build,omitempty"`
}

// String is one line for people.
func (m Machine) String() string {
	text := fmt.Sprintf("%d cores, %s, %s", m.Cores, m.OS, m.Go)
	for _, part := range []string{m.CPU, m.Memory, m.Kernel} {
		if part != "" {
			text += ", " + part
		}
	}
	return text
}

// Here describes this machine.
func Here() Machine {
	m := Machine{Cores: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	m.CPU = field("/proc/cpuinfo", "model name")
	m.Memory = field("/proc/meminfo", "MemTotal")
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(data))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				m.Build = s.Value
			}
		}
	}
	return m
}

// field returns the value of the first line "key : value" of a file of /proc.
func field(path, key string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
