package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisOptions are the choices for StartRedis.
type RedisOptions struct {
	// Throwaway is for tests: no password, nothing on disk.
	Throwaway bool
	// Host is the address to listen on; "" means 127.0.0.1. A throw-away server has no
	// password: keep it off networks.
	Host string
	// Namespace is the file of a network namespace to run in (Linux).
	Namespace string
}

// Redis is a running server.
type Redis struct {
	proc     *Process
	addr     string
	password string
	passFile string
}

// StartRedis starts Redis on the directory's data and returns when it answers.
func StartRedis(ctx context.Context, d *Dir, o RedisOptions) (*Redis, error) {
	server, err := Find("redis-server")
	if err != nil {
		return nil, err
	}
	port, err := d.Port("redis", 0)
	if err != nil {
		return nil, err
	}
	host := cmp.Or(o.Host, "127.0.0.1")
	r := &Redis{addr: net.JoinHostPort(host, strconv.Itoa(port))}
	data := d.Path("redis")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	// At its memory bound Redis refuses writes instead of forgetting answers: the
	// presigner then says so, and nobody's `revoked` is evicted. Answers are hash values of
	// up to 256 octets, which Redis then keeps in its compact form.
	conf := fmt.Sprintf("bind %s\nport %d\ndir %q\nmaxmemory 1gb\nmaxmemory-policy noeviction\nappendonly no\nhash-max-listpack-value 256\n", host, port, data)
	if o.Throwaway {
		conf += "save \"\"\n"
	} else {
		if r.passFile, r.password, err = d.Secret("redis.password"); err != nil {
			return nil, err
		}
		conf += fmt.Sprintf("save 300 1000\nrequirepass %s\n", r.password)
	}
	if err := os.WriteFile(d.Path("redis.conf"), []byte(conf), 0o600); err != nil {
		return nil, err
	}
	log, err := d.Log("redis")
	if err != nil {
		return nil, err
	}
	d.Release("redis")
	if r.proc, err = Start(Command{Name: "redis", Path: server, Args: []string{d.Path("redis.conf")}, Log: log, Namespace: o.Namespace}); err != nil {
		return nil, err
	}
	if err := r.waitReady(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

func (r *Redis) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := redis.NewClient(&redis.Options{Addr: r.addr, Password: r.password, MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	return poll(ctx, "Redis to answer", func() (bool, error) {
		select {
		case <-r.proc.Done():
			return false, r.proc.Err()
		default:
		}
		// go-redis logs every dial that fails, so it is asked once somebody listens.
		conn, err := net.DialTimeout("tcp", r.addr, time.Second)
		if err != nil {
			return false, nil
		}
		return conn.Close() == nil && client.Ping(ctx).Err() == nil, nil
	})
}

// Addr returns host:port.
func (r *Redis) Addr() string { return r.addr }

// PasswordFile returns the file with the password; "" for a throw-away server.
func (r *Redis) PasswordFile() string { return r.passFile }

// Process returns the child process.
func (r *Redis) Process() *Process { return r.proc }

// Stop shuts the server down and waits for it.
func (r *Redis) Stop() error { return r.proc.Stop(syscall.SIGTERM, 20*time.Second) }
