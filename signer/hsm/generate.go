package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/certmill/certmill/internal/problem"
)

// Algorithm is a kind of key that can be made.
type Algorithm string

// The algorithms. Ed25519 needs a token with PKCS#11 v3.0's EdDSA.
const (
	ECDSAP256 Algorithm = "ecdsa-p256"
	ECDSAP384 Algorithm = "ecdsa-p384"
	RSA2048   Algorithm = "rsa-2048"
	RSA3072   Algorithm = "rsa-3072"
	RSA4096   Algorithm = "rsa-4096"
	Ed25519   Algorithm = "ed25519"
)

// Algorithms lists every algorithm.
var Algorithms = []Algorithm{ECDSAP256, ECDSAP384, RSA2048, RSA3072, RSA4096, Ed25519}

// recipe is how PKCS#11 makes a key of an algorithm.
type recipe struct {
	mechanism, keyType uint
	public             *pkcs11.Attribute // what chooses curve or size
}

func (a Algorithm) recipe() (recipe, bool) {
	ec := func(oid []byte) recipe {
		return recipe{pkcs11.CKM_EC_KEY_PAIR_GEN, pkcs11.CKK_EC, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, oid)}
	}
	rsa := func(bits int) recipe {
		return recipe{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, pkcs11.CKK_RSA, pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits)}
	}
	switch a {
	case ECDSAP256:
		return ec(curves[0].oid), true
	case ECDSAP384:
		return ec(curves[1].oid), true
	case RSA2048:
		return rsa(2048), true
	case RSA3072:
		return rsa(3072), true
	case RSA4096:
		return rsa(4096), true
	case Ed25519:
		return recipe{ckmECEdwardsKeyPairGen, ckkECEdwards, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, ed25519Params)}, true
	}
	return recipe{}, false
}

// KeySpec says what key to make.
type KeySpec struct {
	// Label is the key's CKA_LABEL; it must be new to the token.
	Label string
	// ID is the key's CKA_ID. Empty: 16 random octets.
	ID        []byte
	Algorithm Algorithm
}

// GenerateKey makes a key pair in the token: stored, sensitive, not extractable, for
// signatures only. It fails with problem.Conflict where the token has a key of that
// label, or of that ID if one is given.
func (t *Token) GenerateKey(ctx context.Context, spec KeySpec) (*Key, error) {
	how, ok := spec.Algorithm.recipe()
	if !ok {
		return nil, fmt.Errorf("the key algorithm %q is not one of %q", spec.Algorithm, Algorithms)
	}
	if spec.Label == "" {
		return nil, errors.New("a key needs a label")
	}
	id := spec.ID
	if len(id) == 0 {
		id = make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return nil, err
		}
	}
	s, err := t.acquire(ctx)
	if err != nil {
		return nil, err
	}
	_, err = runOn(ctx, t, s, t.cfg.OpenTimeout, func(s *session) (struct{}, error) {
		defer t.closeSession(s) // it may write; the next one may not
		if err := t.unused(s, spec); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, t.generate(s, how, spec.Label, id)
	})
	if err != nil {
		return nil, fmt.Errorf("making the key %q: %w", spec.Label, err)
	}
	t.log.Info("key made in the token", "label", spec.Label, "algorithm", spec.Algorithm)
	return t.Key(ctx, URI{Object: spec.Label, ID: id}.String())
}

// unused fails where a key of the label or of the ID exists.
func (t *Token) unused(s *session, spec KeySpec) error {
	wanted := []URI{{Object: spec.Label}}
	if len(spec.ID) > 0 {
		wanted = append(wanted, URI{ID: spec.ID})
	}
	for _, want := range wanted {
		used, err := try(t, s, nil, func(s *session) (bool, error) {
			_, err := t.findOne(s, pkcs11.CKO_PRIVATE_KEY, want)
			switch {
			case errors.Is(err, errKeyMissing):
				return false, nil
			case errors.Is(err, errAmbiguous):
				return true, nil
			default:
				return true, err
			}
		})
		if err != nil {
			return err
		}
		if used {
			return problem.New(problem.Conflict, "the token has a key %s already", want)
		}
	}
	return nil
}

// generate runs C_GenerateKeyPair in a session of its own that may write. It is not
// tried again: a failure may have left a key behind.
func (t *Token) generate(s *session, how recipe, label string, id []byte) error {
	t.closeSession(s)
	if err := t.openSession(s, pkcs11.CKF_RW_SESSION); err != nil {
		return err
	}
	common := func(class uint) []*pkcs11.Attribute {
		return []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, how.keyType),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		}
	}
	public := append(common(pkcs11.CKO_PUBLIC_KEY), how.public,
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false), // or it would not be seen before the login
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true))
	if how.keyType == pkcs11.CKK_RSA {
		public = append(public, pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	private := append(common(pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true))
	_, handle, err := t.module.lib.GenerateKeyPair(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(how.mechanism, nil)}, public, private)
	if err != nil {
		return fmt.Errorf("C_GenerateKeyPair: %w", err)
	}
	if !t.isTrue(s, handle, pkcs11.CKA_SENSITIVE) || t.isTrue(s, handle, pkcs11.CKA_EXTRACTABLE) {
		return fmt.Errorf("%w: the key made could leave the token, whatever was asked for; it must not be used", errRefused)
	}
	return nil
}
