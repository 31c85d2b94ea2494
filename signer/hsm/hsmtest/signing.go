package hsmtest

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/signer/hsm"
)

// signOnce signs a random text in the way of the key's kind and checks the result.
func signOnce(ctx context.Context, key *hsm.Key) error {
	digest, opts := something(key.Public())
	sig, err := key.SignContext(ctx, digest, opts)
	if err != nil {
		return err
	}
	return hsm.Verify(key.Public(), digest, sig, opts)
}

func something(public crypto.PublicKey) ([]byte, crypto.SignerOpts) {
	text := []byte(rand.Text())
	if _, ok := public.(ed25519.PublicKey); ok {
		return text, crypto.Hash(0)
	}
	sum := sha256.Sum256(text)
	return sum[:], crypto.SHA256
}

func algorithms(t *testing.T, b Backend) {
	token, _ := open(t, b)
	for _, a := range hsm.Algorithms {
		t.Run(string(a), func(t *testing.T) {
			if slices.Contains(b.Lacks, a) {
				t.Skipf("%s has no %s", b.Name, a)
			}
			key, err := token.GenerateKey(t.Context(), hsm.KeySpec{Label: newLabel(), Algorithm: a})
			must(t, err)
			for range 8 { // r and s with leading zeros and high bits are a matter of luck
				must(t, signOnce(t.Context(), key))
			}
			selfSigned(t, key)
			digests(t, b, key)
		})
	}
}

// selfSigned has crypto/x509 make a certificate with the key and check it.
func selfSigned(t *testing.T, key *hsm.Key) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	must(t, cert.CheckSignatureFrom(cert))
}

// digests signs digests of other lengths than the usual one.
func digests(t *testing.T, b Backend, key *hsm.Key) {
	t.Helper()
	sum384, sum512 := sha512.Sum384([]byte("text")), sha512.Sum512([]byte("text"))
	cases := []struct {
		digest []byte
		opts   crypto.SignerOpts
	}{{sum384[:], crypto.SHA384}, {sum512[:], crypto.SHA512}}
	switch key.Public().(type) {
	case ed25519.PublicKey:
		if _, err := key.SignContext(t.Context(), sum512[:], crypto.SHA512); err == nil {
			t.Error("Ed25519 signed a digest")
		}
		must(t, signOnce(t.Context(), key))
		return
	case *rsa.PublicKey:
		if !b.NoPSS {
			sum := sha256.Sum256([]byte("text"))
			for _, salt := range []int{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, 20} {
				cases = append(cases, struct {
					digest []byte
					opts   crypto.SignerOpts
				}{sum[:], &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256}})
			}
		}
		if _, err := key.SignContext(t.Context(), make([]byte, 20), crypto.SHA1); err == nil {
			t.Error("RSA signed a SHA-1 digest")
		}
	}
	for _, c := range cases {
		sig, err := key.SignContext(t.Context(), c.digest, c.opts)
		must(t, err)
		must(t, hsm.Verify(key.Public(), c.digest, sig, c.opts))
	}
	if _, err := key.SignContext(t.Context(), sum384[:], crypto.SHA512); err == nil {
		t.Error("a digest of the wrong length was signed")
	}
}

func foundAgain(t *testing.T, b Backend) {
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	must(t, token.Close(t.Context()))

	token = openConfig(t, cfg)
	again, err := token.Key(t.Context(), key.URI())
	must(t, err)
	if !again.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
		t.Error("the key found has another public key")
	}
	must(t, signOnce(t.Context(), again))
	if same, err := token.Key(t.Context(), key.URI()); err != nil || same != again {
		t.Errorf("the second call for the key gave %p, %v; want %p", same, err, again)
	}
	if _, err := token.Key(t.Context(), "pkcs11:token=another;object=any"); err == nil {
		t.Error("a key of another token was found in this one")
	}
	if _, err := token.KeyFor(t.Context(), key.URI(), ed25519.PublicKey(make([]byte, 32))); err == nil {
		t.Error("a key was taken for one with another public key")
	}
}

func labelOnce(t *testing.T, b Backend) {
	token, _ := open(t, b)
	key := newKey(t, b, token)
	uri, err := hsm.ParseURI(key.URI())
	must(t, err)
	_, err = token.GenerateKey(t.Context(), hsm.KeySpec{Label: uri.Object, Algorithm: hsm.RSA2048})
	if problem.KindOf(err) != problem.Conflict {
		t.Errorf("a second key of the same label: %v; want a conflict", err)
	}
	must(t, signOnce(t.Context(), key))
}

func missingKey(t *testing.T, b Backend) {
	token, _ := open(t, b)
	if _, err := token.Key(t.Context(), "pkcs11:object=no%20such%20key"); problem.KindOf(err) != problem.NotFound {
		t.Errorf("a key that is not there: %v; want not found", err)
	}
	if got := token.State().Condition; got != hsm.Ready {
		t.Errorf("asking for a missing key made the token %s", got)
	}
}

func concurrent(t *testing.T, b Backend) {
	token, cfg := open(t, b)
	key := newKey(t, b, token)
	var callers sync.WaitGroup
	for range 4 * cfg.Sessions {
		callers.Go(func() {
			for range 10 {
				if err := signOnce(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	if got, want := token.Signatures(), uint64(40*cfg.Sessions); got != want {
		t.Errorf("%d signatures counted, %d made", got, want)
	}
	if got := token.Free(); got != cfg.Sessions {
		t.Errorf("%d sessions are free, not %d", got, cfg.Sessions)
	}
}

func ended(t *testing.T, b Backend) {
	token, _ := open(t, b)
	key := newKey(t, b, token)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// The session and the end of the context may both be there: either may win, but
	// nothing else may come of it, and the token stays well.
	for range 50 {
		if err := signOnce(ctx, key); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	must(t, signOnce(t.Context(), key))
	if got := token.State().Condition; got != hsm.Ready {
		t.Errorf("contexts that ended made the token %s", got)
	}
}
