package auditchain

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/certmill/certmill/ledger"
)

// format is the first line of an exported chain. A line is one JSON object with one
// member: issuer, head, entry, in this order, and at the end how many there were, so
// that a file that was cut short does not pass for a short chain.
const format = "certmill-audit/1"

// maxLine bounds a line of a file, in bytes.
const maxLine = 1 << 20

type line struct {
	Format string      `json:"format,omitempty"`
	Issuer *issuerLine `json:"issuer,omitempty"`
	Head   *HeadFile   `json:"head,omitempty"`
	Entry  *entryLine  `json:"entry,omitempty"`
	End    *endLine    `json:"end,omitempty"`
}

type issuerLine struct {
	ID    int32    `json:"id"`
	Name  string   `json:"name"`
	DER   []byte   `json:"der"`
	Chain [][]byte `json:"chain"`
}

// HeadFile is a signed head as it stands in an exported chain, in the signers' log and
// in a file of its own that an auditor keeps.
type HeadFile struct {
	Sequence  int64     `json:"sequence"`
	Hash      []byte    `json:"hash"`
	SignedAt  time.Time `json:"signed_at"`
	Issuer    int32     `json:"issuer"`
	Signature []byte    `json:"signature"`
}

// NewHeadFile makes the file's form of a head.
func NewHeadFile(h ledger.SignedHead) HeadFile {
	return HeadFile{h.Sequence, h.Hash[:], h.SignedAt, h.Issuer, h.Signature}
}

// Head returns the head, or what is wrong with the file.
func (f HeadFile) Head() (ledger.SignedHead, error) {
	h := ledger.SignedHead{AuditHead: ledger.AuditHead{Sequence: f.Sequence}, SignedAt: f.SignedAt, Issuer: f.Issuer, Signature: f.Signature}
	if copy(h.Hash[:], f.Hash) != len(h.Hash) || len(f.Hash) != len(h.Hash) || f.Sequence < 0 {
		return h, fmt.Errorf("a signed head has a sequence from 0 and a hash of %d octets in base64, not %q", len(h.Hash), base64.StdEncoding.EncodeToString(f.Hash))
	}
	return h, nil
}

type entryLine struct {
	Sequence int64     `json:"sequence"`
	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`
	Action   string    `json:"action"`
	Subject  string    `json:"subject"`
	Detail   string    `json:"detail"`
	Hash     []byte    `json:"hash"`
}

type endLine struct {
	Entries int64 `json:"entries"`
	Heads   int64 `json:"heads"`
}

// Export writes the chain of a ledger, checked as far as it goes without roots.
func Export(ctx context.Context, book Book, to io.Writer) (Report, error) {
	w := &exporter{v: NewVerifier(Options{}), out: json.NewEncoder(to)}
	if err := w.out.Encode(line{Format: format}); err != nil {
		return Report{}, err
	}
	if err := read(ctx, book, w, nil); err != nil {
		return w.v.report, err
	}
	report, err := w.v.End()
	if err != nil {
		return report, err
	}
	return report, w.out.Encode(line{End: &endLine{Entries: report.Rows, Heads: report.Heads}})
}

// exporter checks what it writes.
type exporter struct {
	v   *Verifier
	out *json.Encoder
}

func (w *exporter) Issuer(i ledger.Issuer) error {
	if err := w.v.Issuer(i); err != nil {
		return err
	}
	return w.out.Encode(line{Issuer: &issuerLine{i.ID, i.Name, i.DER, i.Chain}})
}

func (w *exporter) Head(h ledger.SignedHead) error {
	if err := w.v.Head(h); err != nil {
		return err
	}
	f := NewHeadFile(h)
	return w.out.Encode(line{Head: &f})
}

func (w *exporter) Entry(e ledger.AuditEntry) error {
	if err := w.v.Entry(e); err != nil {
		return err
	}
	return w.out.Encode(line{Entry: &entryLine{e.Sequence, e.Time, e.Actor, e.Action, e.Subject, e.Detail, e.Hash[:]}})
}

// VerifyFile checks an exported chain, without the ledger.
func VerifyFile(from io.Reader, o Options) (Report, error) {
	v := NewVerifier(o)
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxLine)
	var end *endLine
	for n := 1; lines.Scan(); n++ {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return v.report, fmt.Errorf("line %d is no JSON: %w", n, err)
		}
		if n == 1 && l.Format != format || n > 1 && end != nil {
			return v.report, fmt.Errorf("line %d: this is no chain that certmill exported (%s)", n, format)
		}
		end = l.End
		if err := v.line(l, o.Witness); err != nil {
			return v.report, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return v.report, fmt.Errorf("reading the exported chain: %w", err)
	}
	if end == nil {
		return v.report, errors.New("the file has no end: it was cut off")
	}
	report, err := v.End()
	if err == nil && (end.Entries != report.Rows || end.Heads > report.Heads) {
		err = fmt.Errorf("the file says that it has %d rows and %d signed heads, and it has %d and %d", end.Entries, end.Heads, report.Rows, report.Heads)
	}
	return report, err
}

// line gives one line of a file to the verifier. The witness comes before the first
// head or row, when the issuers are known.
func (v *Verifier) line(l line, witness *ledger.SignedHead) error {
	if witness != nil && l.Issuer == nil && l.Format == "" && !v.witnessed {
		v.witnessed = true
		if err := v.Head(*witness); err != nil {
			return err
		}
	}
	switch {
	case l.Issuer != nil:
		return v.Issuer(ledger.Issuer{ID: l.Issuer.ID, Name: l.Issuer.Name, DER: l.Issuer.DER, Chain: l.Issuer.Chain})
	case l.Head != nil:
		h, err := l.Head.Head()
		if err != nil {
			return err
		}
		return v.Head(h)
	case l.Entry != nil:
		e := ledger.AuditEntry{Sequence: l.Entry.Sequence, Time: l.Entry.Time, Actor: l.Entry.Actor, Action: l.Entry.Action, Subject: l.Entry.Subject, Detail: l.Entry.Detail}
		if len(l.Entry.Hash) != len(e.Hash) {
			return fmt.Errorf("row %d has a hash of %d octets", e.Sequence, len(l.Entry.Hash))
		}
		copy(e.Hash[:], l.Entry.Hash)
		return v.Entry(e)
	}
	return nil
}
