// Package material makes keys and CSRs before the clock starts, so that a run
// measures the service and not the generator's own mathematics.
package material

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// KeyType is a kind of key.
type KeyType string

// The kinds.
const (
	P256    KeyType = "p256"
	P384    KeyType = "p384"
	Ed25519 KeyType = "ed25519"
	RSA2048 KeyType = "rsa2048"
	RSA3072 KeyType = "rsa3072"
)

// KeyTypes lists the kinds.
var KeyTypes = []KeyType{P256, P384, Ed25519, RSA2048, RSA3072}

// CSR is one certificate request with what its certificate must say. It is immutable.
type CSR struct {
	DER  []byte
	PEM  []byte
	SPKI []byte // of the key, DER
	// DNSNames and URIs are the names asked for.
	DNSNames []string
	URIs     []string
	// CommonName is the subject's, or empty.
	CommonName string
}

// Config says what to make.
type Config struct {
	// Types are the key types, in turn. Default: P-256.
	Types []KeyType
	// Keys is how many different keys are made of each type. 0: 256, of RSA 8, since an
	// RSA key costs a tenth of a second.
	Keys int
	// CSRs is how many different CSRs are made in all. 0: as many as Planned needs.
	CSRs int
	// Planned is how many requests the run will make, as far as that is known.
	Planned int64
	// MaxReuse bounds how often one CSR is used. 0: 1,000.
	MaxReuse int
	// Name is the DNS name asked for, or a URI if it holds "://"; "{n}" becomes the
	// number of the CSR.
	Name string
	// CommonName puts the name into the subject too, for CAs that want one.
	CommonName bool
}

const (
	// MaxCSRs bounds what is kept in memory: about 1.2 KB each.
	MaxCSRs  = 200_000
	minCSRs  = 1024
	minRSA   = 128
	maxReuse = 1000
)

func (c *Config) setDefaults() error {
	if len(c.Types) == 0 {
		c.Types = []KeyType{P256}
	}
	for _, t := range c.Types {
		if _, err := generator(t); err != nil {
			return fmt.Errorf("--key-type: %w", err)
		}
	}
	if c.MaxReuse == 0 {
		c.MaxReuse = maxReuse
	}
	switch {
	case c.MaxReuse < 1:
		return errors.New("--max-reuse must be at least 1")
	case c.Keys < 0:
		return errors.New("--keys must be at least 1, or 0 for the default")
	}
	if c.CSRs == 0 {
		least := minCSRs
		if strings.HasPrefix(string(c.Types[0]), "rsa") {
			least = minRSA
		}
		c.CSRs = int(min(max(int64(least), (c.Planned+int64(c.MaxReuse)-1)/int64(c.MaxReuse)), MaxCSRs))
	}
	switch {
	case c.CSRs < 1 || c.CSRs > MaxCSRs:
		return fmt.Errorf("--csrs must be 1 to %d", MaxCSRs)
	case c.Planned > int64(c.CSRs)*int64(c.MaxReuse):
		return fmt.Errorf("%d requests with %d CSRs would use each %d times, more than %d: make more (--csrs), allow more reuse (--max-reuse) or shorten the run (--duration)",
			c.Planned, c.CSRs, (c.Planned+int64(c.CSRs)-1)/int64(c.CSRs), c.MaxReuse)
	case c.Name == "":
		return errors.New("--name must not be empty")
	}
	return nil
}

// Pool holds the CSRs of a run. It is immutable and safe for concurrent use.
type Pool struct {
	csrs     []*CSR
	keys     int
	types    []KeyType
	maxReuse int
}

// Make makes the pool on all cores; progress is told how many CSRs are ready, and may
// be nil.
func Make(ctx context.Context, cfg Config, progress func(done, of int)) (*Pool, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	keys, err := makeKeys(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p := &Pool{csrs: make([]*CSR, cfg.CSRs), keys: len(keys), types: cfg.Types, maxReuse: cfg.MaxReuse}
	var done atomic.Int64
	err = parallel(ctx, cfg.CSRs, func(i int) error {
		csr, err := makeCSR(keys[i%len(keys)], cfg, i)
		if err != nil {
			return fmt.Errorf("making CSR %d: %w", i, err)
		}
		p.csrs[i] = csr
		if n := done.Add(1); progress != nil && (n%1024 == 0 || n == int64(cfg.CSRs)) {
			progress(int(n), cfg.CSRs)
		}
		return nil
	})
	return p, err
}

func parallel(ctx context.Context, n int, do func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// makeKeys returns the keys with the types in turn.
func makeKeys(ctx context.Context, cfg Config) ([]crypto.Signer, error) {
	n := 0
	counts := make([]int, len(cfg.Types))
	for i, t := range cfg.Types {
		if counts[i] = cfg.Keys; counts[i] == 0 {
			counts[i] = 256
			if strings.HasPrefix(string(t), "rsa") {
				counts[i] = 8
			}
		}
		n = max(n, counts[i])
	}
	// Types take turns; where one has fewer keys than another, they come round sooner.
	made := make([][]crypto.Signer, len(cfg.Types))
	for i, t := range cfg.Types {
		made[i] = make([]crypto.Signer, counts[i])
		generate, err := generator(t)
		if err != nil {
			return nil, err
		}
		if err := parallel(ctx, counts[i], func(k int) (err error) { made[i][k], err = generate(); return err }); err != nil {
			return nil, fmt.Errorf("making %s keys: %w", t, err)
		}
	}
	var out []crypto.Signer
	for k := range n {
		for i := range made {
			out = append(out, made[i][k%len(made[i])])
		}
	}
	return out, nil
}

func generator(t KeyType) (func() (crypto.Signer, error), error) {
	switch t {
	case P256:
		return func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }, nil
	case P384:
		return func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) }, nil
	case Ed25519:
		return func() (crypto.Signer, error) { _, k, err := ed25519.GenerateKey(rand.Reader); return k, err }, nil
	case RSA2048:
		return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }, nil
	case RSA3072:
		return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }, nil
	default:
		return nil, fmt.Errorf("%q is not a kind of key; there are p256, p384, ed25519, rsa2048 and rsa3072", t)
	}
}

func makeCSR(key crypto.Signer, cfg Config, n int) (*CSR, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	c := &CSR{SPKI: spki}
	name := strings.ReplaceAll(cfg.Name, "{n}", strconv.Itoa(n))
	template := &x509.CertificateRequest{}
	if strings.Contains(name, "://") {
		u, err := url.Parse(name)
		if err != nil {
			return nil, err
		}
		c.URIs, template.URIs = []string{u.String()}, []*url.URL{u}
	} else {
		c.DNSNames, template.DNSNames = []string{name}, []string{name}
	}
	if cfg.CommonName {
		c.CommonName, template.Subject = name, pkix.Name{CommonName: name}
	}
	if c.DER, err = x509.CreateCertificateRequest(rand.Reader, template, key); err != nil {
		return nil, err
	}
	c.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c.DER})
	return c, nil
}

// Size returns how many CSRs and keys there are.
func (p *Pool) Size() (csrs, keys int) { return len(p.csrs), p.keys }

// MaxRequests returns how many requests the bound on reuse allows.
func (p *Pool) MaxRequests() int64 { return int64(len(p.csrs)) * int64(p.maxReuse) }

// Get returns the CSR of the n-th request.
func (p *Pool) Get(n int64) *CSR { return p.csrs[n%int64(len(p.csrs))] }

// RunID returns a random word that makes the idempotency keys of a run its own.
func RunID() (string, error) {
	var b [6]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}
