package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
// restores it with the runbook's script.
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

	if out, err := runbook("restore"); err == nil || !strings.Contains(out, "stop every role first") {
		t.Fatalf("it restores under a running service: %v\n%s", err, out)
	}
	roles := []string{"gateway", "signer", "presigner", "responder", "maintenance"}
	for _, role := range roles {
		for _, n := range s.of(role) {
			if err := n.stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out, err := runbook("restore"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, role := range []string{"maintenance", "presigner", "responder", "signer", "gateway"} {
		for _, n := range s.of(role) {
			n.revive()
		}
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
	book, err := ledger.Open(t.Context(), config.Ledger{URL: s.database.URL, PasswordFile: s.database.PasswordFile}, ledger.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
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
	found := false
	for _, e := range entries {
		found = found || e.Action == "ledger.restore"
	}
	if !found {
		t.Error("the restore is not in the audit trail")
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
	if err != nil || len(after) != len(before)+1 {
		t.Fatalf("no answer was recorded: %v", err)
	}
	e := after[len(after)-1]
	return e.Outcome, e.Detail
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
