package hsm

import (
	"crypto"
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"
)

// findKey finds a private key and its public half.
func (t *Token) findKey(s *session, want URI, given crypto.PublicKey) (*Key, error) {
	handle, err := t.findOne(s, pkcs11.CKO_PRIVATE_KEY, want)
	if err != nil {
		return nil, err
	}
	id, err := t.attribute(s, handle, pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	label, err := t.attribute(s, handle, pkcs11.CKA_LABEL)
	if err != nil {
		return nil, err
	}
	k := &Key{token: t, uri: URI{Object: string(label), ID: id}}
	if k.public, err = t.findPublic(s, handle, k.uri); err != nil {
		if given == nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		k.public = given
	}
	t.warnExtractable(s, handle, k)
	return k, nil
}

// warnExtractable tells the operator of a key that could leave the token.
func (t *Token) warnExtractable(s *session, handle pkcs11.ObjectHandle, k *Key) {
	if !t.isTrue(s, handle, pkcs11.CKA_SENSITIVE) || t.isTrue(s, handle, pkcs11.CKA_EXTRACTABLE) {
		t.log.Warn("the key can be taken out of the token", "key", k.URI())
	}
}

// findOne finds the one object of a class with the label and CKA_ID of want.
func (t *Token) findOne(s *session, class uint, want URI) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), // not a session copy of the key
	}
	if want.Object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, want.Object))
	}
	if len(want.ID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, want.ID))
	}
	handles, err := t.find(s, template)
	if err != nil {
		return 0, err
	}
	switch len(handles) {
	case 1:
		return handles[0], nil
	case 0:
		return 0, errKeyMissing
	default:
		return 0, fmt.Errorf("%w: %s; name one by its id", errAmbiguous, want)
	}
}

// find returns at most two objects: the second shows that the template is ambiguous.
func (t *Token) find(s *session, template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	lib := t.module.lib
	if err := lib.FindObjectsInit(s.handle, template); err != nil {
		return nil, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	handles, _, err := lib.FindObjects(s.handle, 2)
	if errFinal := lib.FindObjectsFinal(s.handle); err == nil && errFinal != nil {
		return nil, fmt.Errorf("C_FindObjectsFinal: %w", errFinal)
	}
	if err != nil {
		return nil, fmt.Errorf("C_FindObjects: %w", err)
	}
	return handles, nil
}

func (t *Token) attribute(s *session, o pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	values, err := t.module.lib.GetAttributeValue(s.handle, o, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil {
		return nil, fmt.Errorf("C_GetAttributeValue(%#x): %w", kind, err)
	}
	return values[0].Value, nil
}

// isTrue reports whether a boolean attribute is there and true.
func (t *Token) isTrue(s *session, o pkcs11.ObjectHandle, kind uint) bool {
	v, err := t.attribute(s, o, kind)
	return err == nil && len(v) == 1 && v[0] != 0
}

func (t *Token) ulong(s *session, o pkcs11.ObjectHandle, kind uint) (uint64, error) {
	v, err := t.attribute(s, o, kind)
	if err != nil {
		return 0, err
	}
	switch len(v) { // CK_ULONG is the C compiler's unsigned long
	case 8:
		return binary.NativeEndian.Uint64(v), nil
	case 4:
		return uint64(binary.NativeEndian.Uint32(v)), nil
	default:
		return 0, fmt.Errorf("attribute %#x has %d octets", kind, len(v))
	}
}

// findPublic reads the public key from the public object with the same CKA_ID, and
// where there is none from the private one: RSA keys have it there, EC keys with
// some vendors.
func (t *Token) findPublic(s *session, private pkcs11.ObjectHandle, want URI) (crypto.PublicKey, error) {
	source := private
	if public, err := t.findOne(s, pkcs11.CKO_PUBLIC_KEY, want); err == nil {
		source = public
	}
	kind, err := t.ulong(s, private, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, err
	}
	read := func(first, second uint) (a, b []byte, err error) {
		if a, err = t.attribute(s, source, first); err == nil {
			b, err = t.attribute(s, source, second)
		}
		return a, b, err
	}
	switch kind {
	case pkcs11.CKK_EC:
		params, point, err := read(pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		return ecPublic(params, point)
	case ckkECEdwards:
		params, point, err := read(pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		return ed25519Public(params, point)
	case pkcs11.CKK_RSA:
		modulus, exponent, err := read(pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		return rsaPublic(modulus, exponent)
	default:
		return nil, fmt.Errorf("%w: keys of type %#x", errRefused, kind)
	}
}

// handle returns the object to sign with in this session: found once, and copied
// into the session where that is wanted and allowed.
func (k *Key) handle(s *session) (pkcs11.ObjectHandle, error) {
	if h, ok := s.objects[k]; ok {
		return h, nil
	}
	// Alone, since SoftHSM shows a session copy in the making as a stored key.
	err := k.token.alone(func() error {
		h, err := k.token.findOne(s, pkcs11.CKO_PRIVATE_KEY, k.uri)
		if err == nil && k.token.cfg.SessionKeys && !k.noCopy.Load() {
			h, err = k.copyInto(s, h)
		}
		if err == nil {
			s.objects[k] = h
		}
		return err
	})
	return s.objects[k], err
}

// copyInto makes a copy of the key that lives as long as the session. It returns the
// stored key where the token refuses, or makes a copy that could leave it.
func (k *Key) copyInto(s *session, stored pkcs11.ObjectHandle) (pkcs11.ObjectHandle, error) {
	t := k.token
	h, err := t.module.lib.CopyObject(s.handle, stored, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
	if err != nil {
		switch RemedyFor(err) {
		case Refuse, Retry: // not possible, or no memory for it
			k.refuseCopy(err)
			return stored, nil
		default:
			return 0, fmt.Errorf("C_CopyObject: %w", err)
		}
	}
	if t.isTrue(s, h, pkcs11.CKA_SENSITIVE) && !t.isTrue(s, h, pkcs11.CKA_EXTRACTABLE) {
		return h, nil
	}
	k.refuseCopy(fmt.Errorf("%w: the copy would not be protected", errRefused))
	if err := t.module.lib.DestroyObject(s.handle, h); err != nil {
		return 0, fmt.Errorf("C_DestroyObject: %w", err)
	}
	return stored, nil
}

func (k *Key) refuseCopy(err error) {
	if k.noCopy.CompareAndSwap(false, true) {
		k.token.log.Info("no session copies of this key; the stored one is used", "key", k.URI(), "error", err)
	}
}
