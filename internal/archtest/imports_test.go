package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/certmill/certmill/"

// rule forbids packages below from to reach packages below any of to: directly, or
// where deep is set through any chain of imports.
type rule struct {
	from   string
	except []string
	to     []string
	deep   bool
	why    string
}

var rules = []rule{
	{from: "client", to: []string{"cmd", "gateway", "signer", "ocsp", "loadtest", "ledger", "deploy", "internal/config", "internal/queue", "internal/profile", "/github.com/nats-io", "/github.com/jackc", "/github.com/redis"}, deep: true, why: "applications that import the client must not carry the service"},
	{from: "proto", to: []string{"client", "cmd", "gateway", "signer", "ocsp", "loadtest", "ledger", "internal", "deploy"}, why: "proto is the ground"},
	{from: "internal", except: []string{"internal/testenv", "internal/archtest"}, to: []string{"cmd", "client", "gateway", "signer", "ocsp", "loadtest", "deploy"}, why: "internal packages serve the roles"},
	{from: "ledger", except: []string{"ledger/ledgertest"}, to: []string{"cmd", "gateway", "signer", "ocsp", "loadtest", "deploy"}, why: "the ledger serves the roles"},
	{from: "gateway", to: []string{"cmd", "signer", "ocsp", "loadtest", "deploy"}, deep: true, why: "a gateway and a signer meet on the queue only"},
	{from: "signer", to: []string{"cmd", "gateway", "ocsp", "loadtest", "deploy"}, deep: true, why: "a gateway and a signer meet on the queue only"},
	{from: "ocsp", except: []string{"ocsp/presign", "ocsp/crl", "ocsp/ocsptest", "ocsp/ocspbench"}, to: []string{"cmd", "gateway", "signer", "loadtest", "ledger", "deploy", "internal/queue"}, deep: true, why: "the responder's read path knows Redis only"},
	{from: "ocsp", except: []string{"ocsp/presign", "ocsp/crl", "ocsp/ocsptest", "ocsp/ocspbench"}, to: []string{"/github.com/nats-io", "/github.com/jackc", "/github.com/miekg/pkcs11"}, deep: true, why: "the responder's read path knows Redis only"},
	{from: "ocsp/crl", to: []string{"cmd", "gateway", "signer", "loadtest", "deploy", "internal/queue", "/github.com/redis"}, deep: true, why: "the maker of CRLs works on the ledger and a key alone"},
	{from: "ocsp/presign", to: []string{"cmd", "gateway", "loadtest", "deploy"}, deep: true, why: "presigners are no gateways"},
	{from: "gateway", to: []string{"/github.com/miekg/pkcs11", "/github.com/redis"}, deep: true, why: "gateways touch neither HSMs nor Redis"},
}

// pkg is what `go list` tells of a package. Its imports are those of the product,
// without the tests': tests start what they need.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	CgoFiles   []string
	Standard   bool
}

func TestImportsRunOneWay(t *testing.T) {
	packages := list(t)
	if len(packages) < 10 {
		t.Fatalf("only %d packages are listed", len(packages))
	}
	for _, r := range rules {
		for _, p := range packages {
			if !below(p.ImportPath, r.from) || slices.ContainsFunc(r.except, func(e string) bool { return below(p.ImportPath, e) }) {
				continue
			}
			imports := p.Imports
			if r.deep {
				imports = p.Deps
			}
			// The first is enough: what it drags in would fill pages.
			i := slices.IndexFunc(imports, func(i string) bool {
				return slices.ContainsFunc(r.to, func(to string) bool { return below(i, to) })
			})
			if i >= 0 {
				t.Errorf("%s reaches %s: %s", strings.TrimPrefix(p.ImportPath, module), imports[i], r.why)
			}
		}
	}
}

// ocsp/presign may use signer/hsm and nothing else of the signer.
func TestThePresignerUsesNothingOfTheSignerButItsHSM(t *testing.T) {
	for _, p := range list(t) {
		if !below(p.ImportPath, "ocsp/presign") {
			continue
		}
		for _, i := range p.Deps {
			if below(i, "signer") && !below(i, "signer/hsm") {
				t.Errorf("%s reaches %s", p.ImportPath, i)
			}
		}
	}
}

func TestPKCS11IsTouchedBySignerHSMAlone(t *testing.T) {
	for _, p := range list(t) {
		if below(p.ImportPath, "signer/hsm") {
			continue
		}
		if len(p.CgoFiles) > 0 || slices.Contains(p.Imports, "github.com/miekg/pkcs11") {
			t.Errorf("%s uses cgo or PKCS#11 itself", p.ImportPath)
		}
	}
}

func TestARuleFindsWhatItForbids(t *testing.T) {
	if !below(module+"signer/hsm", "signer") || below(module+"signerx", "signer") || !below("github.com/nats-io/nats.go", "/github.com/nats-io") {
		t.Error("below does not know folders")
	}
}

// below reports whether an import path is folder or lies in it. A folder that starts
// with a slash is an import path, others are folders of this module.
func below(path, folder string) bool {
	if rest, foreign := strings.CutPrefix(folder, "/"); foreign {
		folder = rest
	} else {
		folder = module + folder
	}
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,CgoFiles,Standard", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
