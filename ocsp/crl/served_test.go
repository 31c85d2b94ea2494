package crl

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/config"
	"github.com/certmill/certmill/internal/crldp"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/ledger/ledgertest"
	"github.com/certmill/certmill/ocsp"
	"github.com/certmill/certmill/ocsp/ocsptest"
	"github.com/certmill/certmill/ocsp/presign"
)

// run starts a part and stops it at the test's end, before what was started earlier.
func (w *world) run(part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		noError(w.t, <-done)
	})
}

// serve runs maker, presigner and responder, and returns the CRLs' point.
func (w *world) serve(redis string) crldp.Point {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // certificates name the port
	noError(w.t, err)
	addr := l.Addr().String()
	noError(w.t, l.Close())
	point := crldp.Point{URL: "http://" + addr + "/crl/{issuer}/{shard}.crl", Shards: 4}

	rc := ocsp.DefaultConfig()
	rc.Listen, rc.Redis = addr, config.Redis{Addresses: []string{redis}}
	responder, err := ocsp.New(rc, ocsp.Deps{})
	noError(w.t, err)
	w.run(responder.Run)

	pc := presign.DefaultConfig()
	pc.Name, pc.Redis = "test", config.Redis{Addresses: []string{redis}}
	pc.CRLPoll = 50 * time.Millisecond
	presigner, err := presign.New(pc, presign.Deps{Ledger: w.book, CRLs: w.book})
	noError(w.t, err)
	w.run(presigner.Run)

	maker := w.maker(func(c *Config, d *Deps) {
		c.Poll = 50 * time.Millisecond
		d.Wanted = func() []Wanted { return []Wanted{{"issuing", point}} }
	})
	w.run(maker.Run)
	return point.For("issuing", w.issuer)
}

// known commits a certificate that was made outside.
func (w *world) known(cert *x509.Certificate) serial.Number {
	w.t.Helper()
	e := ledgertest.Entry(w.t, w.now(), time.Hour)
	n, err := serial.FromBig(cert.SerialNumber)
	noError(w.t, err)
	e.Serial, e.DER, e.NotBefore, e.NotAfter = n, cert.Raw, cert.NotBefore, cert.NotAfter
	e.Issuer, e.Revocation = w.issuer, ledger.RevocationCRL
	noError(w.t, w.book.CommitBatch(w.t.Context(), []ledger.Entry{e})[0].Err)
	return n
}

// TestProgramsThatFetchTheCRLSeeARevocation goes the whole way: ledger, maker, Redis,
// responder, and programs that follow the URL in the certificate.
func TestProgramsThatFetchTheCRLSeeARevocation(t *testing.T) {
	w := newWorld(t)
	redis := testenv.Redis(t)
	point := w.serve(redis)
	cert := w.ca.leaf(t, time.Hour, point)
	n := w.known(cert)
	root, leaf := ocsptest.WriteCertificate(t, "ca.pem", w.ca.cert), ocsptest.WriteCertificate(t, "leaf.pem", cert)
	verdict := func(name string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		switch {
		case strings.Contains(string(out), "fetching failed"): // pki takes that for good
			return string(out)
		case err == nil:
			return "good"
		case strings.Contains(string(out), "revoked"):
			return "revoked"
		}
		return string(out)
	}
	programs := map[string][]string{testenv.Program(t, "openssl", "openssl"): {"verify", "-crl_download", "-crl_check", "-CAfile", root, leaf}}
	// Without its plugin pki has nothing to fetch with.
	if _, err := os.Stat("/usr/lib/ipsec/plugins/libstrongswan-curl.so"); err == nil {
		programs[testenv.Program(t, "pki", "strongswan-pki")] = []string{"--verify", "--in", leaf, "--cacert", root, "--online"}
	} else {
		t.Log("without pki: apt-get install strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins")
	}
	all := func(want string) {
		t.Helper()
		for name, args := range programs {
			got := ""
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if got = verdict(name, args...); got == want {
					break
				}
			}
			if got != want {
				t.Errorf("%s says %q, want %s", name, got, want)
			}
		}
	}
	all("good")
	start := time.Now()
	w.revoke(n)
	all("revoked")
	t.Logf("revoked is seen %s after the revocation", time.Since(start))

	// Redis forgets; the CRL comes back from the ledger.
	store, err := ocsp.OpenStore(config.Redis{Addresses: []string{redis}}, ocsp.DefaultNamespace)
	noError(t, err)
	defer func() { noError(t, store.Close()) }()
	noError(t, store.Client().FlushAll(t.Context()).Err())
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		crls, err := store.CRLs(t.Context())
		noError(t, err)
		if len(crls) == 4 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d CRLs in Redis after FLUSHALL", len(crls))
		}
	}
	all("revoked")
}
