package ceremony

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/certmill/certmill/internal/problem"
)

// transcriptContext keeps the root's signature of a transcript apart from those of
// certificates and CRLs, which begin with an ASN.1 SEQUENCE (0x30).
const transcriptContext = "certmill ceremony transcript, version 1\x00"

// The kinds of steps of a transcript, in their order.
const (
	StepBegin   = "begin"   // when the transcript was made
	StepToken   = "token"   // which token holds the keys
	StepWitness = "witness" // who was there; as many as there were
	StepRoot    = "root"
	StepIssuing = "issuing"
	StepOCSP    = "ocsp signer"
)

// A Step is one line of a transcript.
type Step struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
	// Certificate is the one that the step is about, as DER.
	Certificate []byte `json:"certificate,omitempty"`
	// Hash is SHA-256 over the hash of the step before (none for the first), then kind,
	// detail and certificate, each after its length as eight octets, big-endian.
	Hash []byte `json:"hash"`
}

// A Transcript says what a ceremony has made or found, in whose presence. Its steps are
// a chain of hashes, whose end the root has signed: none can be changed, left out or
// added without the root's key.
type Transcript struct {
	Steps []Step `json:"steps"`
	// Signature is the root's, over transcriptContext and the last step's hash: ECDSA or
	// RSA (PKCS #1 v1.5) with SHA-256, or Ed25519.
	Signature []byte `json:"signature"`
}

// Transcript writes down a ceremony and has its root sign that.
func (r *Result) Transcript(ctx context.Context, witnesses []string, deps Deps) (*Transcript, error) {
	if r.Root.key == nil {
		return nil, errors.New("only the ceremony that has the root's key can write its transcript")
	}
	t := &Transcript{}
	t.add(StepBegin, deps.withDefaults().Now().UTC().Format(time.RFC3339), nil)
	t.add(StepToken, r.Root.key.Serial(), nil)
	for _, w := range witnesses {
		if strings.TrimSpace(w) == "" {
			return nil, problem.Rejected("witness", "required", "a witness has a name")
		}
		t.add(StepWitness, w, nil)
	}
	t.add(StepRoot, stepText(r.Root.Made, r.Root.Issuer.KeyURI), r.Root.Certificate.Raw)
	t.add(StepIssuing, stepText(r.Issuing.Made, r.Issuing.Issuer.KeyURI), r.Issuing.Certificate.Raw)
	t.add(StepOCSP, stepText(r.OCSP.Made, r.OCSP.Signer.KeyURI), r.OCSP.Certificate.Raw)
	message, options, _ := t.toSign(r.Root.Certificate)
	var err error
	if t.Signature, err = r.Root.key.sign(ctx, message, options); err != nil {
		return nil, fmt.Errorf("signing the transcript: %w", err)
	}
	return t, nil
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

func (s *Step) hash(before []byte) []byte {
	h := sha256.New()
	h.Write(before)
	for _, field := range [][]byte{[]byte(s.Kind), []byte(s.Detail), s.Certificate} {
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

// Verify checks a transcript against the root's certificate, which must come from
// elsewhere: the chain of hashes, the root's signature, and that the certificates in it
// are that root and what it has certified. It says Invalid where they are not.
func (t *Transcript) Verify(root *x509.Certificate) error {
	bad := func(format string, args ...any) error {
		return problem.Rejected("transcript", "forged", format, args...)
	}
	if len(t.Steps) == 0 {
		return bad("it has no steps")
	}
	var before []byte
	certs := map[string]*x509.Certificate{}
	var order []string
	for i, s := range t.Steps {
		if !bytes.Equal(s.Hash, s.hash(before)) {
			return bad("step %d (%s) is not what was hashed", i+1, s.Kind)
		}
		before = s.Hash
		if s.Kind != StepWitness {
			order = append(order, s.Kind)
		}
		if len(s.Certificate) == 0 {
			continue
		}
		cert, err := x509.ParseCertificate(s.Certificate)
		if err != nil {
			return bad("step %d (%s): %s", i+1, s.Kind, err)
		}
		certs[s.Kind] = cert
	}
	_, _, algorithm := t.toSign(root)
	if err := root.CheckSignature(algorithm, t.message(), t.Signature); err != nil {
		return bad("its signature is not that of %s: %s", root.Subject, err)
	}
	if !slices.Equal(order, []string{StepBegin, StepToken, StepRoot, StepIssuing, StepOCSP}) {
		return bad("its steps are %q", order)
	}
	if made := certs[StepRoot]; made == nil || !made.Equal(root) {
		return bad("its root is another one")
	}
	for _, link := range [][2]string{{StepIssuing, StepRoot}, {StepOCSP, StepIssuing}} {
		cert := certs[link[0]]
		if cert == nil {
			return bad("step %s lacks its certificate", link[0])
		}
		if err := check(cert, certs[link[1]]); err != nil {
			return bad("%s", err)
		}
	}
	return nil
}
