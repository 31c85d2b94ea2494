package loadtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/internal/sysmon"
	"github.com/certmill/certmill/loadtest/floor"
	"github.com/certmill/certmill/loadtest/target"
)

// floorStatuses is how many OCSP answers such a server holds; tests make do with fewer.
var floorStatuses = 20_000

// floorReady is what `loadtest floor` prints when it listens.
type floorReady struct {
	URL string `json:"url"`
	Dir string `json:"dir"`
}

func floorCommand() *cobra.Command {
	cfg, withInput := floor.Config{}, false
	c := &cobra.Command{
		Use:   "floor",
		Short: "Serve the yardstick: the least that a Go server can do for a certificate",
		Long: `Serve the yardstick: net/http over TLS, a CSR parsed and its signature checked, a
signature by a P-256 key in memory with x509.CreateCertificate, nothing stored. With
--statuses also OCSP answers from a map.

It speaks certmill's POST /v1/certificates, so the target "rest" puts it under load;
the target "floor" starts it by itself. The folder gets ca.pem, client.pem and
client.key for clients, and with --statuses issuer.pem and serials.txt.`,
		Example: `  certmill loadtest floor --dir /tmp/floor
  certmill loadtest run --url https://127.0.0.1:8553 --ca /tmp/floor/ca.pem --rate 500`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serveFloor(c, cfg, withInput) },
	}
	f := c.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8553", "address; port 0 takes a free one")
	f.StringVar(&cfg.Dir, "dir", "", "folder for what clients need (default: a temporary one, removed at the end)")
	f.DurationVar(&cfg.Lifetime, "lifetime", 24*time.Hour, "lifetime of the certificates")
	f.BoolVar(&cfg.ClientAuth, "client-auth", false, "require a client certificate")
	f.BoolVar(&cfg.Plain, "plain", false, "HTTP without TLS, as OCSP responders have it")
	f.IntVar(&cfg.Statuses, "statuses", 0, "OCSP answers to hold")
	f.BoolVar(&withInput, "end-with-input", false, "end when the standard input does: with whoever started it, however that ended")
	return c
}

func serveFloor(c *cobra.Command, cfg floor.Config, withInput bool) error {
	ctx, stop := context.WithCancel(c.Context())
	defer stop()
	if withInput {
		go func() {
			defer stop()
			_, _ = io.Copy(io.Discard, c.InOrStdin()) // its end is all that counts
		}()
	}
	if cfg.Statuses < 0 || cfg.Statuses > floor.MaxStatuses {
		return usage(fmt.Errorf("--statuses is 0 to %d", floor.MaxStatuses))
	}
	if cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "certmill-floor-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		cfg.Dir = dir
	} else if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	s, err := floor.Open(ctx, cfg)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(c.OutOrStdout()).Encode(floorReady{URL: s.URL(), Dir: cfg.Dir}); err != nil {
		return errors.Join(err, s.Close())
	}
	return s.Run(ctx)
}

// floorProgram returns the command line that serves a floor: this program's own.
// Tests put their binary in its place.
var floorProgram = func() ([]string, error) {
	path, err := os.Executable()
	return []string{path, "loadtest", "floor"}, err
}

// startFloor starts a floor server in a process of its own, so that its CPU is not the
// generator's, and fills in where it is.
func (s *session) startFloor(ctx context.Context) error {
	o := s.o
	args, err := floorProgram()
	if err != nil {
		return err
	}
	args = append(args, "--listen", "127.0.0.1:0", "--end-with-input")
	if s.kind.Subject == target.Statuses {
		args = append(args, "--plain", "--statuses", fmt.Sprint(floorStatuses))
	} else {
		args = append(args, "--client-auth")
	}
	cmd := exec.Command(args[0], args[1:]...) // not CommandContext: it is asked to end, after the last request
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the terminal's Ctrl-C is for us
	if s.quiet {
		cmd.Env = append(os.Environ(), sysmon.Environment+"=1")
	}
	if _, err := cmd.StdinPipe(); err != nil { // nothing is written: it ends with this process
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the floor: %w", err)
	}
	var ready floorReady
	// It removes its folder itself, unless it had to be killed.
	s.closers = append(s.closers, func() error { return os.RemoveAll(ready.Dir) }, func() error { return endChild(cmd) })
	if runtime.GOOS == "linux" {
		o.tree = cmd.Process.Pid
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the floor did not start: %w", err)
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		return fmt.Errorf("the floor did not start: %w", err)
	}
	in := func(name string) string { return filepath.Join(ready.Dir, name) }
	o.server.URL, o.server.CAFile = ready.URL, in("ca.pem")
	if s.kind.Subject == target.Statuses {
		o.serials, o.issuer = in("serials.txt"), in("issuer.pem")
	} else {
		o.roots, o.server.CertFile, o.server.KeyFile = o.server.CAFile, in("client.pem"), in("client.key")
	}
	return nil
}

// endChild asks a process to end and waits for it.
func endChild(cmd *exec.Cmd) error {
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}
