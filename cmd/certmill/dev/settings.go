package dev

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/deploy/profiles"
)

// ports are where things listen, on 127.0.0.1.
type ports struct {
	gateway, grpc, console, ocsp string // host:port
}

// shippedOCSP is the responder's address in the profiles that come with certmill.
const shippedOCSP = "http://127.0.0.1:8080/"

// settings is one YAML file.
type settings map[string]any

// writeSettings chooses the ports and writes every role's configuration. It is
// written anew at each start: the environment (CERTMILL_<ROLE>_<KEY>) is the way to
// change a key.
func (d *dev) writeSettings(context.Context) error {
	for _, p := range []struct {
		name, shown string
		preferred   int
		to          *string
	}{
		{"gateway", "the REST API", 8443, &d.ports.gateway}, {"gateway-grpc", "the gRPC API", 8444, &d.ports.grpc},
		{"gateway-console", "the console", 8445, &d.ports.console}, {"ocsp", "the OCSP responder", 8080, &d.ports.ocsp},
	} {
		var err error
		if *p.to, err = d.address(p.name, p.preferred); err != nil {
			return err
		}
		if port(*p.to) != strconv.Itoa(p.preferred) {
			d.say("NOTE: port %d is taken, so %s listens on %s; it stays there at later starts (ports.json)", p.preferred, p.shown, *p.to)
		}
	}
	if _, _, err := d.dir.SecretFrom("queue.key", newQueueKey); err != nil {
		return err
	}
	if err := d.copyProfiles(); err != nil {
		return fmt.Errorf("copying the profiles: %w", err)
	}
	if err := os.MkdirAll(d.dir.Path("config"), 0o700); err != nil {
		return err
	}
	// The order is that of the start; the stop is the reverse.
	if err := d.role("maintenance", []string{"ledger", "maintain", "--every"}, settings{"ledger": d.ledgerSettings(2)}); err != nil {
		return err
	}
	if err := d.role("responder", []string{"ocsp", "responder"}, settings{"listen": d.ports.ocsp, "redis": d.redisSettings()}, "ocsp"); err != nil {
		return err
	}
	if err := d.role("presigner", []string{"ocsp", "presigner"}, d.presignerSettings()); err != nil {
		return err
	}
	for i := range d.Signers {
		name := "signer-" + strconv.Itoa(i+1)
		if err := d.role(name, []string{"signer"}, d.signerSettings(name)); err != nil {
			return err
		}
	}
	if err := d.role("gateway", []string{"gateway"}, d.gatewaySettings(), "gateway", "gateway-grpc", "gateway-console"); err != nil {
		return err
	}
	return d.write("cli.yaml", settings{
		"gateway": d.ports.grpc, "server_name": "localhost",
		"ca_file": "root.pem", "cert_file": "operator.pem", "key_file": "operator.key",
	})
}

// role writes the configuration of one process and puts it on the list.
func (d *dev) role(name string, command []string, s settings, ports ...string) error {
	operator, err := d.address("operator-"+name, 0)
	if err != nil {
		return err
	}
	s["telemetry"] = settings{"listen": operator}
	file := filepath.Join("config", name+".yaml")
	d.roles = append(d.roles, &child{name: name, operator: operator, ports: append(ports, "operator-"+name), args: append(command, "--config", d.dir.Path(file))})
	return d.write(file, s)
}

func (d *dev) write(file string, s settings) error {
	data, err := yaml.Marshal(s)
	if err != nil {
		return err
	}
	const head = "# Written by `certmill dev` at every start; change a key by the environment.\n"
	return os.WriteFile(d.dir.Path(file), append([]byte(head), data...), 0o600)
}

func (d *dev) address(name string, preferred int) (string, error) {
	port, err := d.dir.Port(name, preferred)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

func (d *dev) ledgerSettings(connections int) settings {
	l := d.ledger()
	return settings{"url": l.URL, "password_file": l.PasswordFile, "max_connections": connections}
}

// natsSettings keep the queue in memory: NATS is in this process, which all roles end
// with, and what is on disk is not flushed before it is acknowledged either.
func (d *dev) natsSettings() settings {
	return settings{"url": d.nats.URL(), "nkey_file": d.nats.NKeyFile(), "queue_key_file": d.dir.Path("queue.key"), "memory": true}
}

func (d *dev) redisSettings() settings {
	return settings{"addresses": []string{d.redis.Addr()}, "password_file": d.redis.PasswordFile()}
}

func (d *dev) tokenSettings() settings {
	return settings{"module": d.hsm.Module, "token_label": d.token.Label, "pin_file": d.token.PINFile}
}

func (d *dev) signerSettings(name string) settings {
	return settings{
		"name": name, "tokens": []settings{d.tokenSettings()}, "profiles_dir": d.dir.Path("profiles"),
		"state_dir": d.dir.Path("state"), "nats": d.natsSettings(), "ledger": d.ledgerSettings(8),
	}
}

func (d *dev) presignerSettings() settings {
	return settings{
		"tokens": []settings{d.tokenSettings()}, "nats": d.natsSettings(),
		"ledger": d.ledgerSettings(4), "redis": d.redisSettings(),
	}
}

func (d *dev) gatewaySettings() settings {
	return settings{
		"name": "gateway-1", "listen": d.ports.gateway, "grpc_listen": d.ports.grpc,
		"console":      settings{"listen": d.ports.console},
		"tls":          settings{"cert_file": d.dir.Path("gateway.pem"), "key_file": d.dir.Path("gateway.key")},
		"operators":    []settings{{"match": "mtls:" + operatorURI(), "roles": []string{"admin"}}},
		"profiles_dir": d.dir.Path("profiles"),
		"nats":         d.natsSettings(), "ledger": d.ledgerSettings(8),
	}
}

// operatorURI is the name in the operator's client certificate.
func operatorURI() string {
	name := "dev"
	if u, err := user.Current(); err == nil && plain(u.Username) {
		name = u.Username
	}
	return "spiffe://certmill.test/operator/" + name
}

func plain(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return s != ""
}

func newQueueKey() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

// copyProfiles puts the shipped profiles where a person can change them. Those that
// are there are left alone.
func (d *dev) copyProfiles() error {
	if err := os.MkdirAll(d.dir.Path("profiles"), 0o755); err != nil {
		return err
	}
	names, err := fs.Glob(profiles.FS, "*.yaml")
	if err != nil {
		return err
	}
	for _, name := range names {
		to := d.dir.Path("profiles", name)
		if _, err := os.Stat(to); err == nil {
			continue
		}
		text, err := fs.ReadFile(profiles.FS, name)
		if err != nil {
			return err
		}
		ours := strings.ReplaceAll(string(text), shippedOCSP, "http://"+d.ports.ocsp+"/")
		if err := os.WriteFile(to, []byte(ours), 0o644); err != nil {
			return err
		}
	}
	return nil
}
