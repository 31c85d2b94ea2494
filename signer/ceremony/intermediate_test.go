package ceremony_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/ceremony"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func requestFor(t *testing.T, key *ecdsa.PrivateKey) *csr.Request {
	t.Helper()
	// What it asks for beside the key is not given.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "root of all"}, DNSNames: []string{"bank.test"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := csr.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func istioSpec() ceremony.IntermediateSpec {
	return ceremony.IntermediateSpec{
		Mesh: ceremony.Istio, TrustDomains: []string{"cluster.local"}, DNSDomains: []string{"svc"},
		CommonName: "mesh CA", Lifetime: profile.Duration(90 * 24 * time.Hour),
	}
}

// below signs a certificate as a mesh does.
func below(t *testing.T, ca *x509.Certificate, key *ecdsa.PrivateKey, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	own := newKey(t)
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), ca.NotBefore, time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	if !template.IsCA {
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, own
}

// accepted reports whether Go's verifier and openssl's accept the leaf; they must agree.
func accepted(t *testing.T, leaf *x509.Certificate, root *x509.Certificate, middle ...*x509.Certificate) bool {
	t.Helper()
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	options.Roots.AddCert(root)
	var between []byte
	for _, c := range middle {
		options.Intermediates.AddCert(c)
		between = append(between, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	_, err := leaf.Verify(options)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	one := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	out, opensslErr := exec.CommandContext(t.Context(), "openssl", "verify", "-CAfile", file("root.pem", one(root)),
		"-untrusted", file("between.pem", between), file("leaf.pem", one(leaf))).CombinedOutput()
	if (err == nil) != (opensslErr == nil) {
		t.Errorf("Go says %v and openssl %v\n%s", err, opensslErr, out)
	}
	return err == nil
}

func spiffeURI(host, path string) []*url.URL {
	return []*url.URL{{Scheme: "spiffe", Host: host, Path: path}}
}

func TestAnIntermediateSignsItsOwnMeshAndNothingElse(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	made := initCA(t, ceremony.DefaultSpec(), token, book, ceremony.Deps{})
	root, key := made.Root.Certificate, newKey(t)
	request := requestFor(t, key)
	sign := func(in ceremony.IntermediateSpec, r *csr.Request) *ceremony.Intermediate {
		t.Helper()
		i, err := ceremony.SignIntermediate(t.Context(), ceremony.DefaultSpec(), in, r, "local:ada", token, book, ceremony.Deps{})
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	got := sign(istioSpec(), request)
	ca := got.Certificate
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero || !ca.PermittedDNSDomainsCritical || ca.Subject.CommonName == "root of all" || len(ca.DNSNames) > 0 ||
		ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || time.Until(ca.NotAfter) > 91*24*time.Hour || !key.PublicKey.Equal(ca.PublicKey) || !got.Root.Equal(root) {
		t.Errorf("the intermediate is %+v", ca)
	}
	for what, c := range map[string]struct {
		leaf x509.Certificate
		want bool
	}{
		"a workload":                   {x509.Certificate{URIs: spiffeURI("cluster.local", "/ns/a/sa/b")}, true},
		"istiod's own name":            {x509.Certificate{DNSNames: []string{"istiod.istio-system.svc"}}, true},
		"a workload of another mesh":   {x509.Certificate{URIs: spiffeURI("other.test", "/ns/a/sa/b")}, false},
		"a trust domain below its own": {x509.Certificate{URIs: spiffeURI("x.cluster.local", "/ns/a/sa/b")}, false},
		"a name on the internet":       {x509.Certificate{DNSNames: []string{"bank.test"}}, false},
		"a workload with such a name":  {x509.Certificate{URIs: spiffeURI("cluster.local", "/a"), DNSNames: []string{"bank.test"}}, false},
		"an address":                   {x509.Certificate{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}, false},
		"an IPv6 address":              {x509.Certificate{IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}}, false},
		"a mailbox":                    {x509.Certificate{EmailAddresses: []string{"a@bank.test"}}, false},
	} {
		t.Run(what, func(t *testing.T) {
			leaf, _ := below(t, ca, key, &c.leaf)
			if accepted(t, leaf, root, ca) != c.want {
				t.Errorf("accepted: %v", !c.want)
			}
		})
	}
	t.Run("no CA below it", func(t *testing.T) {
		sub, subKey := below(t, ca, key, &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "sub"}})
		leaf, _ := below(t, sub, subKey, &x509.Certificate{URIs: spiffeURI("cluster.local", "/ns/a/sa/b")})
		if accepted(t, leaf, root, ca, sub) {
			t.Error("a CA below it is accepted")
		}
	})
	t.Run("without DNS domains no DNS name", func(t *testing.T) {
		in, key := istioSpec(), newKey(t)
		in.DNSDomains = nil
		ca := sign(in, requestFor(t, key)).Certificate
		for host, want := range map[string]bool{"": true, "istiod.istio-system.svc": false} {
			leaf := &x509.Certificate{URIs: spiffeURI("cluster.local", "/ns/a/sa/b")}
			if host != "" {
				leaf.DNSNames = []string{host}
			}
			if cert, _ := below(t, ca, key, leaf); accepted(t, cert, root, ca) != want {
				t.Errorf("%q is accepted: %v", host, !want)
			}
		}
	})
	t.Run("a SPIRE server makes its own CA below it", func(t *testing.T) {
		in, key := istioSpec(), newKey(t)
		in.Mesh, in.DNSDomains = ceremony.SPIRE, nil
		ca := sign(in, requestFor(t, key)).Certificate
		server, serverKey := below(t, ca, key, &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, Subject: pkix.Name{CommonName: "SPIRE"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local"}}})
		for host, want := range map[string]bool{"cluster.local": true, "other.test": false} {
			leaf, _ := below(t, server, serverKey, &x509.Certificate{URIs: spiffeURI(host, "/workload")})
			if accepted(t, leaf, root, ca, server) != want {
				t.Errorf("%s is accepted: %v", host, !want)
			}
		}
	})
	t.Run("again the same, and both in the ledger", func(t *testing.T) {
		again := sign(istioSpec(), request)
		if !again.Duplicate || !again.Certificate.Equal(ca) {
			t.Error("a repeated approval has made another intermediate")
		}
		n, err := serial.FromBig(ca.SerialNumber)
		if err != nil {
			t.Fatal(err)
		}
		row, _, err := book.Certificate(t.Context(), n)
		if err != nil || row.Caller != "local:ada" || row.Profile != "intermediate" {
			t.Errorf("%+v, %v", row, err)
		}
		trail, err := book.Audit(t.Context(), 0, 100)
		if err != nil || !slices.ContainsFunc(trail, func(e ledger.AuditEntry) bool { return e.Action == "intermediate.approve" && e.Actor == "local:ada" }) {
			t.Errorf("the audit trail has %+v, %v", trail, err)
		}
	})
}

func TestWhatARootDoesNotAllowIsRefused(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	spec := ceremony.DefaultSpec()
	in := istioSpec()
	_, err := ceremony.SignIntermediate(t.Context(), spec, in, requestFor(t, newKey(t)), "local:ada", token, book, ceremony.Deps{})
	if !errors.Is(err, &problem.Error{Kind: problem.NotFound}) {
		t.Errorf("without a root: %v", err)
	}
	spec.Root.PathLength = 1
	initCA(t, spec, token, book, ceremony.Deps{})
	in.Mesh = ceremony.SPIRE
	_, err = ceremony.SignIntermediate(t.Context(), spec, in, requestFor(t, newKey(t)), "local:ada", token, book, ceremony.Deps{})
	if !errors.Is(err, &problem.Error{Kind: problem.Invalid, Rule: "path_length"}) {
		t.Errorf("a SPIRE server below a root with path length 1: %v", err)
	}
	for what, change := range map[string]func(*ceremony.IntermediateSpec){
		"another mesh": func(s *ceremony.IntermediateSpec) { s.Mesh = "linkerd" }, "no trust domain": func(s *ceremony.IntermediateSpec) { s.TrustDomains = nil },
		"a pattern": func(s *ceremony.IntermediateSpec) { s.TrustDomains = []string{"*.test"} }, "ten years": func(s *ceremony.IntermediateSpec) { s.Lifetime = profile.Duration(3650 * 24 * time.Hour) },
		"every name": func(s *ceremony.IntermediateSpec) { s.DNSDomains = []string{""} },
	} {
		in := istioSpec()
		if change(&in); in.Validate() == nil {
			t.Errorf("%s is allowed", what)
		}
	}
}
