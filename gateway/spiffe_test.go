package gateway

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/certmill/certmill/ledger"
)

// jwks is a bundle as others read it.
type jwks struct {
	Keys []struct {
		Kty, Use, Kid string
		X5c           [][]byte
	}
	Sequence int `json:"spiffe_sequence"`
	Hint     int `json:"spiffe_refresh_hint"`
}

func (w *world) spiffeBundle(t testing.TB, domain string) jwks {
	t.Helper()
	var b jwks
	r := w.do(t, httpCall{method: http.MethodGet, path: "/v1/spiffe-bundles/" + domain}).ok(t, 200)
	must0(t, json.Unmarshal(r.body, &b))
	for _, k := range b.Keys {
		if k.Kty == "" || k.Use != "x509-svid" || k.Kid != "" || len(k.X5c) != 1 {
			t.Errorf("the key is %+v", k)
		}
	}
	return b
}

func TestTheBundleOfATrustDomain(t *testing.T) {
	w := newWorld(t)
	before := w.spiffeBundle(t, "cluster.local")
	if len(before.Keys) != 1 || string(before.Keys[0].X5c[0]) != string(w.pki.root.cert.Raw) || before.Sequence == 0 || before.Hint != 300 {
		t.Errorf("the bundle is %+v", before)
	}
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/spiffe-bundles/elsewhere.test"}).expect(t, 404, "", "")

	t.Run("a new root is in it before it signs anything, and the old one stays", func(t *testing.T) {
		for _, a := range []*authority{w.pki.root, newAuthority(t, "the next root", nil)} {
			must(w.book.PutIssuer(t.Context(), ledger.Issuer{Name: "root", State: ledger.IssuerRetired, DER: a.cert.Raw, KeyURI: "pkcs11:object=root"}))(t)
		}
		eventually(t, "the new root is in the bundle", func() bool { return len(w.spiffeBundle(t, "cluster.local").Keys) == 2 })
		if after := w.spiffeBundle(t, "cluster.local"); after.Sequence <= before.Sequence {
			t.Errorf("the sequence went from %d to %d", before.Sequence, after.Sequence)
		}
	})
}

func TestExtraRootsStandInTheirTrustDomainOnly(t *testing.T) {
	old := newAuthority(t, "the old mesh's", nil)
	file := old.file(t)
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.SPIFFE.ExtraRoots = []ExtraRoots{{TrustDomain: "cluster.local", File: file}}
	})
	if b := w.spiffeBundle(t, "cluster.local"); len(b.Keys) != 2 || b.Sequence != 0 {
		t.Errorf("%+v", b)
	}
	if b := w.spiffeBundle(t, "other.example.test"); len(b.Keys) != 1 || b.Sequence == 0 {
		t.Errorf("%+v", b)
	}
}

func TestExtraRootsThatCannotBeMeantAreRefused(t *testing.T) {
	profiles := newWorld(t).gateway.service.profiles
	p := newPKI(t)
	leaf := p.issuing.issue(t, &x509.Certificate{DNSNames: []string{"a.test"}})
	file := filepath.Join(t.TempDir(), "leaf.pem")
	must0(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}), 0o600))
	for what, r := range map[string]ExtraRoots{
		"a leaf": {"cluster.local", file}, "a trust domain of no profile": {"mars.test", p.root.file(t)}, "no file": {"cluster.local", "/nowhere"},
	} {
		if _, err := newBundles(SPIFFE{ExtraRoots: []ExtraRoots{r}}, profiles); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}
