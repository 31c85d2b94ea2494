package ocsp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/certmill/certmill/internal/config"
)

// quiet takes the library's own lines on stderr, one for every failed dial: what fails
// comes back as an error and is logged once by whoever asked.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var silence = sync.OnceFunc(func() { redis.SetLogger(quiet{}) })

// connect makes a client for one server, Sentinel or Cluster, whichever cfg
// describes. It reads the secret and certificate files and opens no connection.
func connect(cfg config.Redis) (redis.UniversalClient, error) {
	silence()
	options := &redis.UniversalOptions{
		Addrs:                 cfg.Addresses,
		MasterName:            cfg.MasterName,
		Username:              cfg.Username,
		PoolSize:              cfg.PoolSize,
		ClientName:            "certmill",
		Protocol:              2, // in RESP3 HGETALL is a map, which EachRecord does not want
		ContextTimeoutEnabled: true,
		DialTimeout:           time.Second,
		DialerRetries:         1, // a Redis that is down must be known at once
		ReadTimeout:           time.Second,
		WriteTimeout:          time.Second,
		MaxRetries:            1,
	}
	if cfg.PasswordFile != "" {
		secret, err := os.ReadFile(cfg.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("redis.password_file: %w", err)
		}
		options.Password = strings.TrimSpace(string(secret))
	}
	if cfg.CAFile != "" {
		var err error
		if options.TLSConfig, err = tlsConfig(cfg); err != nil {
			return nil, err
		}
	}
	return redis.NewUniversalClient(options), nil
}

func tlsConfig(cfg config.Redis) (*tls.Config, error) {
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("redis.ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("redis.ca_file: no certificate in %s", cfg.CAFile)
	}
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cfg.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("redis.cert_file and redis.key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// ValidateRedis reports what is wrong with the section "redis".
func ValidateRedis(cfg config.Redis) error {
	var errs []error
	if len(cfg.Addresses) == 0 {
		errs = append(errs, errors.New("redis.addresses is missing"))
	}
	if (cfg.CertFile == "") != (cfg.KeyFile == "") {
		errs = append(errs, errors.New("redis.cert_file and redis.key_file go together"))
	}
	if cfg.CertFile != "" && cfg.CAFile == "" {
		errs = append(errs, errors.New("redis.ca_file is missing: it switches TLS on"))
	}
	if cfg.PoolSize < 0 {
		errs = append(errs, errors.New("redis.pool_size must not be negative"))
	}
	return errors.Join(errs...)
}
