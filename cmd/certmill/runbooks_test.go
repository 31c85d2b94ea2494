package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/deploy/runbooks"
	"github.com/certmill/certmill/docs"
)

func pages(t *testing.T) []runbooks.Page {
	t.Helper()
	all, err := runbooks.Read()
	if err != nil || len(all) < 20 {
		t.Fatalf("%d runbooks: %v", len(all), err)
	}
	return all
}

// TestEveryCommandOfTheRunbooksIsOne parses each as it would be, up to the point where
// it would run.
func TestEveryCommandOfTheRunbooksIsOne(t *testing.T) {
	n := 0
	for _, page := range pages(t) {
		commands, err := page.Commands()
		if err != nil {
			t.Error(err)
		}
		for _, words := range commands {
			n++
			if err := parses(words); err != nil {
				t.Errorf("%s: certmill %s: %v", page.Name, strings.Join(words, " "), err)
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d commands were found", n)
	}
}

// parses takes a command line as far as cobra does before it runs the command.
func parses(words []string) error {
	command, rest, err := newRoot().Find(words)
	if err != nil {
		return err
	}
	command.InitDefaultHelpFlag()
	if err := command.ParseFlags(rest); err != nil {
		return err
	}
	if help, err := command.Flags().GetBool("help"); err != nil || help {
		return err
	}
	if err := command.ValidateArgs(command.Flags().Args()); err != nil {
		return err
	}
	if err := command.ValidateRequiredFlags(); err != nil {
		return err
	}
	return command.ValidateFlagGroups()
}

func TestACommandThatIsNoneIsFound(t *testing.T) {
	for _, line := range []string{"statuss", "status --watch", "ledger status extra", "config check --config signer.yaml", "renew-early --before 6h"} {
		if parses(strings.Fields(line)) == nil {
			t.Errorf("certmill %s passes", line)
		}
	}
}

var (
	alertName  = regexp.MustCompile(`^Certmill[A-Za-z]+$`)
	fileName   = regexp.MustCompile(`^[A-Za-z0-9_@./-]+\.(md|sh|yaml|conf|env|service)$`)
	metricName = regexp.MustCompile(`^certmill_[a-z0-9_]+$`)
	keyName    = regexp.MustCompile(`^[a-z]+(_[a-z]+)+$|^[a-z_]+(\.[a-z_]+)+$`)
	link       = regexp.MustCompile(`\]\(([^)#]+)`)
	seeFile    = regexp.MustCompile(`[a-z-]+\.md\b`)
)

// TestWhatTheRunbooksNameIsThere looks for every alert, file and configuration key that a
// runbook names, and for every line that it says to look for in a log.
func TestWhatTheRunbooksNameIsThere(t *testing.T) {
	alerts, source := alertNames(t), source(t)
	logged := loggedStrings(source)
	for _, page := range pages(t) {
		for _, name := range page.Quotations() {
			switch {
			case alertName.MatchString(name):
				if !slices.Contains(alerts, name) {
					t.Errorf("%s: there is no alert %s", page.Name, name)
				}
			case fileName.MatchString(name):
				exists(t, page.Name, name)
			case metricName.MatchString(name): // deploy/prometheus looks for these
			case keyName.MatchString(name): // a configuration key, or a value that the code writes
				key := name[strings.LastIndex(name, ".")+1:]
				isKey := regexp.MustCompile(`(?m)^[ #]*` + key + `:`).MatchString(docs.Configuration)
				if !isKey && !strings.Contains(source, strconv.Quote(name)) {
					t.Errorf("%s: %s is no configuration key, and nothing writes it", page.Name, name)
				}
			}
		}
		for _, m := range link.FindAllStringSubmatch(page.Text, -1) {
			exists(t, page.Name, m[1])
		}
		for _, name := range seeFile.FindAllString(page.Text, -1) {
			exists(t, page.Name, name)
		}
		for _, message := range page.Messages() {
			if !strings.Contains(logged, message) {
				t.Errorf("%s: nothing logs %q", page.Name, message)
			}
		}
	}
}

// exists looks for a file that a runbook names: beside it, or from the repository's root.
// A bare configuration file is one of deploy/config or deploy/systemd.
func exists(t *testing.T, page, name string) {
	t.Helper()
	for _, folder := range []string{"deploy/runbooks", ".", "deploy/config", "deploy/systemd", "docs"} {
		if _, err := os.Stat(filepath.Join("../..", folder, name)); err == nil {
			return
		}
	}
	t.Errorf("%s: there is no file %s", page, name)
}

func alertNames(t *testing.T) (names []string) {
	t.Helper()
	data, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct{ Rules []struct{ Alert string } }
	}
	if err := yaml.Unmarshal(data, &rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			names = append(names, r.Alert)
		}
	}
	return names
}

var logCall = regexp.MustCompile(`(?i)\blog(?:\.(?:Warn|Error|Info)(?:Context)?)?\((?:[a-z.]+, )?"([^"]+)"`)

// loggedStrings returns every message that the code logs, a line each.
func loggedStrings(source string) string {
	var all strings.Builder
	for _, m := range logCall.FindAllStringSubmatch(source, -1) {
		all.WriteString(m[1] + "\n")
	}
	return all.String()
}

// source returns the roles' code.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, folder := range []string{"gateway", "signer", "ocsp", "ledger", "internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join("../..", folder), func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}
