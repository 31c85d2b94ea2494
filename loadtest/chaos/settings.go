package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/deploy/profiles"
)

// The ports; every node has an address of its own.
const (
	restPort     = "8443"
	grpcPort     = "8444"
	ocspPort     = "8080"
	operatorPort = "9100"
)

// callerURI is the name of the client that makes the load; callerID is what the ledger
// calls it.
const (
	callerURI = "spiffe://certmill.test/operator/chaos"
	callerID  = "mtls:" + callerURI
)

// settings is one YAML file.
type settings map[string]any

// writeSettings writes every role's configuration. Intervals are shorter than a
// production's where a run would otherwise wait for them.
func (s *stack) writeSettings(context.Context) error {
	if err := s.copyProfiles(); err != nil {
		return err
	}
	postgres, err := s.dir.Port("postgresql", 5432)
	if err != nil {
		return err
	}
	redis, err := s.dir.Port("redis", 6379)
	if err != nil {
		return err
	}
	s.dir.Release("postgresql") // remembered, and free for the servers
	s.dir.Release("redis")
	if _, _, err := s.dir.Secret("postgresql.password"); err != nil {
		return err
	}
	if _, _, err := s.dir.Secret("redis.password"); err != nil {
		return err
	}
	ledger := func(connections int) settings {
		return settings{
			"url":           fmt.Sprintf("postgres://certmill@%s:%d/%s?sslmode=disable", s.byName["postgres"].ip, postgres, database),
			"password_file": s.dir.Path("postgresql.password"), "max_connections": connections,
		}
	}
	nats := settings{
		"url": s.natsURL(), "nkey_file": s.dir.Path("nats.nk"), "queue_key_file": s.dir.Path("queue.key"),
		"replicas": 3, "ack_wait": "2s",
	}
	store := settings{"addresses": []string{fmt.Sprintf("%s:%d", s.byName["redis"].ip, redis)}, "password_file": s.dir.Path("redis.password")}
	tokens := []settings{{"module": s.hsm.Module, "token_label": s.token.Label, "pin_file": s.token.PINFile}}
	common := map[string]settings{
		"maintenance": {"ledger": ledger(2)},
		"responder":   {"redis": store, "shutdown_delay": "1s"},
		"presigner":   {"redis": store, "nats": nats, "ledger": ledger(4), "tokens": tokens, "lease": "3s", "health_poll": "1s"},
		"signer": {"tokens": tokens, "profiles_dir": s.dir.Path("profiles"), "state_dir": s.dir.Path("state"),
			"nats": nats, "ledger": ledger(8), "issuer_refresh": "1s", "epoch_report_interval": "2s", "commit_timeout": "5s",
			"audit": settings{"interval": "1s", "heartbeat": "10s"}},
		"gateway": {
			"tls":       settings{"cert_file": s.dir.Path("gateway.pem"), "key_file": s.dir.Path("gateway.key")},
			"operators": []settings{{"match": callerID, "roles": []string{"admin"}}}, "profiles_dir": s.dir.Path("profiles"),
			"nats": nats, "ledger": ledger(8), "issuer_refresh": "1s",
			"limits": settings{"shutdown_delay": "1s"},
			"orders": settings{"sweep_interval": "1s", "stale_after": "3s"},
		},
	}
	commands := map[string][]string{
		"maintenance": {"ledger", "maintain", "--every"}, "responder": {"ocsp", "responder"}, "presigner": {"ocsp", "presigner"},
		"signer": {"signer"}, "gateway": {"gateway"},
	}
	var errs []error
	for role, base := range common {
		nodes := s.of(role)
		if role == "signer" {
			nodes = append(nodes, s.byName[spare])
		}
		for _, n := range nodes {
			own := maps.Clone(base)
			n.operator = net.JoinHostPort(n.ip, operatorPort)
			own["telemetry"] = settings{"listen": n.operator}
			switch role {
			case "signer", "presigner":
				own["name"] = n.name
			case "responder":
				own["listen"] = net.JoinHostPort(n.ip, ocspPort)
			case "gateway":
				own["listen"], own["grpc_listen"] = net.JoinHostPort(n.ip, restPort), net.JoinHostPort(n.ip, grpcPort)
			}
			s.settings[n.name] = own
			n.start = s.role(n, commands[role]...)
			errs = append(errs, s.write(n.name))
		}
	}
	return errors.Join(errs...)
}

// write writes the configuration of a node as it stands.
func (s *stack) write(node string) error {
	data, err := yaml.Marshal(s.settings[node])
	if err != nil {
		return err
	}
	return os.WriteFile(s.dir.Path("config", node+".yaml"), data, 0o600)
}

func (s *stack) copyProfiles() error {
	if err := errors.Join(os.MkdirAll(s.dir.Path("profiles"), 0o755), os.MkdirAll(s.dir.Path("config"), 0o700)); err != nil {
		return err
	}
	names, err := fs.Glob(profiles.FS, "*.yaml")
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := fs.ReadFile(profiles.FS, name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.dir.Path("profiles", name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
