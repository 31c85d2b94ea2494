package dev

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/certmill/certmill/ledger"
)

// migrate brings the ledger's schema up to this program.
func (d *dev) migrate(ctx context.Context) error { return ledger.Migrate(ctx, d.ledger()) }

// signerConfig is the configuration that the ca commands take.
func (d *dev) signerConfig() string { return d.dir.Path("config", "signer-1.yaml") }

// setUpCA makes what is missing: root, issuing CA and OCSP signer in the token, and
// our own certificates. It uses the commands that anybody would, each a process of
// its own, so that no PKCS#11 module is ever loaded into this one.
func (d *dev) setUpCA(ctx context.Context) error {
	out, err := d.command(ctx, "ca", "init", "--config", d.signerConfig(), "--out", d.dir.Path(), "-o", "json")
	if err != nil {
		return err
	}
	var made []struct {
		Name string
		Made bool
	}
	if err := json.Unmarshal(out, &made); err != nil {
		return fmt.Errorf("reading what `ca init` says: %w", err)
	}
	for _, m := range made {
		d.first = d.first || (m.Made && m.Name == "root")
	}
	return d.issueOwn(ctx)
}

// own are the certificates that the service itself needs.
func (d *dev) own() []ownCertificate {
	return []ownCertificate{
		{"gateway", []string{"--profile", "gateway-tls", "--dns", "localhost", "--ip", "127.0.0.1", "--ip", "::1"}},
		{"operator", []string{"--profile", "operator", "--uri", operatorURI()}},
	}
}

// ownCertificate is a certificate in <name>.pem with its key in <name>.key.
type ownCertificate struct {
	name  string
	flags []string
}

// issueOwn issues those of our own certificates that are missing, or past two thirds
// of their life. Key and certificate are swapped in by rename, each at once.
func (d *dev) issueOwn(ctx context.Context) error {
	for _, c := range d.own() {
		if due, err := d.due(c); err != nil || !due {
			if err != nil {
				return err
			}
			continue
		}
		pemNew, keyNew := d.dir.Path(c.name+".pem.new"), d.dir.Path(c.name+".key.new")
		args := append([]string{"ca", "issue", "--config", d.signerConfig(), "--out", pemNew, "--key-out", keyNew, "--force", "-o", "json"}, c.flags...)
		if _, err := d.command(ctx, args...); err != nil {
			return fmt.Errorf("the certificate of the %s: %w", c.name, err)
		}
		if err := errors.Join(os.Rename(keyNew, d.dir.Path(c.name+".key")), os.Rename(pemNew, d.dir.Path(c.name+".pem"))); err != nil {
			return err
		}
	}
	return nil
}

func (d *dev) due(c ownCertificate) (bool, error) {
	cert, err := readCertificate(d.dir.Path(c.name + ".pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	if time.Now().After(cert.NotAfter.Add(-life / 3)) {
		return true, nil
	}
	// Another root means another CA: the token was removed by hand.
	root, err := readCertificate(d.dir.Path("issuing.pem"))
	if err != nil {
		return false, err
	}
	return cert.CheckSignatureFrom(root) != nil, nil
}

// renewOwn looks after our own certificates while ctx lasts. The OCSP signer's is the
// signers' to renew.
func (d *dev) renewOwn(ctx context.Context) {
	for pause(ctx, 6*time.Hour) {
		if err := d.issueOwn(ctx); err != nil && ctx.Err() == nil {
			d.say("renewing the service's own certificates failed, tried again in 6h: %v", err)
		}
	}
}

// command runs our own binary and returns its standard output.
func (d *dev) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.binary, args...)
	cmd.Env = d.environment("")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", d.shown, strings.Join(args[:2], " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// readCertificate reads the first certificate of a PEM file.
func readCertificate(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s does not begin with a certificate in PEM", path)
	}
	return x509.ParseCertificate(block.Bytes)
}
