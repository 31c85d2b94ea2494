package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/cockroachdb-parser/pkg/sql/parser"
	"github.com/cockroachdb/cockroachdb-parser/pkg/sql/sem/tree"
)

func statements(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var out []string
	for _, s := range parsed {
		out = append(out, tree.AsString(s.AST))
	}
	return out
}

// CockroachDB's own parser takes every migration of its dialect.
func TestCockroachDBParsesTheMigrations(t *testing.T) {
	files, err := filepath.Glob("../../ledger/migrations/cockroach/*.sql")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d migrations: %v", len(files), err)
	}
	for _, file := range files {
		if len(statements(t, file)) == 0 {
			t.Errorf("%s holds no statement", file)
		}
	}
}

var created = regexp.MustCompile(`(?m)^CREATE TABLE (?:IF NOT EXISTS )?([a-z_]+)`)

// What spreads the ledger over three regions parses, and gives every table a place.
func TestCockroachDBParsesTheRegions(t *testing.T) {
	var tables []string
	files, _ := filepath.Glob("../../ledger/migrations/cockroach/*.sql")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range created.FindAllStringSubmatch(string(text), -1) {
			tables = append(tables, m[1])
		}
	}
	all := statements(t, "../regions/ledger.sql")
	for _, want := range []string{
		"ALTER DATABASE certmill PRIMARY REGION eu", "ALTER DATABASE certmill ADD REGION us", "ALTER DATABASE certmill ADD REGION ap",
		"ALTER DATABASE certmill SURVIVE REGION FAILURE",
	} {
		if !slices.Contains(all, want) {
			t.Errorf("%q is missing of\n%s", want, strings.Join(all, "\n"))
		}
	}
	for _, s := range all {
		m := regexp.MustCompile(`^ALTER TABLE (?:certmill\.public\.)?([a-z_]+) SET LOCALITY`).FindStringSubmatch(s)
		if m != nil && !slices.Contains(tables, m[1]) {
			t.Errorf("%q: there is no such table of %q", s, tables)
		}
		if m == nil && !strings.HasPrefix(s, "ALTER DATABASE certmill ") {
			t.Errorf("%q has no place here", s)
		}
	}
}
