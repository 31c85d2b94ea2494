package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	postgresUser = "certmill"
	// startTimeout bounds the start of a server, crash recovery included.
	startTimeout = 60 * time.Second
)

// PostgreSQLOptions are the choices for StartPostgreSQL.
type PostgreSQLOptions struct {
	// Throwaway is for tests: no fsync, no password, shutdown at once. A crash of the
	// machine loses the data.
	Throwaway bool
	// Secure takes TLS connections alone, from users with a client certificate, as a
	// deployment's ledger does. The superuser is then "root".
	Secure *SecurePostgreSQL
	// Host is the address to listen on; "" means 127.0.0.1. Who asks from elsewhere
	// needs the password too.
	Host string
	// Namespace is the file of a network namespace to run in (Linux).
	Namespace string
	// Settings are further settings of the server, "name=value".
	Settings []string
	// WALAhead is how many octets of log (WAL) the server is to have files for at its
	// start, before it needs them; later it keeps as much of what it has used. A commit
	// that needs a new file waits until its 16 MB are written and synced, and all others
	// wait with it. A disk with less than eight times as much room is left alone.
	WALAhead int64
}

// SecurePostgreSQL says what a server with TLS is given.
type SecurePostgreSQL struct {
	// Server is the folder with the server's ca.pem, tls.pem and tls.key, Root that of
	// its superuser.
	Server, Root string
	// Config and HBA are files to use: settings beside the defaults, and who may connect.
	Config, HBA string
}

// PostgreSQL is a running server whose superuser is "certmill", or "root" where it is
// secure.
type PostgreSQL struct {
	secure    *SecurePostgreSQL
	proc      *Process
	port      int
	password  string
	passFile  string
	throwaway bool
	host      string
	settings  []string
	walAhead  int64
	data      string              // its data directory
	cred      *syscall.Credential // who owns that; nil for us
}

// StartPostgreSQL starts PostgreSQL on the directory's data and returns when it
// takes connections. On first use it makes the database cluster. As root it runs the
// server as the user postgres (or nobody), since PostgreSQL refuses to be root.
func StartPostgreSQL(ctx context.Context, d *Dir, o PostgreSQLOptions) (*PostgreSQL, error) {
	initdb, err := Find("initdb")
	if err != nil {
		return nil, err
	}
	server := filepath.Join(filepath.Dir(initdb), "postgres")
	if _, err := os.Stat(server); err != nil {
		return nil, &MissingError{Program: "postgres", Package: packages["postgres"]}
	}
	cred, err := serverCredential()
	if err != nil {
		return nil, err
	}
	p := &PostgreSQL{throwaway: o.Throwaway, secure: o.Secure, host: cmp.Or(o.Host, "127.0.0.1"), settings: o.Settings, walAhead: o.WALAhead}
	if !o.Throwaway && o.Secure == nil {
		if p.passFile, p.password, err = d.Secret("postgresql.password"); err != nil {
			return nil, err
		}
	}
	data, err := postgresDir(d, cred)
	if err != nil {
		return nil, err
	}
	p.data, p.cred = data, cred
	if err := p.initialise(ctx, initdb, data, cred); err != nil {
		return nil, err
	}
	if err := waitForPredecessor(ctx, data); err != nil {
		return nil, err
	}
	if err := p.installSecrets(); err != nil {
		return nil, err
	}
	if p.port, err = d.Port("postgresql", 0); err != nil {
		return nil, err
	}
	log, err := d.Log("postgresql")
	if err != nil {
		return nil, err
	}
	// SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one.
	onDeath := syscall.SIGINT
	if o.Throwaway {
		onDeath = syscall.SIGQUIT
	}
	d.Release("postgresql")
	p.proc, err = Start(Command{Name: "postgresql", Path: server, Args: p.arguments(data), Log: log, OnDeath: onDeath, Credential: cred, Namespace: o.Namespace})
	if err != nil {
		return nil, err
	}
	err = p.waitReady(ctx)
	if err == nil {
		err = p.makeWALAhead(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func (p *PostgreSQL) arguments(data string) []string {
	set := []string{
		"listen_addresses=" + p.host, "port=" + strconv.Itoa(p.port), "unix_socket_directories=",
		"max_connections=200", fmt.Sprintf("shared_buffers=%dMB", sharedBuffers(totalMemory())>>20), "max_wal_size=8GB",
		// Random keys touch a fresh page with most rows: full-page images are most of
		// the WAL, and compressing them is what keeps big tables fast.
		"wal_compression=lz4", "checkpoint_timeout=15min", "jit=off",
	}
	if p.walAhead > 0 {
		set = append(set, fmt.Sprintf("min_wal_size=%dMB", p.walAhead>>20))
	}
	if p.throwaway {
		set = append(set, "fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=64MB")
	}
	if p.secure != nil {
		set = append(set, "hba_file="+filepath.Join(data, "secure.hba"))
	}
	args := []string{"-D", data}
	for _, s := range append(set, p.settings...) {
		args = append(args, "-c", s)
	}
	return args
}

// sharedBuffers is an eighth of the machine's memory within bounds: random keys touch
// pages all over the indexes, and below ten million certificates these then stay in
// PostgreSQL's own memory. It is taken as it is used. 0 stands for a machine that does
// not tell.
func sharedBuffers(memory int64) int64 { return min(max(memory/8, 256<<20), 4<<30) }

// totalMemory reads MemTotal of proc(5); 0 where there is none.
func totalMemory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err == nil {
				return kb << 10
			}
		}
	}
	return 0
}

