package auditchain

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/certmill/certmill/ledger"
)

// Options say what a chain must hold beside its own rows.
type Options struct {
	// Roots are who the issuers of the signed heads must come from. nil takes the issuers
	// on the word of whoever gave them, which is no word against who can write there.
	Roots *x509.CertPool
	// MaxAge is how old the newest signed head may be; 0 asks for none. Without a recent
	// one the end of the chain may have been cut off, signed heads and all.
	MaxAge time.Duration
	// Witness is a head that was kept elsewhere: the chain must still hold it.
	Witness *ledger.SignedHead
	// Now is the time of the check; nil means time.Now.
	Now func() time.Time
}

// Report is what a check found.
type Report struct {
	// Rows is how many rows the chain has, each checked against the one before.
	Rows int64 `json:"rows"`
	// Heads is how many signed heads were checked, all of which the chain holds.
	Heads int64 `json:"heads"`
	// SignedRows is the row up to which the chain is under a signature.
	SignedRows int64 `json:"signed_rows"`
	// SignedAt is when the newest head was signed; zero where there is none.
	SignedAt time.Time `json:"signed_at"`
}

// HeadError names a signed head that does not fit.
type HeadError struct {
	Sequence int64
	Reason   string
	Err      error
}

// Error says which head it is and why.
func (e *HeadError) Error() string {
	text := fmt.Sprintf("the signed head at row %d: %s", e.Sequence, e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *HeadError) Unwrap() error { return e.Err }

// Verifier checks a chain as its parts come: first the issuers, then the signed heads in
// the chain's order, then the rows, then End. It holds a hash for each row that a head
// stands on, and nothing for the others.
type Verifier struct {
	o       Options
	walk    ledger.AuditWalk
	issuers map[int32]*x509.Certificate
	wanted  map[int64][sha256.Size]byte // of rows to come
	// witnessed says that a file's check has taken the witness.
	witnessed bool
	report    Report
}

// NewVerifier makes a Verifier. A witness is checked as every other head.
func NewVerifier(o Options) *Verifier {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Verifier{o: o, issuers: map[int32]*x509.Certificate{}, wanted: map[int64][sha256.Size]byte{}}
}

// Issuer makes an issuer's certificate known, with its chain up to a root. Where roots
// were given it must come from one of them, at any time: a head outlives its issuer.
func (v *Verifier) Issuer(i ledger.Issuer) error {
	cert, err := x509.ParseCertificate(i.DER)
	if err != nil {
		return fmt.Errorf("issuer %d: %w", i.ID, err)
	}
	if v.o.Roots != nil {
		if err := v.trusted(cert, i.Chain); err != nil {
			return fmt.Errorf("issuer %d (%s) does not come from the given roots: %w", i.ID, cert.Subject, err)
		}
	}
	v.issuers[i.ID] = cert
	return nil
}

func (v *Verifier) trusted(cert *x509.Certificate, chain [][]byte) error {
	between := x509.NewCertPool()
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		between.AddCert(c)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: v.o.Roots, Intermediates: between, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// Head checks the signature of a head and remembers what row it wants. The error is a
// *HeadError.
func (v *Verifier) Head(h ledger.SignedHead) error {
	issuer := v.issuers[h.Issuer]
	if issuer == nil {
		return &HeadError{h.Sequence, fmt.Sprintf("issuer %d, who signed it, is not known", h.Issuer), nil}
	}
	if err := CheckSignature(h, issuer); err != nil {
		return &HeadError{h.Sequence, "it is forged", err}
	}
	if want, ok := v.wanted[h.Sequence]; ok && want != h.Hash {
		return &HeadError{h.Sequence, "two heads name different rows: the chain was rewritten between them", nil}
	}
	if h.Sequence > 0 {
		v.wanted[h.Sequence] = h.Hash
	} else if h.Hash != [sha256.Size]byte{} {
		return &HeadError{h.Sequence, "a chain without rows has no hash", nil}
	}
	v.report.Heads++
	if h.Sequence > v.report.SignedRows {
		v.report.SignedRows = h.Sequence
	}
	if h.SignedAt.After(v.report.SignedAt) {
		v.report.SignedAt = h.SignedAt
	}
	return nil
}

// Entry checks the next row. The error is a *ledger.BrokenChainError or a *HeadError.
func (v *Verifier) Entry(e ledger.AuditEntry) error {
	if err := v.walk.Step(e); err != nil {
		return err
	}
	if want, ok := v.wanted[e.Sequence]; ok {
		if want != e.Hash {
			return &HeadError{e.Sequence, "the row is not the one that was signed: the chain was rewritten", nil}
		}
		delete(v.wanted, e.Sequence)
	}
	v.report.Rows = e.Sequence
	return nil
}

// End says whether the chain is whole: every signed head stands on a row of it, and the
// newest is as young as was asked for.
func (v *Verifier) End() (Report, error) {
	missing := int64(0)
	for row := range v.wanted {
		if missing == 0 || row < missing {
			missing = row
		}
	}
	if missing > 0 {
		return v.report, &HeadError{missing, fmt.Sprintf("the row is gone: the chain ends at row %d and was cut off", v.report.Rows), nil}
	}
	if v.o.MaxAge > 0 {
		switch age := v.o.Now().Sub(v.report.SignedAt); {
		case v.report.Heads == 0:
			return v.report, &HeadError{0, "there is no signed head; what stands in the chain is nobody's word", nil}
		case age > v.o.MaxAge:
			return v.report, &HeadError{v.report.SignedRows, fmt.Sprintf("it is the newest and %s old, more than %s: what came after it may have been cut off", age.Truncate(time.Second), v.o.MaxAge), nil}
		}
	}
	return v.report, nil
}
