package signer

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/ledger"
	"github.com/certmill/certmill/signer/hsm"
)

func (w *world) direct() (*Direct, func()) {
	w.t.Helper()
	ctx := bounded(w.t)
	token, err := hsm.Open(ctx, w.cfg.Tokens[0], hsm.Deps{})
	w.check(err)
	key, err := token.Key(ctx, w.issuer.KeyURI)
	w.check(err)
	set, err := profile.LoadDir(w.cfg.ProfilesDir)
	w.check(err)
	d, err := NewDirect(ctx, DirectConfig{Name: "ca-issue", Actor: "local:root", Issuer: w.issuer, Key: key,
		TokenSerial: token.Info().Serial, Profiles: set, LintShare: 1}, w.book, Deps{})
	w.check(err)
	return d, func() { w.check(token.Close(context.Background())) }
}

func (w *world) directRequest(id string) DirectRequest {
	w.t.Helper()
	public, _, err := csr.ParseKey(w.spki)
	w.check(err)
	return DirectRequest{
		Request: &profile.Request{Profile: "workload", Caller: profile.Caller{ID: "local:root", Kind: profile.KindLocal},
			URIs: []string{"spiffe://certmill.test/ns/test/sa/" + id}, SPKI: w.spki, PublicKey: public},
		CSR: sha256.Sum256([]byte(id)), RequestID: id, Reuse: time.Hour,
	}
}

func TestDirectIssueIsOnTheRecord(t *testing.T) {
	w := newWorld(t)
	d, end := w.direct()
	defer end()
	ctx := bounded(t)
	first, err := d.Issue(ctx, w.directRequest("a"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(first.Certificate.DER)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(w.cert); err != nil {
		t.Error(err)
	}
	if stored, _, err := w.book.Certificate(ctx, first.Certificate.Serial); err != nil || string(stored.DER) != string(first.Certificate.DER) {
		t.Errorf("the ledger: %v", err)
	}
	again, err := d.Issue(ctx, w.directRequest("a"))
	if err != nil || !again.Duplicate || again.Certificate.Serial != first.Certificate.Serial {
		t.Errorf("the repetition: %+v, %v", again, err)
	}
	audit, err := w.book.Audit(ctx, 0, 100)
	if err != nil || len(audit) == 0 {
		t.Fatalf("audit: %v, %v", audit, err)
	}
	if last := audit[len(audit)-1]; last.Actor != "local:root" || last.Action != "certificate.issue" || last.Subject != first.Certificate.Serial.String() {
		t.Errorf("audit: %+v", last)
	}

	beyond := w.directRequest("b")
	beyond.Request.URIs = []string{"spiffe://elsewhere.test/x"}
	if _, err := d.Issue(ctx, beyond); !errors.Is(err, &problem.Error{Kind: problem.Denied}) && !errors.Is(err, &problem.Error{Kind: problem.Invalid}) {
		t.Errorf("beyond the profile: %v", err)
	}
	if err := d.Close(ctx); err != nil {
		t.Fatal(err)
	}
	epochs, err := w.book.Epochs(ctx)
	if err != nil || len(epochs) != 1 {
		t.Fatalf("epochs: %v, %v", epochs, err)
	}
	// Two signatures, one row: the repetition's was thrown away.
	if e := epochs[0]; e.Signatures != 2 || !e.Final || e.ID != first.Certificate.Serial.Epoch() || e.Signer != "ca-issue" {
		t.Errorf("epoch: %+v", e)
	}
}

// lossy commits and loses the answer, or loses the entry too.
type lossy struct {
	DirectLedger
	stored bool
}

func (l lossy) CommitBatch(ctx context.Context, entries []ledger.Entry) []ledger.Result {
	if l.stored {
		l.DirectLedger.CommitBatch(ctx, entries)
	}
	return []ledger.Result{{Err: problem.Down("ledger", 0, nil)}}
}

func TestDirectIssueThatLostTheLedgersAnswerIsRepeated(t *testing.T) {
	for name, stored := range map[string]bool{"stored": true, "not stored": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d, end := w.direct()
			defer end()
			ctx := bounded(t)
			d.book = lossy{d.book, stored}
			if _, err := d.Issue(ctx, w.directRequest("a")); problem.KindOf(err) != problem.Unavailable {
				t.Fatalf("error: %v", err)
			}
			d.book = w.book
			if out, err := d.Issue(ctx, w.directRequest("a")); err != nil || out.Duplicate != stored {
				t.Errorf("the repetition: %+v, %v", out, err)
			}
		})
	}
}
