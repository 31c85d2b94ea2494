// Package prometheus holds the recording rules and alerts, which are data; its tests
// hold them together with their own tests, their runbooks and the metrics there are.
package prometheus

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/internal/testenv"
)

type rules struct {
	Groups []struct {
		Rules []struct {
			Record, Alert, Expr string
			Labels, Annotations map[string]string
		}
	}
}

func load(t *testing.T, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func TestEveryAlertHasARunbookAndATestThatFiresAndOneThatDoesNot(t *testing.T) {
	var r rules
	load(t, "alerts.yaml", &r)
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, file := range []string{"alerts_test.yaml", "alerts_slow_test.yaml"} {
		var tests struct {
			Tests []struct {
				Rules []struct {
					Name   string `yaml:"alertname"`
					Alerts []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			}
		}
		load(t, file, &tests)
		for _, test := range tests.Tests {
			for _, a := range test.Rules {
				if len(a.Alerts) > 0 {
					fires[a.Name] = true
				} else {
					quiet[a.Name] = true
				}
			}
		}
	}
	n := 0
	for _, g := range r.Groups {
		for _, a := range g.Rules {
			n++
			if !fires[a.Alert] || !quiet[a.Alert] {
				t.Errorf("%s: fires in a test: %t, keeps quiet in one: %t", a.Alert, fires[a.Alert], quiet[a.Alert])
			}
			if s := a.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s: severity %q", a.Alert, s)
			}
			text, err := os.ReadFile(filepath.Join("../..", a.Annotations["runbook"]))
			if err != nil || !strings.Contains(string(text), "`"+a.Alert+"`") || !strings.Contains(string(text), "## Mend") {
				t.Errorf("%s: its runbook %q does not speak of it: %v", a.Alert, a.Annotations["runbook"], err)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d alerts were read", n)
	}
}

var metricName = regexp.MustCompile(`\bcertmill_[a-z0-9_]+`)

func TestRulesAndRunbooksNameOnlyMetricsThatExist(t *testing.T) {
	reference, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := metricName.FindAllString(string(reference), -1)
	files, err := filepath.Glob("../runbooks/*.md")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d runbooks, %v", len(files), err)
	}
	dashboards, _ := filepath.Glob("../grafana/*.json") // the pattern is well formed
	for _, file := range append(append(files, dashboards...), "recording.yaml", "alerts.yaml") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range metricName.FindAllString(string(text), -1) {
			base := name
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if !slices.Contains(known, name) && !slices.Contains(known, base) {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

func TestPromtoolAgrees(t *testing.T) {
	promtool := testenv.Program(t, "promtool", "prometheus")
	for _, args := range [][]string{{"check", "rules", "recording.yaml", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml", "alerts_slow_test.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
