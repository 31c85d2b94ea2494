package secrets

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"
)

// Spec says what a deployment looks like to its secrets.
type Spec struct {
	// Hosts are the names and addresses under which each server is reached; they stand
	// in its certificate. "*.example.com" covers one label.
	Hosts Hosts `yaml:"hosts"`
	// Issuers are the names of the issuers that a NATS user may serve; empty means any.
	Issuers []string `yaml:"issuers"`
	// Namespace is the first part of every key in Redis, as presigners and responders
	// have it in theirs.
	Namespace string `yaml:"namespace"`
	// Lifetime is how long the internal certificates are valid. They are renewed by the
	// first run after two thirds of it.
	Lifetime time.Duration `yaml:"lifetime"`
	// CALifetime is how long an internal CA is valid: rotate before its end.
	CALifetime time.Duration `yaml:"ca_lifetime"`
}

// Hosts are the names and addresses of the servers between the roles.
type Hosts struct {
	NATS   []string `yaml:"nats"`
	Redis  []string `yaml:"redis"`
	Ledger []string `yaml:"ledger"`
}

const day = 24 * time.Hour

// loopback stands in every server's certificate: health checks and one machine.
var loopback = []string{"localhost", "127.0.0.1", "::1"}

// DefaultSpec returns the names that deploy/compose and deploy/helm use.
func DefaultSpec() Spec {
	return Spec{
		Hosts: Hosts{
			NATS:   []string{"nats-1", "nats-2", "nats-3", "nats"},
			Redis:  []string{"redis-1", "redis-2", "redis"},
			Ledger: []string{"ledger-1", "ledger-2", "ledger-3", "ledger"},
		},
		Namespace: "certmill", Lifetime: 90 * day, CALifetime: 5 * 365 * day,
	}
}

var (
	hostForm      = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	issuerForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	namespaceForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,32}$`)
)

// Validate reports everything that is wrong, with the keys' names.
func (s Spec) Validate() error {
	var errs []error
	for _, h := range []struct {
		key   string
		names []string
	}{{"nats", s.Hosts.NATS}, {"redis", s.Hosts.Redis}, {"ledger", s.Hosts.Ledger}} {
		for _, name := range h.names {
			if net.ParseIP(name) == nil && (!hostForm.MatchString(name) || len(name) > 253) {
				errs = append(errs, fmt.Errorf("hosts.%s: %q is neither a host's name nor an address; a port has no place here", h.key, name))
			}
		}
	}
	for _, name := range s.Issuers {
		if !issuerForm.MatchString(name) {
			errs = append(errs, fmt.Errorf("issuers: %q is not 1 to 63 of a-z, 0-9 and -", name))
		}
	}
	if !namespaceForm.MatchString(s.Namespace) {
		errs = append(errs, errors.New("namespace must be 1 to 32 letters, digits, '.', '_' or '-'"))
	}
	if s.Lifetime < time.Hour || s.Lifetime > 825*day {
		errs = append(errs, fmt.Errorf("lifetime must be 1h to 19800h, not %s", s.Lifetime))
	}
	if s.CALifetime < 2*s.Lifetime {
		errs = append(errs, errors.New("ca_lifetime must be at least twice lifetime"))
	}
	return errors.Join(errs...)
}

// issuerTokens returns what stands for the issuer in a subject.
func (s Spec) issuerTokens() []string {
	if len(s.Issuers) == 0 {
		return []string{"*"}
	}
	return s.Issuers
}

// namesOf returns a server's names with those of loopback, each once.
func namesOf(hosts []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, h := range append(append([]string{}, hosts...), loopback...) {
		if h = strings.ToLower(h); !seen[h] {
			seen[h] = true
			out = append(out, h)
		}
	}
	return out
}
