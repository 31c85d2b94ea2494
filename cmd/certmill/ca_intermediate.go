//go:build cgo

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/signer/ceremony"
)

func caIntermediateCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "intermediate", Short: "Intermediates for meshes that sign for themselves: Istio's cacerts, SPIRE's disk UpstreamAuthority", Args: cobra.NoArgs,
		Long: `Intermediates for meshes that sign for themselves. The mesh's team makes a key and a
request, and tells the CA's operator the request's digest by a way of its own; the operator
approves that digest where the HSM is. The key never leaves the team.`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(intermediateRequestCommand(), intermediateApproveCommand())
	return c
}

// meshFiles are the names under which a mesh expects its files.
type meshFiles struct{ cert, key, root, chain string }

var filesOf = map[ceremony.Mesh]meshFiles{
	ceremony.Istio: {"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"},
	ceremony.SPIRE: {"upstream-cert.pem", "upstream-key.pem", "bundle.pem", ""},
}

const requestFile = "request.csr"

func meshFlag(name string) (ceremony.Mesh, meshFiles, error) {
	files, ok := filesOf[ceremony.Mesh(name)]
	if !ok {
		return "", files, usage("--mesh is istio or spire")
	}
	return ceremony.Mesh(name), files, nil
}

func intermediateRequestCommand() *cobra.Command {
	var mesh, out string
	c := &cobra.Command{
		Use: "request", Short: "Make a key and a request, where the mesh is", Args: cobra.NoArgs,
		Example: "  certmill ca intermediate request --mesh istio --out cacerts",
	}
	c.Flags().StringVar(&mesh, "mesh", "", "istio or spire")
	c.Flags().StringVar(&out, "out", ".", "folder for the key and "+requestFile)
	c.RunE = func(c *cobra.Command, _ []string) error {
		_, files, err := meshFlag(mesh)
		if err != nil {
			return err
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			return err
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(out, 0o700); err != nil {
			return err
		}
		// A key that is there may be in use: it is not written over.
		if err := writeNew(filepath.Join(out, files.key), "PRIVATE KEY", private, 0o600); err != nil {
			return err
		}
		if err := writePEM(filepath.Join(out, requestFile), "CERTIFICATE REQUEST", der); err != nil {
			return err
		}
		parsed, err := csr.Parse(der)
		if err != nil {
			return err
		}
		report := requestReport{Request: filepath.Join(out, requestFile), Digest: hex.EncodeToString(parsed.SHA256[:])}
		return newPrinter(c).result(report, func(w *writer) {
			w.line("request  %s", report.Request)
			w.line("digest   %s", report.Digest)
		})
	}
	return c
}

// requestReport is what `ca intermediate request` prints.
type requestReport struct {
	Request string `json:"request"`
	Digest  string `json:"digest"`
}

func writeNew(name, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Close())
}

func writePEM(name, kind string, ders ...[]byte) error {
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return os.WriteFile(name, text, 0o644)
}

func intermediateApproveCommand() *cobra.Command {
	var mesh, file, digest, specFile, out, lifetime string
	var in ceremony.IntermediateSpec
	var r recording
	c := &cobra.Command{
		Use: "approve", Short: "Sign an approved request with the root's key; needs the HSM", Args: cobra.NoArgs,
		Long: `Sign an approved request with the root's key. The intermediate can sign workloads of the
trust domains named, DNS names of the domains named, and nothing else. The approval stands
in the audit trail, the certificate in the ledger.`,
		Example: `  certmill ca intermediate approve --config signer.yaml --csr cacerts/request.csr --digest 3f…c1 \
    --mesh istio --trust-domain cluster.local --dns-domain svc --out cacerts`,
	}
	source := sourceFlags(c)
	f := c.Flags()
	f.StringVar(&mesh, "mesh", "", "istio or spire")
	f.StringVar(&file, "csr", "", "the request")
	f.StringVar(&digest, "digest", "", "SHA-256 of the request in DER, as the mesh's team has told it: this approves it")
	f.StringSliceVar(&in.TrustDomains, "trust-domain", nil, "SPIFFE trust domain of the mesh (may be repeated)")
	f.StringSliceVar(&in.DNSDomains, "dns-domain", nil, `domain of DNS names that it may sign, such as "svc" for istiod's own (default: none)`)
	f.StringVar(&in.CommonName, "common-name", "mesh CA", "begins the subject's common name")
	f.StringVar(&lifetime, "lifetime", "90d", "1h to 365d")
	f.StringVar(&specFile, "spec", "", "the file that \"ca init\" was given")
	f.StringVar(&out, "out", ".", "folder for the files that the mesh expects")
	r.add(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		var files meshFiles
		var err error
		if in.Mesh, files, err = meshFlag(mesh); err != nil {
			return err
		}
		if in.Lifetime, err = profile.ParseDuration(lifetime); err != nil {
			return usageError{fmt.Errorf("--lifetime: %w", err)}
		}
		if err := in.Validate(); err != nil {
			return usageError{err}
		}
		if err := r.validate(); err != nil {
			return err
		}
		request, err := approvedRequest(file, digest)
		if err != nil {
			return err
		}
		spec, err := loadSpec(specFile)
		if err != nil {
			return err
		}
		return atDesk(c.Context(), *source, true, func(d *desk) error {
			made, err := ceremony.SignIntermediate(c.Context(), spec, in, request, localCaller(), d.token, d.book, ceremony.Deps{})
			if err != nil {
				return err
			}
			if err := files.write(out, made); err != nil {
				return err
			}
			if err := r.write(c.Context(), made); err != nil {
				return err
			}
			report := []caReport{reportCA(mesh+" intermediate", made.Certificate, filepath.Join(out, files.key), !made.Duplicate)}
			return newPrinter(c).result(report, func(w *writer) { caText(w, report) })
		})
	}
	return c
}

// approvedRequest reads a request that has the digest.
func approvedRequest(file, digest string) (*csr.Request, error) {
	if file == "" {
		return nil, usage("--csr names the request")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	request, err := csr.Parse(data)
	if err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(request.SHA256[:]); !strings.EqualFold(digest, got) {
		return nil, usage("the digest of %s is %s: compare it with what the mesh's team has told you, and approve it with --digest", file, got)
	}
	return request, nil
}

// write puts the certificates where the mesh expects them. The key is there already, or
// wherever the request came from.
func (f meshFiles) write(dir string, made *ceremony.Intermediate) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	const kind = "CERTIFICATE"
	err := errors.Join(
		writePEM(filepath.Join(dir, f.cert), kind, made.Certificate.Raw),
		writePEM(filepath.Join(dir, f.root), kind, made.Root.Raw))
	if f.chain != "" {
		// As Istio's own scripts write it: the intermediate and the root.
		err = errors.Join(err, writePEM(filepath.Join(dir, f.chain), kind, made.Certificate.Raw, made.Root.Raw))
	}
	return err
}
