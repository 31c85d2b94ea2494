package signer

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden certificates anew")

// goldenRequests are one request for each profile that certmill comes with.
func goldenRequests(t testing.TB) map[string]*profile.Request {
	requests := map[string]*profile.Request{
		"server": asking(t, func(r *profile.Request) {
			r.DNSNames = []string{"www.shop.test", "shop.test"}
			r.IPAddresses = []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::1")}
		}),
		"short":       asking(t, func(r *profile.Request) { r.DNSNames = []string{"api.shop.test"} }),
		"gateway-tls": asking(t, func(r *profile.Request) { r.DNSNames = []string{"localhost"} }),
		"client": asking(t, func(r *profile.Request) {
			r.DNSNames, r.Caller.Identity = nil, "spiffe://certmill.test/client/agent-7"
		}),
		"workload": asking(t, func(r *profile.Request) {
			r.DNSNames, r.URIs = []string{"pay.shop.svc"}, []string{"spiffe://certmill.test/ns/shop/sa/pay"}
		}),
		"mesh": asking(t, func(r *profile.Request) {
			r.DNSNames, r.URIs = nil, []string{"spiffe://cluster.local/ns/shop/sa/cart"}
			r.Caller.Identity = "spiffe://cluster.local/ns/shop/sa/cart"
		}),
		"operator": asking(t, func(r *profile.Request) {
			r.DNSNames, r.URIs = nil, []string{"spiffe://certmill.test/operator/ada"}
		}),
	}
	for name, r := range requests {
		r.Profile = name
	}
	return requests
}

func TestGolden(t *testing.T) {
	ca := newIssuingCA(t, fixedKey(t, "issuing"))
	set, requests := defaultProfiles(t), goldenRequests(t)
	for _, pr := range set.All() {
		t.Run(pr.Name, func(t *testing.T) {
			r := requests[pr.Name]
			if r == nil {
				t.Fatal("the profile has no golden request")
			}
			p := ca.preparer(t, func(c *PreparerConfig) { c.Profiles, c.Random = set, new(counter) })
			row, cert := ca.issue(t, p, r)
			compareGolden(t, filepath.Join("testdata", "golden", pr.Name+".pem"), row.DER)
			if problems := lintAll(t, row.DER, pr); len(problems) > 0 {
				t.Errorf("zlint: %q", problems)
			}
			files := writeChain(t, ca, cert)
			verifyInGo(t, ca, cert)
			verifyInOpenSSL(t, ca, files)
			readEverywhere(t, files.leaf)
		})
	}
}

func compareGolden(t *testing.T, file string, der []byte) {
	t.Helper()
	got := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the certificate is not %s; look at both with openssl x509 -text, and run with -update if the new one is right:\n%s", file, got)
	}
}

// verifyEverywhere has the three libraries that relying parties use read the
// certificate and verify its chain, which must be valid at the present.
func verifyEverywhere(t *testing.T, ca *issuingCA, cert *x509.Certificate) {
	t.Helper()
	files := writeChain(t, ca, cert)
	verifyInGo(t, ca, cert)
	verifyInOpenSSL(t, ca, files)
	certtool := testenv.Program(t, "certtool", "gnutls-bin")
	out := output(t, certtool, "--verify", "--load-ca-certificate", files.root, "--infile", files.chain)
	if !strings.Contains(out, "Chain verification output: Verified.") {
		t.Error(out)
	}
}

type chainFiles struct{ leaf, ca, root, chain string }

func writeChain(t *testing.T, ca *issuingCA, cert *x509.Certificate) chainFiles {
	t.Helper()
	dir := t.TempDir()
	f := chainFiles{filepath.Join(dir, "leaf"), filepath.Join(dir, "ca"), filepath.Join(dir, "root"), filepath.Join(dir, "chain")}
	writePEM(t, f.leaf, cert)
	writePEM(t, f.ca, ca.cert)
	writePEM(t, f.root, ca.root)
	writePEM(t, f.chain, cert, ca.cert)
	return f
}

func verifyInGo(t *testing.T, ca *issuingCA, cert *x509.Certificate) {
	t.Helper()
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.root)
	intermediates.AddCert(ca.cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: ca.now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("crypto/x509: %v", err)
	}
}

func verifyInOpenSSL(t *testing.T, ca *issuingCA, f chainFiles) {
	t.Helper()
	openssl := testenv.Program(t, "openssl", "openssl")
	out := output(t, openssl, "verify", "-x509_strict", "-attime", strconv.FormatInt(ca.now.Unix(), 10), "-CAfile", f.root, "-untrusted", f.ca, f.leaf)
	if !strings.Contains(out, ": OK") {
		t.Error(out)
	}
}

// readEverywhere has them show what they read.
func readEverywhere(t *testing.T, file string) {
	t.Helper()
	openssl, certtool := testenv.Program(t, "openssl", "openssl"), testenv.Program(t, "certtool", "gnutls-bin")
	text := output(t, openssl, "x509", "-in", file, "-noout", "-text")
	for _, want := range []string{"Version: 3", "CA:FALSE", "Digital Signature", "Subject Alternative Name", "Subject Key Identifier", "Authority Key Identifier"} {
		if !strings.Contains(text, want) {
			t.Errorf("openssl does not show %q:\n%s", want, text)
		}
	}
	text = output(t, certtool, "--certificate-info", "--infile", file)
	for _, want := range []string{"Certificate Authority (CA): FALSE", "Digital signature", "Subject Alternative Name"} {
		if !strings.Contains(text, want) {
			t.Errorf("certtool does not show %q:\n%s", want, text)
		}
	}
}
