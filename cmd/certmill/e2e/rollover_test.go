package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// strictLoad asks for certificates without ever trying again, and keeps the issuers of
// the last answers.
type strictLoad struct {
	profile string
	mu      sync.Mutex
	issued  int
	by      map[string]int // by issuer
	last    [][]byte       // issuers of the last 40 certificates
}

func (l *strictLoad) caller(ctx context.Context, t *testing.T, s *service, caller int) func() {
	g := s.gateway(t)
	run, name := unique("rollover")
	csr := newCSR(t, name)
	return func() {
		for n := 0; ctx.Err() == nil; n++ {
			res, err := g.Issue(context.WithoutCancel(ctx), &certmillv1.IssueRequest{Csr: csr, Profile: l.profile, RequestId: fmt.Sprintf("%s-%d-%d", run, caller, n)})
			if err != nil {
				t.Errorf("request %d of caller %d: %v", n, caller, err)
				return
			}
			l.mu.Lock()
			l.issued++
			l.by[res.Certificate.Issuer]++
			l.last = append(l.last, res.Certificate.Chain[0])
			l.last = l.last[max(0, len(l.last)-40):]
			l.mu.Unlock()
		}
	}
}

func newStrictLoad(profile string) *strictLoad {
	return &strictLoad{profile: profile, by: map[string]int{}}
}

// issuers returns how many certificates each issuer has made, and forgets them.
func (l *strictLoad) issuers() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	by := l.by
	l.by = map[string]int{}
	return by
}

func (l *strictLoad) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.issued
}

// notFrom returns how many of the last 40 certificates are not that issuer's, and whether
// there are 40.
func (l *strictLoad) notFrom(issuer []byte) (others int, enough bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, der := range l.last {
		if !bytes.Equal(der, issuer) {
			others++
		}
	}
	return others, len(l.last) == 40
}

func (l *strictLoad) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) || t.Failed() {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (l *strictLoad) more(t *testing.T, n int) {
	t.Helper()
	n += l.count()
	l.until(t, fmt.Sprintf("%d certificates", n), func() bool { return l.count() >= n })
}

// TestTheIssuerIsRolledOverAndASignerDrainedUnderLoad walks docs/ceremony.md, and what
// docs/operations.md says of several issuers, with
// callers at work that do not try again: not one of their requests fails.
func TestTheIssuerIsRolledOverAndASignerDrainedUnderLoad(t *testing.T) {
	requirePrograms(t)
	dir, err := os.MkdirTemp("", "certmill-rollover")
	if err != nil {
		t.Fatal(err)
	}
	// dev's signers have one of the two issuers of the profile "shared".
	shared := shareServerProfile(t, dir)
	s, err := start(dir, "CERTMILL_SIGNER_ISSUERS=issuing", "CERTMILL_SIGNER_ISSUER_REFRESH=1s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	config := filepath.Join(s.dir, "config", "signer-1.yaml")
	hsm := func(into any, args ...string) string {
		t.Helper()
		out, err := s.atHSM(t, append(args, "--config", config, "-o", "json")...)
		if err != nil {
			return string(out)
		}
		if err := json.Unmarshal(out, into); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return ""
	}
	ok := func(complaint string) {
		t.Helper()
		if complaint != "" {
			t.Fatal(complaint)
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	defer callers.Wait()
	defer stop()
	load, both := newStrictLoad("server"), newStrictLoad(shared)
	for i := range 2 {
		callers.Go(load.caller(ctx, t, s, i))
		callers.Go(both.caller(ctx, t, s, i))
	}
	load.more(t, 50)
	both.more(t, 50)

	// The ceremony, rehearsed and written down.
	var plan []struct{ Make bool }
	ok(hsm(&plan, "ca", "init", "--dry-run"))
	if len(plan) != 3 || plan[0].Make || plan[1].Make || plan[2].Make {
		t.Errorf("the plan for what stands is %+v", plan)
	}
	transcript, root := filepath.Join(t.TempDir(), "ceremony.json"), filepath.Join(s.dir, "root.pem")
	var made any
	ok(hsm(&made, "ca", "init", "--transcript", transcript, "--witness", "Ada Lovelace"))
	if out, err := s.run(t, "ca", "verify-transcript", transcript, "--root", root); err != nil || !strings.Contains(out, "Ada Lovelace") {
		t.Errorf("the transcript: %v\n%s", err, out)
	}
	text, err := os.ReadFile(transcript)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, transcript, bytes.Replace(text, []byte("Ada Lovelace"), []byte("Eve Lovelace"), 1))
	if out, err := s.run(t, "ca", "verify-transcript", transcript, "--root", root); err == nil {
		t.Errorf("a forged transcript is accepted\n%s", out)
	}

	// A second issuer comes, dies, is stood in for and comes back.
	secondIssuer(t, s, both, func(into any, args ...string) { ok(hsm(into, args...)) })

	// The rollover.
	var next struct {
		Generation, Before int32
		State              string
	}
	ok(hsm(&next, "ca", "rollover", "prepare"))
	if next.State != "prepared" || hsm(&next, "ca", "rollover", "activate") == "" {
		t.Fatalf("generation %d is %s at once", next.Generation, next.State)
	}
	load.mu.Lock()
	old := load.last[0]
	load.mu.Unlock()
	load.more(t, 50)
	if n, _ := load.notFrom(old); n > 0 {
		t.Fatal("a prepared generation has issued")
	}
	ok(hsm(&next, "ca", "rollover", "activate", "--published-for", "0s"))
	load.until(t, "the new generation issues all", func() bool {
		load.mu.Lock()
		newest := load.last[len(load.last)-1]
		load.mu.Unlock()
		others, enough := load.notFrom(newest)
		return enough && others == 0 && !bytes.Equal(newest, old)
	})
	var closed any
	if complaint := hsm(&closed, "ca", "rollover", "close", "--generation", fmt.Sprint(next.Before)); !strings.Contains(complaint, "not expired") {
		t.Errorf("closing a generation with certificates: %q", complaint)
	}
	both.more(t, 50)

	// The drain.
	state := func(name string) string {
		out, _ := s.printed(t, "status", "-o", "json") // its exit code tells of the service
		var status struct {
			Roles []struct{ Name, State string }
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, r := range status.Roles {
			if r.Name == name {
				return r.State
			}
		}
		return ""
	}
	var drains []struct{ Signer string }
	maintenance := filepath.Join(s.dir, "config", "maintenance.yaml")
	s.runJSON(t, &drains, "signer", "drain", "signer-1", "--config", maintenance)
	if len(drains) != 1 || drains[0].Signer != "signer-1" {
		t.Errorf("drained are %v", drains)
	}
	load.until(t, "signer-1 is drained", func() bool { return state("signer-1") == "drained" })
	load.more(t, 50)
	s.runJSON(t, &drains, "signer", "undrain", "signer-1", "--config", maintenance)
	load.until(t, "signer-1 works again", func() bool { return state("signer-1") == "ready" })
	load.more(t, 50)
	stop()
	callers.Wait()
	t.Logf("%d and %d requests, none failed", load.count(), both.count())
}
