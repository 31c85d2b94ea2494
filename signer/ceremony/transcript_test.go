package ceremony_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/signer/ceremony"
	"github.com/certmill/certmill/signer/hsm"
)

// transcribed returns what reads a ceremony's transcript from its file, anew each time.
func transcribed(t *testing.T, made *ceremony.Result, witnesses ...string) (read func() *ceremony.Transcript) {
	t.Helper()
	transcript, err := made.Transcript(t.Context(), witnesses, ceremony.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(transcript)
	if err != nil {
		t.Fatal(err)
	}
	return func() *ceremony.Transcript {
		t.Helper()
		var tr ceremony.Transcript
		if err := json.Unmarshal(text, &tr); err != nil {
			t.Fatal(err)
		}
		return &tr
	}
}

func TestATranscriptIsCheckedLater(t *testing.T) {
	for _, algorithm := range []hsm.Algorithm{hsm.ECDSAP384, hsm.RSA2048, hsm.Ed25519} {
		t.Run(string(algorithm), func(t *testing.T) {
			token, book := openToken(t), openLedger(t)
			spec := ceremony.DefaultSpec()
			spec.Root.KeyAlgorithm = algorithm
			made := initCA(t, spec, token, book, ceremony.Deps{})
			read := transcribed(t, made, "Ada", "Grace")
			if _, err := read().Verify(made.Root.Certificate); err != nil || len(read().Steps) != 7 {
				t.Fatalf("%d steps: %v", len(read().Steps), err)
			}
			if _, err := read().Verify(made.Issuing.Certificate); problem.KindOf(err) != problem.Invalid {
				t.Errorf("against another root: %v", err)
			}
			for what, forge := range map[string]func(*ceremony.Transcript){
				"another witness":          func(tr *ceremony.Transcript) { tr.Steps[2].Detail = "Mallory" },
				"a witness less":           func(tr *ceremony.Transcript) { tr.Steps = append(tr.Steps[:2], tr.Steps[3:]...) },
				"the end cut off":          func(tr *ceremony.Transcript) { tr.Steps = tr.Steps[:6] },
				"nothing":                  func(tr *ceremony.Transcript) { tr.Steps = nil },
				"another certificate":      func(tr *ceremony.Transcript) { tr.Steps[5].Certificate = made.Root.Certificate.Raw },
				"a signature of something": func(tr *ceremony.Transcript) { tr.Signature = bytes.Clone(made.Root.Certificate.Signature) },
			} {
				tr := read()
				forge(tr)
				if _, err := tr.Verify(made.Root.Certificate); problem.KindOf(err) != problem.Invalid {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

func TestAPlanSaysWhatInitMakesAndChangesNothing(t *testing.T) {
	token, book := openToken(t), openLedger(t)
	spec := ceremony.DefaultSpec()
	plan := func(made, keys bool) {
		t.Helper()
		for range 2 { // the second would find what the first had made
			parts, err := ceremony.Plan(t.Context(), spec, token, book, ceremony.Deps{})
			if err != nil || len(parts) != 3 {
				t.Fatalf("%+v, %v", parts, err)
			}
			for _, p := range parts {
				if p.Make != made || p.NewKey != keys || p.Detail == "" {
					t.Errorf("planned %+v, want make %v with new keys %v", p, made, keys)
				}
			}
		}
	}
	plan(true, true)
	if issuers, err := book.Issuers(t.Context()); err != nil || len(issuers) != 0 {
		t.Errorf("a plan has left %d issuers, %v", len(issuers), err)
	}
	initCA(t, spec, token, book, ceremony.Deps{})
	plan(false, false)
	spec.Root.Lifetime = 0
	if _, err := ceremony.Plan(t.Context(), spec, token, book, ceremony.Deps{}); err == nil {
		t.Error("a spec that is wrong has a plan")
	}
}
