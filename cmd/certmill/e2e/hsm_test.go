package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/hsmshim"
	"github.com/certmill/certmill/internal/testenv"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// hsmFaults is what happens to the HSM while certificates are asked for, one after the
// other. The counts of a rule are each process's own.
var hsmFaults = []struct {
	name    string
	rules   []string
	lasts   time.Duration // how long the rules stand
	process bool          // signers may be replaced by new processes
	failed  bool          // the tokens do not come back by themselves: signers are killed
}{
	{name: "the device errs", rules: []string{"C_Sign return 0x30 after=5 times=8"}},
	{name: "signatures are made and not told", rules: []string{"C_Sign call-return 0x5 every=5 times=8"}},
	{name: "handles are forgotten", rules: []string{"C_SignInit return 0x82 every=4 times=8"}},
	{name: "nobody is logged in", rules: []string{"C_SignInit return 0x101 every=4 times=4"}},
	{name: "the module wants a new C_Initialize", rules: []string{"C_SignInit lose-module after=5 times=1"}},
	{
		name: "the token is taken away", lasts: 2 * time.Second,
		rules: []string{"C_SignInit return 0xE0", "C_Sign return 0xE0", "C_OpenSession return 0xE0", "C_GetTokenInfo return 0xE0"},
	},
	{name: "signatures come ever later", rules: []string{"C_Sign creep 2 times=100"}, lasts: time.Second},
	{name: "a call hangs", rules: []string{"C_Sign hang after=5 times=1"}},
	{name: "the module crashes", rules: []string{"C_Sign crash after=20 times=1"}, lasts: 2 * time.Second, process: true},
	{name: "a signature is wrong", rules: []string{"C_Sign flip after=5 times=1"}, lasts: time.Second, process: true, failed: true},
}

// TestTheHSMFailsUnderLoad goes through the faults of an HSM while callers ask, and ask
// again with the same request id. Each key has one certificate in the end, which
// verifies, whatever the HSM did; signers come back without a new process, but where
// only a new process helps; and every signature is accounted for.
func TestTheHSMFailsUnderLoad(t *testing.T) {
	requirePrograms(t)
	module := testenv.SoftHSM(t).Module
	shim, err := hsmshim.New(t.TempDir(), module)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "certmill-hsm")
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(dir, append(shim.Env(), "CERTMILL_SOFTHSM_MODULE="+shim.Module)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	load := startHSMLoad(t, s)
	load.await(t, "the start", 20)
	for _, fault := range hsmFaults {
		before := [2]int{s.pid(t, "signer-1"), s.pid(t, "signer-2")}
		if err := shim.Set(fault.rules...); err != nil {
			t.Fatal(err)
		}
		if fault.lasts > 0 {
			time.Sleep(fault.lasts) // the fault's length, not a wait for anything
			if err := shim.Set(); err != nil {
				t.Fatal(err)
			}
		}
		if fault.failed {
			s.kill(t, "signer-1")
			s.kill(t, "signer-2")
		}
		began := time.Now()
		load.await(t, fault.name, 100)
		t.Logf("%-36s 100 certificates later after %s", fault.name, time.Since(began).Round(time.Millisecond))
		if err := shim.Set(); err != nil {
			t.Fatal(err)
		}
		if after := [2]int{s.pid(t, "signer-1"), s.pid(t, "signer-2")}; after != before && !fault.process {
			t.Errorf("%s: signers %v became %v; they were to come back by themselves", fault.name, before, after)
		}
	}
	load.end(t)
}

// hsmLoad asks for certificates, one key after the other, and checks what comes.
type hsmLoad struct {
	service *service
	name    string
	issued  atomic.Int64
	asked   atomic.Int64
	stop    context.CancelFunc
	callers sync.WaitGroup

	mu      sync.Mutex
	serials map[string]int64 // to the request that has it
}

func startHSMLoad(t *testing.T, s *service) *hsmLoad {
	t.Helper()
	run, name := unique("hsm")
	g := s.gateway(t)
	pem, err := os.ReadFile(filepath.Join(s.dir, "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	csr := newCSR(t, name)
	ctx, stop := context.WithCancel(t.Context())
	l := &hsmLoad{service: s, name: name, stop: stop, serials: map[string]int64{}}
	t.Cleanup(stop)
	for range 8 {
		l.callers.Go(func() {
			for ctx.Err() == nil {
				n := l.asked.Add(1)
				var res *certmillv1.IssueResponse
				// Not ctx: a key that was begun is seen through.
				err := g.Retry(context.WithoutCancel(ctx), func(ctx context.Context) (err error) {
					res, err = g.Issue(ctx, &certmillv1.IssueRequest{Csr: csr, Profile: "server", RequestId: fmt.Sprintf("%s-%d", run, n)})
					return err
				})
				if err != nil {
					t.Errorf("request %d: %v", n, err)
					continue
				}
				l.check(t, n, res, roots)
			}
		})
	}
	return l
}

// check holds one answer to its chain: a wrong signature is seen here.
func (l *hsmLoad) check(t *testing.T, n int64, res *certmillv1.IssueResponse, roots *x509.CertPool) {
	cert, err := x509.ParseCertificate(res.Certificate.Der)
	if err != nil {
		t.Errorf("request %d: %v", n, err)
		return
	}
	chain := x509.NewCertPool()
	for _, der := range res.Certificate.Chain {
		if ca, err := x509.ParseCertificate(der); err == nil {
			chain.AddCert(ca)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: chain}); err != nil {
		t.Errorf("request %d: %v", n, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, ok := l.serials[res.Certificate.Serial]; ok {
		t.Errorf("requests %d and %d have one serial, %s", other, n, res.Certificate.Serial)
	}
	l.serials[res.Certificate.Serial] = n
	l.issued.Add(1)
}

// await waits until so many more certificates have come.
func (l *hsmLoad) await(t *testing.T, what string, more int64) {
	t.Helper()
	want := l.issued.Load() + more
	for deadline := time.Now().Add(60 * time.Second); l.issued.Load() < want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d certificates are missing after a minute\n%s", what, want-l.issued.Load(), l.service.out)
		}
	}
}

// end stops the callers and compares what they have with the ledger, and the ledger
// with what the HSM signed.
func (l *hsmLoad) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.callers.Wait()
	g := l.service.gateway(t)
	rows := inLedger(t, g, l.name)
	if len(rows) != len(l.serials) || int64(len(rows)) != l.asked.Load() {
		t.Errorf("%d rows in the ledger for %d certificates and %d keys", len(rows), len(l.serials), l.asked.Load())
	}
	for serial := range l.serials {
		if rows[serial] != 1 {
			t.Errorf("certificate %s stands in the ledger %d times", serial, rows[serial])
		}
	}
	t.Logf("%d keys, %d certificates", l.asked.Load(), len(rows))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		n := l.accounted(t)
		if n >= int64(len(rows)) {
			return
		}
		if time.Now().After(deadline) { // signers report every 10 s
			t.Fatalf("%d signatures are accounted for, for %d certificates", n, len(rows))
		}
	}
}

// accounted returns how many signatures the accounts of all epochs have. It fails where
// one is broken, or was left open by a process that died.
func (l *hsmLoad) accounted(t *testing.T) (signatures int64) {
	t.Helper()
	var accounts []struct{ Signatures int64 }
	l.service.runJSON(t, &accounts, "ledger", "reconcile", "--config", filepath.Join(l.service.dir, "config", "maintenance.yaml"))
	for _, a := range accounts {
		signatures += a.Signatures
	}
	return signatures
}
