package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
	"go.opentelemetry.io/otel/codes"

	"github.com/certmill/certmill/internal/problem"
)

// Key is a private key in a token. It is a crypto.Signer, safe for concurrent use,
// and lives as long as its token: it outlasts lost sessions and lost tokens.
type Key struct {
	token  *Token
	uri    URI // label and CKA_ID
	public crypto.PublicKey
	noCopy atomic.Bool // the token refuses session copies of this key
	pace   pace
}

var _ crypto.Signer = (*Key)(nil)

// Key returns the key that an RFC 7512 URI names, by object, id or both; where the
// URI names a token too, it must be this one. The public key is read from the token,
// and a test signature shows that the two belong together. Calls with the same URI
// return the same Key. A key that the token does not hold is problem.NotFound.
func (t *Token) Key(ctx context.Context, uri string) (*Key, error) {
	return t.KeyFor(ctx, uri, nil)
}

// KeyFor is Key for tokens that hold no public keys: public is taken, from the
// issuer's certificate for example, where the token has none, and must be the same
// where it has.
func (t *Token) KeyFor(ctx context.Context, uri string, public crypto.PublicKey) (*Key, error) {
	want, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if !want.namesKey() {
		return nil, fmt.Errorf("the PKCS#11 URI %q names no key; give object or id", uri)
	}
	here := pkcs11.TokenInfo{Label: t.info.Label, SerialNumber: t.info.Serial, ManufacturerID: t.info.Manufacturer, Model: t.info.Model}
	if !want.matches(here) {
		return nil, fmt.Errorf("the PKCS#11 URI %q names another token than %q", uri, t.info.Label)
	}
	t.mu.Lock()
	k := t.keys[uri]
	t.mu.Unlock()
	if k == nil {
		if k, err = t.bind(ctx, want, public); err != nil {
			return nil, notFound(want, err)
		}
	}
	if public != nil && !samePublic(public, k.public) {
		return nil, fmt.Errorf("the key %s in the token is not the one expected", want)
	}
	return t.remember(uri, k), nil
}

// notFound gives a missing key its kind; the token's other failures are Unavailable.
func notFound(want URI, err error) error {
	if errors.Is(err, errKeyMissing) {
		return &problem.Error{Kind: problem.NotFound, Field: "key", Detail: "the token does not hold the key " + want.String(), Cause: err}
	}
	return fmt.Errorf("finding the key %s: %w", want, err)
}

// remember keeps the first key of a URI, and the first of all for test signatures.
func (t *Token) remember(uri string, k *Key) *Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.keys[uri]; old != nil {
		return old
	}
	t.keys[uri] = k
	if t.testKey == nil {
		t.testKey = k
	}
	return k
}

// bind finds the key and its public half, and makes a test signature.
func (t *Token) bind(ctx context.Context, want URI, public crypto.PublicKey) (*Key, error) {
	s, err := t.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return runOn(ctx, t, s, t.cfg.OpenTimeout, func(s *session) (*Key, error) {
		k, err := try(t, s, nil, func(s *session) (k *Key, err error) {
			err = t.alone(func() error {
				k, err = t.findKey(s, want, public)
				return err
			})
			return k, err
		})
		if err != nil {
			return nil, err
		}
		_, err = try(t, s, k, func(s *session) (struct{}, error) { return struct{}{}, k.test(s) })
		return k, err
	})
}

// Public returns the public key: *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// URI returns an RFC 7512 URI that finds the key in any token that holds it.
func (k *Key) URI() string { return k.uri.String() }

// Token returns the token that holds the key.
func (k *Key) Token() *Token { return k.token }

// Sign implements crypto.Signer; it is SignContext without a deadline of the caller's.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest, or with Ed25519 and crypto.Hash(0) a message. ECDSA
// signatures are in ASN.1. RSA signs by PKCS#1 v1.5, or PSS for *rsa.PSSOptions; the
// salt of PSSSaltLengthAuto is as long as the hash.
//
// The wait for a session obeys ctx, the signature itself takes at most CallTimeout.
// Failures of the token are problem.Unavailable and wrap the pkcs11.Error; when ctx
// ends, its error is returned. The signature is not checked: the caller does that
// on what it signed, with Verify for example, and calls Token.Condemn if it is wrong.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, span := k.token.tracer.Start(ctx, "hsm.sign")
	defer span.End()
	sig, err := k.sign(ctx, digest, opts)
	if err != nil {
		span.SetStatus(codes.Error, "not signed")
		return nil, fmt.Errorf("signing with %s: %w", k.uri, err)
	}
	return sig, nil
}

func (k *Key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	op, err := newOperation(k.public, digest, opts)
	if err != nil {
		return nil, err
	}
	// Here too, since all workers may be inside calls that hang.
	if err := k.token.admit(); err != nil {
		return nil, err
	}
	op.input = bytes.Clone(op.input) // who stops waiting may use his own again
	return k.token.wait(&request{ctx: ctx, key: k, op: op, since: time.Now(), done: make(chan result[[]byte], 1)})
}

// signOn makes signatures on a session, by operations that are alike, up to the first
// that fails.
func (k *Key) signOn(s *session, ops []operation) ([][]byte, error) {
	handle, err := k.handle(s)
	if err != nil {
		return nil, err
	}
	inputs := make([][]byte, len(ops))
	for i, op := range ops {
		inputs[i] = op.input
	}
	// With room for what is longer than it should be: encode says so.
	raws, err := k.token.module.lib.SignEach(s.handle, ops[0].mechanism, handle, inputs, ops[0].size+signatureSlack, batchTime)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_BUFFER_TOO_SMALL)) {
		err = fmt.Errorf("%w: it has more than %d octets", errWrongSignature, ops[0].size+signatureSlack)
	}
	signed := make([][]byte, 0, len(raws))
	for i, raw := range raws {
		sig, err := ops[i].encode(raw)
		if err != nil {
			return signed, err
		}
		signed = append(signed, sig)
	}
	return signed, err
}

const signatureSlack = 16 // octets

// testText is what test signatures sign, with random bits. It is no certificate, so
// its signature is of no use to anybody.
const testText = "certmill: a test signature of an HSM token "

// test makes a signature of a text of no meaning and checks it.
func (k *Key) test(s *session) error {
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	text := append([]byte(testText), nonce...)
	digest, opts := text, crypto.SignerOpts(crypto.Hash(0))
	if hash := testHash(k.public); hash != 0 {
		sum := sha256.Sum256(text)
		digest, opts = sum[:], hash
	}
	op, err := newOperation(k.public, digest, opts)
	if err != nil {
		return err
	}
	sigs, err := k.signOn(s, []operation{op})
	if err != nil {
		return err
	}
	if err := Verify(k.public, digest, sigs[0], opts); err != nil {
		return fmt.Errorf("%w: test signature: %w", errWrongSignature, err)
	}
	return nil
}
