package observe

import (
	"fmt"
	"os"

	"github.com/goccy/go-yaml"
)

// RoleFile is the part of a role's configuration that tells where it is.
type RoleFile struct {
	Listen     string `yaml:"listen"`
	GRPCListen string `yaml:"grpc_listen"`
	Telemetry  struct {
		Listen string `yaml:"listen"`
	} `yaml:"telemetry"`
}

// ReadRoleFile reads the configuration of a role that runs: the role itself has checked
// it strictly.
func ReadRoleFile(path string) (f RoleFile, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := yaml.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}
