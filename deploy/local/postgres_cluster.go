package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// initialise makes the database cluster unless it is there. It is made aside and
// renamed, so that an interrupted initdb is made again.
func (p *PostgreSQL) initialise(ctx context.Context, initdb, data string, cred *syscall.Credential) error {
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		return nil
	}
	fresh := data + ".new"
	if err := errors.Join(os.RemoveAll(fresh), makeOwned(fresh, cred)); err != nil {
		return err
	}
	args := []string{"-D", fresh, "-U", p.superuser(), "--encoding=UTF8", "--locale=C", "--auth=trust"}
	if p.throwaway {
		args = append(args, "--no-sync")
	}
	if !p.throwaway && p.secure == nil {
		pwfile := data + ".pw"
		if err := os.WriteFile(pwfile, []byte(p.password), 0o600); err != nil {
			return err
		}
		defer os.Remove(pwfile)
		if cred != nil {
			if err := os.Chown(pwfile, int(cred.Uid), int(cred.Gid)); err != nil {
				return err
			}
		}
		args[len(args)-1] = "--auth=scram-sha-256"
		args = append(args, "--pwfile="+pwfile)
	}
	cmd := exec.CommandContext(ctx, initdb, args...)
	cmd.Dir, cmd.Env = "/", minimalEnv()
	cmd.SysProcAttr = attributes(syscall.SIGTERM, cred)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making the PostgreSQL cluster in %s: %w\n%s", data, err, out)
	}
	if p.host != "127.0.0.1" {
		if err := admit(filepath.Join(fresh, "pg_hba.conf")); err != nil {
			return err
		}
	}
	if err := os.Remove(data); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(fresh, data)
}

// admit lets who has the password in from everywhere.
func admit(hba string) error {
	f, err := os.OpenFile(hba, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("host all all all scram-sha-256\n")
	return errors.Join(err, f.Close())
}

// makeWALAhead makes WALAhead true where less than half of it is there. It goes through
// files that hold nothing, and frees them: PostgreSQL renames them to those that come next.
func (p *PostgreSQL) makeWALAhead(ctx context.Context) error {
	if p.walAhead == 0 {
		return nil
	}
	if free, err := room(p.data); err != nil || free < 8*p.walAhead {
		return err
	}
	conn, err := p.connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	const segment = 16 << 20 // wal_segment_size, as initdb has it
	ahead, err := walFilesAhead(ctx, conn)
	if err != nil {
		return err
	}
	if 2*ahead*segment >= p.walAhead {
		return nil
	}
	for range p.walAhead / segment {
		// A file without a record is not switched from.
		if _, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(false, 'certmill', 'made ahead'), pg_switch_wal()"); err != nil {
			return fmt.Errorf("making PostgreSQL's log files: %w", err)
		}
	}
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("freeing PostgreSQL's log files: %w", err)
	}
	return nil
}

// walFilesAhead returns how many log files there are that have not been written to.
func walFilesAhead(ctx context.Context, conn *pgx.Conn) (n int64, err error) {
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_ls_waldir() WHERE name > pg_walfile_name(pg_current_wal_lsn())").Scan(&n); err != nil {
		return 0, fmt.Errorf("counting PostgreSQL's log files: %w", err)
	}
	return n, nil
}

// serverCredential returns whom to run PostgreSQL as: nil unless we are root.
func serverCredential() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root and there is no user postgres or nobody: run this as an ordinary user")
}

// postgresDir returns where the cluster lies: in the data directory, or, where the
// server's user cannot reach that (root's home has mode 0700), under /var/lib/certmill
// with a link from the data directory.
func postgresDir(d *Dir, cred *syscall.Credential) (string, error) {
	link := d.Path("postgresql")
	if cred == nil {
		return link, nil
	}
	if target, err := os.Readlink(link); err == nil {
		return target, os.MkdirAll(filepath.Dir(target), 0o711)
	}
	if reachable(d.Path()) {
		parent := d.Path("pg")
		return filepath.Join(parent, "data"), makeOwned(parent, cred)
	}
	sum := sha256.Sum256([]byte(d.Path()))
	parent := filepath.Join("/var/lib/certmill", hex.EncodeToString(sum[:8]))
	if err := errors.Join(os.MkdirAll("/var/lib/certmill", 0o711), makeOwned(parent, cred)); err != nil {
		return "", err
	}
	target := filepath.Join(parent, "data")
	return target, os.Symlink(target, link)
}

// reachable reports whether others may pass through every folder on the way.
func reachable(path string) bool {
	for ; path != "/"; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
	}
	return true
}

func makeOwned(path string, cred *syscall.Credential) error {
	if err := os.MkdirAll(path, 0o700); err != nil || cred == nil {
		return err
	}
	return os.Chown(path, int(cred.Uid), int(cred.Gid))
}
