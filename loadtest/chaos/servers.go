package chaos

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/nats-io/nkeys"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/internal/config"
)

const database = "certmill"

// prepareServers says how PostgreSQL, Redis and the NATS nodes are started.
func (s *stack) prepareServers(ctx context.Context) (err error) {
	if s.hsm, err = local.OpenSoftHSM(s.dir); err != nil {
		return err
	}
	if s.token, err = s.hsm.Token(ctx, "chaos"); err != nil {
		return err
	}
	if _, _, err := s.dir.SecretFrom("queue.key", func() (string, error) {
		var b [32]byte
		_, err := rand.Read(b[:])
		return hex.EncodeToString(b[:]), err
	}); err != nil {
		return err
	}
	if !s.net.plain {
		if err := os.MkdirAll(s.dir.Path("pg"), 0o755); err != nil {
			return err
		}
		if err := mountTmpfs(s.dir.Path("pg"), ledgerSize); err != nil {
			return err
		}
	}
	s.startPostgres()
	redis := s.byName["redis"]
	redis.start = func(ctx context.Context) (*local.Process, error) {
		r, err := local.StartRedis(ctx, s.dir, local.RedisOptions{Host: redis.ip, Namespace: redis.namespace})
		if err != nil {
			return nil, err
		}
		return r.Process(), nil
	}
	return s.prepareNATS()
}

func (s *stack) startPostgres() {
	n := s.byName["postgres"]
	n.start = func(ctx context.Context) (*local.Process, error) {
		// Small, so that its log does not fill the disk by itself.
		p, err := local.StartPostgreSQL(ctx, s.dir, local.PostgreSQLOptions{Host: n.ip, Namespace: n.namespace, Settings: []string{
			"max_wal_size=64MB", "min_wal_size=32MB", "shared_buffers=32MB", "checkpoint_timeout=30s",
		}})
		if err != nil {
			return nil, err
		}
		s.database = config.Ledger{URL: p.URL(database), PasswordFile: p.PasswordFile()}
		return p.Process(), p.CreateDatabase(ctx, database)
	}
}

const (
	natsPort  = "4222"
	routePort = "6222"
)

func (s *stack) natsURL() string {
	var urls []string
	for _, n := range s.of("nats") {
		urls = append(urls, "nats://"+net.JoinHostPort(n.ip, natsPort))
	}
	return strings.Join(urls, ",")
}

// prepareNATS writes the configuration of a cluster of three.
func (s *stack) prepareNATS() error {
	_, seed, err := s.dir.SecretFrom("nats.nk", func() (string, error) {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return "", err
		}
		seed, err := pair.Seed()
		return string(seed), err
	})
	if err != nil {
		return err
	}
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return err
	}
	user, err := pair.PublicKey()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir.Path("config"), 0o700); err != nil {
		return err
	}
	var routes []string
	for _, n := range s.of("nats") {
		routes = append(routes, "nats://"+net.JoinHostPort(n.ip, routePort))
	}
	var errs []error
	for _, n := range s.of("nats") {
		text := fmt.Sprintf("server_name: %q\nlisten: %q\njetstream { store_dir: %q, max_mem: 64MB, max_file: 2GB }\n"+
			"cluster { name: chaos, listen: %q, routes: [ \"%s\" ] }\nauthorization { users: [ { nkey: %s } ] }\nping_interval: \"5s\"\n",
			n.name, net.JoinHostPort(n.ip, natsPort), s.dir.Path("nats", n.name),
			net.JoinHostPort(n.ip, routePort), strings.Join(routes, `", "`), user)
		file := s.dir.Path("config", n.name+".conf")
		errs = append(errs, os.WriteFile(file, []byte(text), 0o600))
		n.start = func(context.Context) (*local.Process, error) {
			log, err := s.dir.Log(n.name)
			if err != nil {
				return nil, err
			}
			return local.Start(local.Command{Name: n.name, Path: s.binary, Args: []string{"chaos", "nats-node", file}, Env: s.environment(n.name), Log: log, OnDeath: syscall.SIGKILL, Namespace: n.namespace})
		}
	}
	return errors.Join(errs...)
}
