package loadtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/certmill/certmill/loadtest/observe"
)

// fillFromDev takes from the folder of a `certmill dev` stack what the flags leave
// open.
func (o *options) fillFromDev() ([]observe.Role, error) {
	if o.dev == "" {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(o.dev, "config", "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, usage(fmt.Errorf("--dev: %s holds no `certmill dev` stack: there is no config/*.yaml", o.dev))
	}
	if err := o.findTree(); err != nil {
		return nil, err
	}
	var roles []observe.Role
	found := map[string]observe.RoleFile{}
	for _, path := range files {
		f, err := observe.ReadRoleFile(path)
		if err != nil {
			return nil, err
		}
		process := strings.TrimSuffix(filepath.Base(path), ".yaml")
		name := strings.TrimRight(process, "-0123456789")
		found[name] = f
		if f.Telemetry.Listen != "" && o.runs(process) {
			roles = append(roles, observe.Role{Name: name, Metrics: "http://" + f.Telemetry.Listen + "/metrics"})
		}
	}
	gateway := found["gateway"]
	in := func(name string) string { return filepath.Join(o.dev, name) }
	switch o.target {
	case "rest":
		set(&o.server.URL, "https://"+gateway.Listen)
	case "ocsp-get", "ocsp-post":
		set(&o.server.URL, "http://"+found["responder"].Listen+"/")
	default:
		set(&o.server.URL, gateway.GRPCListen)
	}
	set(&o.server.CAFile, in("root.pem"))
	set(&o.server.ServerName, "localhost")
	set(&o.server.CertFile, in("operator.pem"))
	set(&o.server.KeyFile, in("operator.key"))
	set(&o.roots, in("root.pem"))
	if o.server.Profile == "" {
		o.server.Profile = "server"
	}
	// Checks against the stack's own ledger and responder are asked for by "dev".
	if o.row == "dev" {
		o.row = gateway.GRPCListen
	}
	if o.status == "dev" {
		o.status = "http://" + found["responder"].Listen + "/"
	}
	return roles, nil
}

// findTree finds the process of `certmill dev` itself: the parent of its gateway. It
// is where NATS runs, and the root of all other processes.
func (o *options) findTree() error {
	if o.tree != 0 {
		return nil
	}
	pid, err := devPID(o.dev, "gateway")
	if err != nil {
		return fmt.Errorf("is `certmill dev` running? %w", err)
	}
	if o.tree, err = observe.Parent(pid); err != nil || o.tree <= 1 {
		return errors.Join(fmt.Errorf("`certmill dev` does not run in %s", o.dev), err)
	}
	return nil
}

// runs reports whether a role of the stack runs: configuration and process ids of
// starts with more signers are left in the folder.
func (o *options) runs(process string) bool {
	pid, err := devPID(o.dev, process)
	if err != nil {
		return false
	}
	parent, err := observe.Parent(pid)
	return err == nil && parent == o.tree
}

func devPID(dir, process string) (int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "run", process+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func set(field *string, value string) {
	if *field == "" {
		*field = value
	}
}
