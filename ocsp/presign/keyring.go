package presign

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// keyring finds the keys of OCSP signers: in the HSM through find, in a PEM file
// (PKCS #8 or SEC 1) for "file:" URIs. It is not safe for concurrent use.
type keyring struct {
	find  KeyFunc
	known map[string]ContextSigner
	bad   map[int32]string // what was last said of a signer without a key
}

func (k *keyring) get(ctx context.Context, uri string, public crypto.PublicKey) (ContextSigner, error) {
	if key := k.known[uri]; key != nil && samePublic(key.Public(), public) {
		return key, nil
	}
	var key ContextSigner
	var err error
	if path, ok := strings.CutPrefix(uri, "file:"); ok {
		key, err = fileKey(path)
	} else if k.find == nil {
		err = errors.New("no HSM is configured")
	} else {
		key, err = k.find(ctx, uri, public)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", uri, err)
	}
	if !samePublic(key.Public(), public) {
		return nil, fmt.Errorf("key %s is not the certificate's", uri)
	}
	k.known[uri] = key
	return key, nil
}

// report logs what is wrong with a signer when that changes.
func (k *keyring) report(log *slog.Logger, signer int32, err error) {
	if k.bad == nil {
		k.bad = map[int32]string{}
	}
	said := ""
	if err != nil {
		said = err.Error()
	}
	if k.bad[signer] == said {
		return
	}
	k.bad[signer] = said
	if err != nil {
		log.Warn("an OCSP signer cannot be used", "ocsp_signer", signer, "error", err)
	} else {
		log.Info("an OCSP signer can be used again", "ocsp_signer", signer)
	}
}

func samePublic(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// softKey is a key in memory.
type softKey struct{ crypto.Signer }

// SignContext signs at once; there is nothing to wait for.
func (k softKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return k.Sign(rand.Reader, digest, opts)
}

// SoftwareKey makes a ContextSigner of a key in memory.
func SoftwareKey(key crypto.Signer) ContextSigner { return softKey{key} }

func fileKey(path string) (ContextSigner, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return softKey{key}, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s holds no private key in PKCS #8 or SEC 1: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that cannot sign", path)
	}
	return softKey{signer}, nil
}
