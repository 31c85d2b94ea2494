package main

import (
	"strings"
	"testing"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
)

func TestOnlyASignerThatTheLedgerKnowsIsDrained(t *testing.T) {
	epochs := []ledger.Epoch{{Signer: "ca-issue"}, {Signer: "b"}, {Signer: "a"}, {Signer: "b"}, {Signer: "ceremony"}}
	if err := knownSigner("a", epochs); err != nil {
		t.Error(err)
	}
	for name, says := range map[string]string{"c": "seen last are a, b", "ca-issue": "seen last are a, b", "ceremony": "seen last are a, b"} {
		if err := knownSigner(name, epochs); problem.KindOf(err) != problem.NotFound || !strings.HasSuffix(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := knownSigner("a", epochs[:1]); problem.KindOf(err) != problem.NotFound || !strings.Contains(err.Error(), "none has started") {
		t.Errorf("an empty ledger: %v", err)
	}
}