// superuser returns the name of the user who may do everything.
func (p *PostgreSQL) superuser() string {
	if p.secure != nil {
		return "root"
	}
	return postgresUser
}

// installSecrets copies a secure server's files into its data directory, where its
// user can read them.
func (p *PostgreSQL) installSecrets() error {
	if p.secure == nil {
		return nil
	}
	for from, to := range map[string]string{
		filepath.Join(p.secure.Server, "ca.pem"):  "ca.pem",
		filepath.Join(p.secure.Server, "tls.pem"): "tls.pem",
		filepath.Join(p.secure.Server, "tls.key"): "tls.key",
		p.secure.HBA:    "secure.hba",
		p.secure.Config: "postgresql.auto.conf",
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to = filepath.Join(p.data, to)
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return err
		}
		if p.cred != nil {
			if err := os.Chown(to, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reload has a secure server read its certificate and its CAs again, as they are in its
// folder now. Connections that stand go on.
func (p *PostgreSQL) Reload() error {
	if err := p.installSecrets(); err != nil {
		return err
	}
	return p.proc.Signal(syscall.SIGHUP)
}

// waitForPredecessor waits for a server of an earlier start that is still shutting down.
func waitForPredecessor(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return poll(ctx, "an earlier PostgreSQL on this data to stop", func() (bool, error) {
		text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		if err != nil {
			return true, nil
		}
		line, _, _ := strings.Cut(string(text), "\n")
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || pid <= 0 {
			return true, nil
		}
		// After a crash of the machine the number may be another program's.
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err != nil || filepath.Base(exe) != "postgres", nil
	})
}

func (p *PostgreSQL) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return poll(ctx, "PostgreSQL to take connections", func() (bool, error) {
		select {
		case <-p.proc.Done():
			return false, p.proc.Err()
		default:
		}
		conn, err := p.connect(ctx, "postgres")
		if err != nil {
			return false, nil
		}
		return true, conn.Close(ctx)
	})
}

func (p *PostgreSQL) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(p.URL(database))
	if err != nil {
		return nil, err
	}
	cfg.Password = p.password
	cfg.ConnectTimeout = 5 * time.Second
	return pgx.ConnectConfig(ctx, cfg)
}

// Port returns the TCP port on 127.0.0.1.
func (p *PostgreSQL) Port() int { return p.port }

// URL returns the superuser's connection string of a database, without a password.
func (p *PostgreSQL) URL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User(p.superuser()), Host: net.JoinHostPort(p.host, strconv.Itoa(p.port)),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	if p.secure != nil {
		u.RawQuery = url.Values{
			"sslmode": {"verify-full"}, "sslrootcert": {filepath.Join(p.secure.Root, "ca.pem")},
			"sslcert": {filepath.Join(p.secure.Root, "tls.pem")}, "sslkey": {filepath.Join(p.secure.Root, "tls.key")},
		}.Encode()
	}
	return u.String()
}

// PasswordFile returns the file with the password; "" for a throw-away server.
func (p *PostgreSQL) PasswordFile() string { return p.passFile }

// Tables returns the folder with the files of a database's tables and indexes.
func (p *PostgreSQL) Tables(ctx context.Context, database string) (string, error) {
	conn, err := p.connect(ctx, database)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var oid string
	if err := conn.QueryRow(ctx, "SELECT oid::text FROM pg_database WHERE datname = current_database()").Scan(&oid); err != nil {
		return "", fmt.Errorf("the folder of database %s: %w", database, err)
	}
	return filepath.Join(p.data, "base", oid), nil
}

// Process returns the child process.
func (p *PostgreSQL) Process() *Process { return p.proc }

// CreateDatabase makes a database unless it exists.
func (p *PostgreSQL) CreateDatabase(ctx context.Context, name string) error {
	conn, err := p.connect(ctx, "postgres")
	if err != nil {
		return fmt.Errorf("creating database %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil || exists {
		return err
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("creating database %s: %w", name, err)
	}
	return nil
}

// DropDatabase drops a database, cutting its connections.
func (p *PostgreSQL) DropDatabase(ctx context.Context, name string) error {
	conn, err := p.connect(ctx, "postgres")
	if err != nil {
		return fmt.Errorf("dropping database %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	return err
}

// Stop shuts the server down and waits for it. Open connections are cut.
func (p *PostgreSQL) Stop() error {
	if p.throwaway {
		return p.proc.Stop(syscall.SIGQUIT, 10*time.Second)
	}
	return p.proc.Stop(syscall.SIGINT, 30*time.Second)
}

// poll asks until done, an error, or the end of ctx.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
