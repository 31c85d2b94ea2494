package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/loadtest/chaos/judge"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// theLedgerIsRestoredByTheRunbook backs the ledger up, goes on, loses it and
// restores it with the runbook's script. One signer lives through that, forgotten by the
// operator: it remembers epochs and a signed head of the audit trail that are gone, and
// gives way to a new process by itself.
func theLedgerIsRestoredByTheRunbook(t *testing.T, r *drill) {
	s := r.stack
	script, err := filepath.Abs("../../deploy/runbooks/restore.sh")
	if err != nil {
		t.Fatal(err)
	}
	runbook := func(action string) (string, error) {
		cmd := exec.CommandContext(t.Context(), script, action, s.dir.Path("backup"))
		cmd.Env = append(os.Environ(), "CERTMILL="+s.binary, "LEDGER_URL="+s.database.URL, "LEDGER_PASSWORD_FILE="+s.database.PasswordFile, "EPOCH_GAP=100",
			"REDIS_URL=redis://"+redisOf(t, s), "REDIS_PASSWORD_FILE="+s.dir.Path("redis.password"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	op := 10_000
	issue := func() (*certmillv1.IssueRequest, *certmillv1.Certificate) {
		t.Helper()
		op++
		request, _, err := r.load.request(op, rand.New(rand.NewPCG(1, uint64(op))))
		if err != nil {
			t.Fatal(err)
		}
		return request, r.repeat(t, request)
	}

	_, kept := issue()
	_, revoked := issue()
	if err := r.load.callers[0].revoke(t.Context(), revoked.Serial); err != nil {
		t.Fatal(err)
	}
	if out, err := runbook("backup"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lostRequest, lost := issue() // the hole
	r.status(t, lost.Serial, judge.Good)
	book, err := ledger.Open(t.Context(), config.Ledger{URL: s.database.URL, PasswordFile: s.database.PasswordFile}, ledger.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { book.Close() }() // whichever it is by then
	witness := s.headFromTheHole(t, r, book, lost.Serial)
	book.Close()

	if out, err := runbook("restore"); err == nil || !strings.Contains(out, "stop every role first") {
		t.Fatalf("it restores under a running service: %v\n%s", err, out)
	}
	forgotten := s.byName["signer-2"]
	survivor := forgotten.process()
	if err := forgotten.freeze(); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"gateway", "signer", "presigner", "responder", "maintenance"} {
		for _, n := range s.of(role) {
			if n == forgotten {
				continue
			}
			if err := n.stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.dropSessions(t)
	if out, err := runbook("restore"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := forgotten.thaw(); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"maintenance", "presigner", "responder", "signer", "gateway"} {
		for _, n := range s.of(role) {
			n.revive()
		}
	}
	if err := s.await(t.Context(), "the signer that lived through it", func() error {
		if survivor.Status() == "" {
			return errors.New("it still runs")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := survivor.Status(); got != "exit status 1" {
		t.Errorf("the signer that lived through the restore ended with %q", got)
	}
	if err := s.await(t.Context(), "every role", func() error { return s.ready(t.Context()) }); err != nil {
		t.Fatal(err)
	}

	r.status(t, revoked.Serial, judge.Revoked)
	r.status(t, kept.Serial, judge.Good)
	again, once := r.repeat(t, lostRequest), r.repeat(t, lostRequest)
	if again.Serial == lost.Serial || again.Serial != once.Serial {
		t.Errorf("the hole had %s; the retries got %s and %s", lost.Serial, again.Serial, once.Serial)
	}
	r.status(t, again.Serial, judge.Good)
	for range 3 { // now, and not only while Redis was empty
		for _, n := range r.watch.nodes {
			if got, _ := r.ask(t, n, lost.Serial); got == judge.Good {
				t.Errorf("%s says good of a serial of the hole", n.name)
			}
		}
	}
	if book, err = ledger.Open(t.Context(), config.Ledger{URL: s.database.URL, PasswordFile: s.database.PasswordFile}, ledger.Deps{}); err != nil {
		t.Fatal(err)
	}
	before, after := epochOf(t, lost.Serial), epochOf(t, again.Serial)
	if after <= before+100-uint32(len(s.of("signer")))-10 {
		t.Errorf("epoch %d after the restore, %d before: there is no gap", after, before)
	}
	if rows, _, err := book.List(t.Context(), ledger.Filter{Name: "dns:" + again.Names[0][len("dns:"):]}, "", 10); err != nil || len(rows) != 1 {
		t.Errorf("%d rows for the repeated request, %v", len(rows), err)
	}
	entries, err := book.Audit(t.Context(), 0, 1000)
	if err != nil || len(entries) == 0 {
		t.Fatalf("audit: %v", err)
	}
	i := slices.IndexFunc(entries, func(e ledger.AuditEntry) bool { return e.Action == "ledger.restore" })
	if i < 0 {
		t.Fatal("the restore is not in the audit trail")
	}
	s.trailGoesOn(t, book, entries[i].Sequence, witness)
}

// headFromTheHole makes a row of the audit trail, waits until its head is signed, and keeps
// that in a file.
func (s *stack) headFromTheHole(t *testing.T, r *drill, book *ledger.Ledger, serial string) (file string) {
	t.Helper()
	before, err := book.AuditHead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.load.callers[0].revoke(t.Context(), serial); err != nil {
		t.Fatal(err)
	}
	if err := s.await(t.Context(), "a signed head", func() error {
		h, err := book.LastSignedHead(t.Context())
		if err == nil && h.Sequence <= before.Sequence {
			err = fmt.Errorf("the last is of row %d", h.Sequence)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	file = s.dir.Path("head.json")
	if _, err := s.command(t.Context(), "audit", "verify", "--config", s.dir.Path("config", "maintenance.yaml"), "--roots", s.dir.Path("root.pem"), "--keep-head", file); err != nil {
		t.Fatal(err)
	}
	return file
}

// dropSessions ends the sessions that nobody uses, as a network that is down does in time.
func (s *stack) dropSessions(t *testing.T) {
	t.Helper()
	password, err := os.ReadFile(s.database.PasswordFile)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "psql", "--no-psqlrc", "--quiet", "--command",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'certmill' AND pid <> pg_backend_pid()", s.database.URL)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+strings.TrimSpace(string(password)))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// trailGoesOn waits until heads behind the restore are signed again, by signers that see
// nothing wrong. The trail verifies; a head of the hole does not fit it.
func (s *stack) trailGoesOn(t *testing.T, book *ledger.Ledger, restored int64, witness string) {
	t.Helper()
	if err := s.await(t.Context(), "a signed head after the restore", func() error {
		h, err := book.LastSignedHead(t.Context())
		if err == nil && h.Sequence < restored {
			err = fmt.Errorf("the last is of row %d; the restore is row %d", h.Sequence, restored)
		}
		for _, n := range s.of("signer") {
			values, gerr := n.gauges(t.Context(), []string{"certmill_audit_chain_broken"})
			if gerr == nil && values["certmill_audit_chain_broken"] != 0 {
				gerr = fmt.Errorf("%s sees a broken trail", n.name)
			}
			err = errors.Join(err, gerr)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	verify := []string{"audit", "verify", "--config", s.dir.Path("config", "maintenance.yaml"), "--roots", s.dir.Path("root.pem")}
	if _, err := s.command(t.Context(), verify...); err != nil {
		t.Error(err)
	}
	if out, err := s.command(t.Context(), append(verify, "--witness", witness)...); err == nil {
		t.Errorf("a head of the hole fits the trail: %s", out)
	}
}

func epochOf(t *testing.T, text string) uint32 {
	t.Helper()
	n, err := serial.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return n.Epoch()
}

func redisOf(t *testing.T, s *stack) string {
	t.Helper()
	addresses := s.settings["responder-1"]["redis"].(settings)["addresses"].([]string)
	return addresses[0]
}

// repeat asks for a certificate until there is one.
func (r *drill) repeat(t *testing.T, request *certmillv1.IssueRequest) *certmillv1.Certificate {
	t.Helper()
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		cert, err := r.load.callers[1].issue(ctx, request)
		cancel()
		if err == nil {
			return cert
		}
		last = err
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("no certificate: %v", last)
	return nil
}

func (r *drill) ask(t *testing.T, n *node, number string) (string, string) {
	t.Helper()
	before, err := r.rec.Events()
	if err != nil {
		t.Fatal(err)
	}
	r.watch.ask(t.Context(), http.DefaultClient, n, number)
	after, err := r.rec.Events()
	for _, e := range after[len(before):] {
		if err == nil && e.Kind == judge.OCSP {
			return e.Outcome, e.Detail
		}
	}
	t.Fatalf("no answer was recorded: %v", err)
	return "", ""
}

// status waits until every responder says want of a serial.
func (r *drill) status(t *testing.T, number, want string) {
	t.Helper()
	for _, n := range r.watch.nodes {
		last := ""
		for end := time.Now().Add(30 * time.Second); ; {
			got, detail := r.ask(t, n, number)
			if got == want {
				break
			}
			if last = fmt.Sprint(got, " ", detail); time.Now().After(end) {
				t.Fatalf("%s says %s of %s, want %s", n.name, last, number, want)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}
