package main

import (
	"bytes"
	"os"
	"regexp"
	"testing"

	"github.com/certmill/certmill/cmd/certmill/roles"
	"github.com/certmill/certmill/internal/config"
)

func TestTheCheckedInReferenceIsTheGeneratedOne(t *testing.T) {
	want, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/configuration.md is not what the source says: run `make generate`")
	}
}

// What an element of a list leaves out is not zero, and the reference must not say so.
func TestElementsOfListsStandWithTheirDefaults(t *testing.T) {
	text, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"#   session_keys: true", "#   sessions: 4", "#     api_timeout: 5s", "#     clock_skew: 30s"} {
		if !bytes.Contains(text, []byte("\n"+want+"\n")) {
			t.Errorf("the reference lacks %q", want)
		}
	}
}

// Two keys with one environment variable could not be told apart.
func TestEveryKeyHasACommentOrSharesOneAndAVariableOfItsOwn(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	c := newComments(root)
	for _, role := range roles.All() {
		seen := map[string]string{}
		first := map[string]bool{}
		for _, f := range config.Fields(addressable(role.Defaults)) {
			doc, err := c.of(f.Struct, f.Name)
			if err != nil {
				t.Fatal(err)
			}
			if structName := f.Struct.String(); doc == "" && !first[structName] {
				t.Errorf("%s: %s has no comment", role.Name, f.Key)
			} else {
				first[structName] = true
			}
			name := config.EnvName(role.Name, f.Key)
			if other, taken := seen[name]; taken {
				t.Errorf("%s: %s and %s share %s", role.Name, other, f.Key, name)
			}
			seen[name] = f.Key
		}
	}
}

// TestTheReferenceNamesKeysAndNotGosFields: a comment that begins with a field's name has
// it replaced by the key; what it names further on stands as it is.
func TestTheReferenceNamesKeysAndNotGosFields(t *testing.T) {
	text, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if names := regexp.MustCompile(`\b[A-Z][A-Za-z]*(File|Dir|URL)\b`).FindAllString(string(text), -1); len(names) > 0 {
		t.Errorf("docs/configuration.md names %v", names)
	}
}
