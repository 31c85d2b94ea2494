package deploytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/cmd/certmill/client"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// roleServices are the roles that are replaced, in an order that mixes old and new on
// both sides of every connection.
var roleServices = []string{"signer-1", "gateway-1", "presigner", "responder-1", "gateway-2", "signer-2", "responder-2"}

// previous returns a certmill of the commit before, or of the one that CERTMILL_PREVIOUS
// names. Where there is no history, as in a shallow clone or an archive, it is the current
// one, and a note says so: the replacing is tested all the same.
func previous(t *testing.T, current string) string {
	t.Helper()
	revision, chosen := os.LookupEnv("CERTMILL_PREVIOUS")
	if !chosen {
		revision = "HEAD~1"
	}
	if out, err := exec.Command("git", "rev-parse", "--verify", "--quiet", revision+"^{commit}").CombinedOutput(); err != nil {
		if chosen {
			t.Fatalf("CERTMILL_PREVIOUS=%s: %v\n%s", revision, err, out)
		}
		t.Logf("there is no %s here (`git fetch --deepen=1` gets it): every role is replaced by its own version", revision)
		return current
	}
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The archive holds what was committed and touches nothing of the checkout.
	export := exec.Command("bash", "-euo", "pipefail", "-c", `git -C "$1" archive "$2" | tar -x -C "$3"`, "-", strings.TrimSpace(string(root)), revision, dir)
	if out, err := export.CombinedOutput(); err != nil {
		t.Fatalf("git archive: %v\n%s", err, out)
	}
	binary := filepath.Join(dir, "certmill-previous")
	build := exec.Command("go", "build", "-o", binary, "./cmd/certmill")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", revision, err, out)
	}
	return binary
}

// oldAndNew replaces every role by the version before and back, while callers ask for
// certificates. None of them is left without one, and no key makes two.
func oldAndNew(t *testing.T, s *Stack) {
	old := previous(t, s.o.Certmill)
	ctx, stop := context.WithCancel(t.Context())
	load := newLoad(t, s)
	var running sync.WaitGroup
	for worker := range 4 {
		running.Add(1)
		go func() {
			defer running.Done()
			load.run(ctx, worker)
		}()
	}
	for _, step := range []struct{ name, binary string }{{"to the version before", old}, {"and back", s.o.Certmill}} {
		for _, role := range roleServices {
			before := load.count()
			if err := s.Replace(role, step.binary); err != nil {
				t.Errorf("%s %s: %v", role, step.name, err)
			}
			load.waitBeyond(t, before+8, role+" "+step.name)
		}
	}
	stop()
	running.Wait()
	load.check(t)
}

// load is callers that ask both gateways.
type load struct {
	t        *testing.T
	gateways []*client.Client
	csr      []byte

	mu     sync.Mutex
	issued map[string]string // request id → serial
	failed []string
	again  int // calls that had to be repeated
}

func newLoad(t *testing.T, s *Stack) *load {
	t.Helper()
	l := &load{t: t, issued: map[string]string{}}
	for _, gateway := range []string{"gateway-1", "gateway-2"} {
		c, err := client.Context{
			Gateway: s.Address(gateway, 8444), CAFile: filepath.Join(s.Public(), "root.pem"),
			CertFile: filepath.Join(s.Public(), "operator.pem"), KeyFile: filepath.Join(s.Public(), "operator.key"), Timeout: 2 * time.Second,
		}.Dial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		l.gateways = append(l.gateways, c)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if l.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}, DNSNames: []string{"upgrade.test"}}, key); err != nil {
		t.Fatal(err)
	}
	return l
}

// callWithin is how long one caller goes on asking for one certificate.
const callWithin = 30 * time.Second

func (l *load) run(ctx context.Context, worker int) {
	for n := 0; ctx.Err() == nil; n++ {
		id := fmt.Sprintf("upgrade-%d-%d", worker, n)
		serial, err := l.issue(context.WithoutCancel(ctx), id, n)
		l.mu.Lock()
		if err != nil {
			l.failed = append(l.failed, fmt.Sprintf("%s: %v", id, err))
		} else {
			l.issued[id] = serial
		}
		l.mu.Unlock()
	}
}

// issue asks the gateways in turn, under one idempotency key, as a client behind a
// balancer does.
func (l *load) issue(ctx context.Context, id string, first int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	for try := first; ; try++ {
		call, end := context.WithTimeout(ctx, 5*time.Second)
		res, err := l.gateways[try%len(l.gateways)].Issue(call, &certmillv1.IssueRequest{Csr: l.csr, Profile: "server", RequestId: id})
		end()
		if err == nil {
			return res.GetCertificate().GetSerial(), nil
		}
		l.mu.Lock()
		l.again++
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.issued)
}

// waitBeyond waits until so many certificates were issued: with the role replaced.
func (l *load) waitBeyond(t *testing.T, n int, what string) {
	t.Helper()
	for deadline := time.Now().Add(callWithin); l.count() < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: nothing is issued any more", what)
		}
	}
}

// check asks for every certificate again: the same key must yield the same one.
func (l *load) check(t *testing.T) {
	t.Helper()
	for _, f := range l.failed {
		t.Error(f)
	}
	serials := map[string]string{}
	for id, serial := range l.issued {
		if other := serials[serial]; other != "" {
			t.Errorf("%s and %s have one serial", id, other)
		}
		serials[serial] = id
	}
	asked := 0
	for id, serial := range l.issued {
		if asked++; asked > 50 {
			break
		}
		again, err := l.issue(t.Context(), id, 0)
		if err != nil || again != serial {
			t.Errorf("%s: %s, then %s: %v", id, serial, again, err)
		}
	}
	t.Logf("%d certificates; %d calls had to be repeated", len(l.issued), l.again)
}
