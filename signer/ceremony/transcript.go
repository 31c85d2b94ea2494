package ceremony

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/certmill/certmill/internal/problem"
)

// transcriptContext keeps the root's signature of a transcript apart from those of
// certificates and CRLs, which begin with an ASN.1 SEQUENCE (0x30).
const transcriptContext = "certmill ceremony transcript, version 1\x00"

// The kinds of steps of a transcript.
const (
	StepBegin   = "begin"   // when the transcript was made, and of what
	StepToken   = "token"   // which token holds the keys
	StepWitness = "witness" // who was there; as many as there were
	StepRoot    = "root"
	StepIssuing = "issuing"
	StepOCSP    = "ocsp signer" // of the issuing CA before it
	StepBy      = "certified by"
	StepCross   = "cross" // the certificate by the CA of the step before
	StepCRL     = "crl"

	StepBefore       = "before" // the generation that is replaced
	StepClosed       = "closed" // the generation that was closed
	StepIntermediate = "intermediate"
)

// A Step is one line of a transcript.
type Step struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
	// Certificate is the one that the step is about, as DER.
	Certificate []byte `json:"certificate,omitempty"`
	// CRL is the one that the step is about, as DER.
	CRL []byte `json:"crl,omitempty"`
	// Hash is SHA-256 over the hash of the step before (none for the first), then kind,
	// detail, certificate and, where there is one, CRL, each after its length as eight
	// octets, big-endian.
	Hash []byte `json:"hash"`
}

// A Transcript says what a ceremony has made or found, in whose presence. Its steps are
// a chain of hashes, whose end the root has signed: none can be changed, left out or
// added without the root's key.
type Transcript struct {
	Steps []Step `json:"steps"`
	// Signature is the root's, or, where an act does not need the root, that of the issuing
	// CA in it, over transcriptContext and the last step's hash: ECDSA or
	// RSA (PKCS #1 v1.5) with SHA-256, or Ed25519.
	Signature []byte `json:"signature"`
}

func stepText(made bool, key string) string {
	if made {
		return "made; key " + key
	}
	return "found; key " + key
}

func (t *Transcript) add(kind, detail string, cert []byte) {
	var before []byte
	if n := len(t.Steps); n > 0 {
		before = t.Steps[n-1].Hash
	}
	s := Step{Kind: kind, Detail: detail, Certificate: cert}
	s.Hash = s.hash(before)
	t.Steps = append(t.Steps, s)
}

func (t *Transcript) addCRL(detail string, der []byte) {
	s := Step{Kind: StepCRL, Detail: detail, CRL: der}
	s.Hash = s.hash(t.Steps[len(t.Steps)-1].Hash)
	t.Steps = append(t.Steps, s)
}

func (s *Step) hash(before []byte) []byte {
	h := sha256.New()
	h.Write(before)
	fields := [][]byte{[]byte(s.Kind), []byte(s.Detail), s.Certificate}
	if len(s.CRL) > 0 {
		fields = append(fields, s.CRL)
	}
	for _, field := range fields {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(field)))
		h.Write(size[:])
		h.Write(field)
	}
	return h.Sum(nil)
}

// toSign returns what the root's key signs, how, and the algorithm to verify it by.
func (t *Transcript) toSign(root *x509.Certificate) ([]byte, crypto.SignerOpts, x509.SignatureAlgorithm) {
	message := t.message()
	digest := sha256.Sum256(message)
	switch root.PublicKey.(type) {
	case ed25519.PublicKey:
		return message, crypto.Hash(0), x509.PureEd25519
	case *rsa.PublicKey:
		return digest[:], crypto.SHA256, x509.SHA256WithRSA
	default:
		return digest[:], crypto.SHA256, x509.ECDSAWithSHA256
	}
}

func (t *Transcript) message() []byte {
	return append([]byte(transcriptContext), t.Steps[len(t.Steps)-1].Hash...)
}

// Act says what the transcript is about, one of the constants.
func (t *Transcript) Act() string {
	if len(t.Steps) == 0 {
		return ""
	}
	_, act, ok := strings.Cut(t.Steps[0].Detail, " ")
	if !ok {
		return ActInit // those of earlier versions have the time alone
	}
	return act
}

// Verify checks a transcript against the root's certificate, which must come from
// elsewhere: the chain of hashes, the signature, and that the certificates and CRLs in it
// are that root's and come from one another. It returns the certificate of the CA that
// signed: the root, or the issuing CA in it whose act needs no root. It says Invalid where
// anything is otherwise.
func (t *Transcript) Verify(root *x509.Certificate) (signer *x509.Certificate, err error) {
	bad := func(format string, args ...any) (*x509.Certificate, error) {
		return nil, problem.Rejected("transcript", "forged", format, args...)
	}
	if len(t.Steps) == 0 {
		return bad("it has no steps")
	}
	var before []byte
	v := &verifier{root: root}
	for i := range t.Steps {
		s := &t.Steps[i]
		if !bytes.Equal(s.Hash, s.hash(before)) {
			return bad("step %d (%s) is not what was hashed", i+1, s.Kind)
		}
		before = s.Hash
		if err := v.step(s); err != nil {
			return bad("step %d (%s): %s", i+1, s.Kind, err)
		}
	}
	if err := v.whole(t.Act()); err != nil {
		return bad("%s", err)
	}
	if signer = root; slices.Contains(byIssuer, t.Act()) {
		signer = v.issuer
	}
	_, _, algorithm := t.toSign(signer)
	if err := signer.CheckSignature(algorithm, t.message(), t.Signature); err != nil {
		return bad("its signature is not that of %s: %s", signer.Subject, err)
	}
	return signer, nil
}
