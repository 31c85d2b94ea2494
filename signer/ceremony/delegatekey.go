package ceremony

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/certmill/certmill/signer/hsm"
)

// delegateKey returns the public key of the issuing CA's OCSP delegate, made where it
// is not there, and the URI by which presigners find the private one.
func (c *ceremony) delegateKey(ctx context.Context, issuing *CA) (crypto.PublicKey, string, error) {
	spec := c.spec.OCSP
	if spec.KeyFile == "" {
		key, err := c.key(ctx, delegateLabel(issuing), spec.KeyAlgorithm)
		if err != nil {
			return nil, "", err
		}
		return key.Public(), key.URI(), nil
	}
	path := strings.ReplaceAll(spec.KeyFile, "{issuer}", issuing.Issuer.Name)
	key, err := keyInFile(path, spec.KeyAlgorithm)
	if err != nil {
		return nil, "", fmt.Errorf("ocsp.key_file: %w", err)
	}
	return key.Public(), "file:" + path, nil
}

// keyInFile reads a key, or makes one that only its owner may read. A file that is
// there is never written to.
func keyInFile(path string, algorithm hsm.Algorithm) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newKeyInFile(path, algorithm)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no private key in PKCS #8: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that cannot sign", path)
	}
	return signer, nil
}

func newKeyInFile(path string, algorithm hsm.Algorithm) (crypto.Signer, error) {
	key, err := softwareKey(algorithm)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	// Written beside and linked into place: the file is there whole or not at all, and
	// of two ceremonies the later one fails.
	f, err := os.CreateTemp(filepath.Dir(path), ".ocsp-key-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return key, os.Link(f.Name(), path)
}

func softwareKey(algorithm hsm.Algorithm) (crypto.Signer, error) {
	switch algorithm {
	case hsm.ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case hsm.ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case hsm.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case hsm.RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case hsm.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case hsm.Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("no key of algorithm %q", algorithm)
}
