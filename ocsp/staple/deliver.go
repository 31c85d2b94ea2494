package staple

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// write puts a staple into its file: whole or not at all, and durably, since a proxy
// may start from it after a crash. It keeps the mode of a file that is there. It
// reports whether the file has changed.
func write(path string, der []byte) (changed bool, err error) {
	if there, err := readBounded(path, maxStapleBytes); err == nil && bytes.Equal(there, der) {
		return false, nil
	}
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(der)
	if err := errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return false, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return false, err
	}
	return true, syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// updated is how HAProxy begins its answer to a staple that it has taken.
const updated = "OCSP Response updated!"

// push hands a staple to the HAProxy behind a runtime socket.
func push(ctx context.Context, socket string, der []byte) error {
	network := "tcp"
	if strings.HasPrefix(socket, "/") || strings.HasPrefix(socket, ".") {
		network = "unix"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, socket)
	if err != nil {
		return fmt.Errorf("HAProxy's socket: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(conn, "set ssl ocsp-response %s\n", base64.StdEncoding.EncodeToString(der)); err != nil {
		return fmt.Errorf("HAProxy's socket %s: %w", socket, err)
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 4<<10))
	if err != nil {
		return fmt.Errorf("HAProxy's socket %s: %w", socket, err)
	}
	if !strings.HasPrefix(string(answer), updated) {
		return fmt.Errorf("HAProxy at %s has not taken the staple: %s", socket, strings.TrimSpace(string(answer)))
	}
	return nil
}

// reload runs the command that has proxies read their files again.
func reload(ctx context.Context, command []string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // the operator's own command
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("the reload command %s: %w: %s", command[0], err, bytes.TrimSpace(out[:min(len(out), 500)]))
	}
	return nil
}
