package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// NATSOptions are the choices for StartNATS.
type NATSOptions struct {
	// Throwaway is for tests: no credentials, any port.
	Throwaway bool
	// Forget drops the streams of an earlier start.
	Forget bool
}

// NATS is a server with JetStream inside this process.
type NATS struct {
	server *server.Server
	nkey   string
}

// StartNATS starts the server on the directory's data and returns when it takes
// connections. Unless it is a throw-away server, clients need the nkey of NKeyFile.
func StartNATS(d *Dir, o NATSOptions) (*NATS, error) {
	opts := &server.Options{
		ServerName: "certmill-local", Host: "127.0.0.1", Port: server.RANDOM_PORT,
		JetStream: true, StoreDir: d.Path("nats"),
		JetStreamMaxMemory: 4 << 30, JetStreamMaxStore: 4 << 30,
		NoSigs: true, NoLog: true,
	}
	if o.Forget {
		if err := os.RemoveAll(opts.StoreDir); err != nil {
			return nil, fmt.Errorf("dropping the streams of an earlier start: %w", err)
		}
	}
	n := &NATS{}
	if !o.Throwaway {
		var err error
		if opts.Port, err = d.Port("nats", 0); err != nil {
			return nil, err
		}
		var public string
		if n.nkey, public, err = natsUser(d); err != nil {
			return nil, fmt.Errorf("making the NATS user: %w", err)
		}
		opts.Nkeys = []*server.NkeyUser{{Nkey: public}}
		if opts.LogFile, err = d.Log("nats"); err != nil {
			return nil, err
		}
		opts.NoLog = false
	}
	var err error
	if n.server, err = server.NewServer(opts); err != nil {
		return nil, fmt.Errorf("setting NATS up: %w", err)
	}
	n.server.ConfigureLogger()
	d.Release("nats")
	n.server.Start()
	if !n.server.ReadyForConnections(20*time.Second) || !n.server.JetStreamEnabled() {
		n.Stop()
		return nil, errors.New("NATS with JetStream did not start within 20 s")
	}
	return n, nil
}

// natsUser returns the file with the seed and the public key of the one user.
func natsUser(d *Dir) (file, public string, err error) {
	file, seed, err := d.SecretFrom("nats.nk", func() (string, error) {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return "", err
		}
		seed, err := pair.Seed()
		return string(seed), err
	})
	if err != nil {
		return "", "", err
	}
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", file, err)
	}
	public, err = pair.PublicKey()
	return file, public, err
}

// URL returns nats://host:port.
func (n *NATS) URL() string { return n.server.ClientURL() }

// NKeyFile returns the file with the user's seed; "" for a throw-away server.
func (n *NATS) NKeyFile() string { return n.nkey }

// Clients returns how many clients are connected.
func (n *NATS) Clients() int { return n.server.NumClients() }

// Stop cuts the clients, flushes JetStream and waits for the server's goroutines.
func (n *NATS) Stop() {
	n.server.Shutdown()
	n.server.WaitForShutdown()
}

// RunNATS runs a server by its configuration file, with its log on standard error, until
// ctx ends.
func RunNATS(ctx context.Context, file string) error {
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	opts.NoSigs = true
	s, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("setting NATS up: %w", err)
	}
	s.ConfigureLogger()
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}
