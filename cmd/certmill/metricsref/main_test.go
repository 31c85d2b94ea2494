//go:build cgo

package main

import (
	"bytes"
	"os"
	"testing"
)

func TestTheCheckedInReferenceIsTheGeneratedOne(t *testing.T) {
	want, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/metrics.md is not what the roles register: run `make generate`")
	}
}
