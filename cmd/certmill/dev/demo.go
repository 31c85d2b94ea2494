package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/certmill/certmill/deploy/local"
)

// act is one step of the demo: a command as a person would type it, and what its
// output must hold.
type act struct {
	title   string
	command string // run by sh, after it has been shown
	want    string
	// within is how long the wanted output may take to come: the command is repeated.
	within time.Duration
}

// demo shows the main job with the tools that a person has: a CSR by openssl, a
// certificate, its verification, OCSP, revocation, OCSP again, the ledger's row.
func (d *dev) demo(ctx context.Context) error {
	if _, err := local.Find("openssl"); err != nil {
		return &StepError{"the demo", &local.MissingError{Program: "openssl", Package: "openssl"}}
	}
	folder := d.path("demo")
	// Made anew each time: the demo's own key is the only thing in it.
	if err := errors.Join(os.RemoveAll(folder), os.MkdirAll(folder, 0o700)); err != nil {
		return err
	}
	for i, a := range d.acts(folder) {
		d.say("\n%d. %s", i+1, a.title)
		d.say("$ %s", a.command)
		if err := d.perform(ctx, a); err != nil {
			return &StepError{fmt.Sprintf("demo step %d, %s", i+1, a.title), err}
		}
	}
	d.say("\nThe demo is done: every step gave what it had to.")
	return nil
}

func (d *dev) acts(folder string) []act {
	in := func(name string) string { return filepath.Join(folder, name) }
	root, issuing, reach := d.path("root.pem"), d.path("issuing.pem"), d.reach()
	ocsp := fmt.Sprintf("openssl ocsp -issuer %s -cert %s -url http://%s/ -CAfile %s -no_nonce", issuing, in("leaf.pem"), d.ports.ocsp, root)
	return []act{
		{title: "The CA: root, issuing CA and OCSP signer, their keys in the HSM token", command: d.shown + " ca show --config " + d.path("config", "signer-1.yaml"), want: "pkcs11:"},
		{title: "A key and a CSR, by openssl", command: "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout " + in("leaf.key") +
			" -subj / -addext subjectAltName=DNS:demo.test -out " + in("leaf.csr") + " && openssl req -in " + in("leaf.csr") + " -noout -verify", want: "OK"},
		{title: "The certificate", command: d.shown + " issue --profile server --csr " + in("leaf.csr") + " --out " + in("leaf.pem") + reach, want: "dns:demo.test"},
		{title: "Verified by openssl against the root", command: "openssl verify -CAfile " + root + " -untrusted " + in("leaf.pem") + " " + in("leaf.pem"), want: ": OK"},
		{title: "Its OCSP status", command: ocsp, want: ": good", within: 10 * time.Second},
		{title: "Revoked", command: d.shown + " revoke " + in("leaf.pem") + " --reason superseded --comment demo" + reach, want: "superseded"},
		{title: "Its OCSP status again", command: ocsp, want: ": revoked", within: 5 * time.Second},
		{title: "The ledger's row", command: d.shown + " inspect " + in("leaf.pem") + reach, want: "REVOKED"},
	}
}

// perform runs the command until its output holds what it must, or time is up.
func (d *dev) perform(ctx context.Context, a act) error {
	began := time.Now()
	for {
		out, err := d.shell(ctx, a.command)
		holds := err == nil && strings.Contains(out, a.want)
		if holds || time.Since(began) >= a.within || ctx.Err() != nil {
			d.print(out)
			if err == nil && !holds {
				err = fmt.Errorf("%q is not in the output", a.want)
			}
			return err
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (d *dev) shell(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Env = append(d.environment(""), "CERTMILL_CONTEXT="+d.dir.Path("cli.yaml"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// firstCertificate issues one certificate, checks it and shows it.
func (d *dev) firstCertificate(ctx context.Context) error {
	d.say("\nThe first certificate:")
	leaf := d.path("first.pem")
	// --force: a start that was broken off may have left the files.
	command := d.shown + " issue --profile server --dns first.test --force --out " + leaf + " --key-out " + d.path("first.key")
	out, err := d.shell(ctx, command)
	d.print(indent(out))
	if err != nil {
		return &StepError{"issuing the first certificate", err}
	}
	if err := d.verify(leaf, "first.test"); err != nil {
		return &StepError{"verifying the first certificate", err}
	}
	d.say("  its chain verifies against %s", d.path("root.pem"))
	return nil
}

func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString("  " + line)
	}
	return b.String()
}
