package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

type role struct {
	Listen string        `yaml:"listen"`
	Wait   time.Duration `yaml:"wait"`
	Count  int           `yaml:"count"`
	Share  float64       `yaml:"share"`
	Names  []string      `yaml:"names"`
	NATS   NATS          `yaml:"nats"`
	Rules  []rule        `yaml:"rules"`
	hidden int
}

type rule struct {
	Allow string `yaml:"allow"`
	Deny  string `yaml:"deny"`
}

func (r role) Validate() error {
	var errs []error
	if r.Count < 1 {
		errs = append(errs, errors.New("count: must be at least 1"))
	}
	if r.Wait <= 0 {
		errs = append(errs, errors.New("wait: must be positive"))
	}
	return errors.Join(errs...)
}

func defaults() role {
	return role{Listen: ":1", Wait: time.Second, Count: 1, NATS: DefaultNATS(), hidden: 7}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	got, err := Load(defaults(), Source{
		Role: "ocsp-responder",
		File: write(t, "listen: file\nwait: 2s\ncount: 2\nnats:\n  url: nats://file\n  ack_wait: 9s\nrules:\n  - allow: x\n"),
		Environ: []string{
			"HOME=/", "CERTMILL_OCSP_RESPONDER_WAIT=3s", "CERTMILL_OCSP_RESPONDER_NATS_URL=nats://env,nats://b", "CERTMILL_GATEWAY_NO=1",
			"CERTMILL_OCSP_RESPONDER_SERVICE_HOST=10.0.0.1", "CERTMILL_OCSP_RESPONDER_PORT_8080_TCP_ADDR=10.0.0.1",
		},
		Set: []string{"nats.url=nats://flag=1", "names=a, b", "share=0.5"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Listen, want.Wait, want.Count, want.Share = "file", 3*time.Second, 2, 0.5
	want.Names, want.Rules = []string{"a", "b"}, []rule{{Allow: "x"}}
	want.NATS.URL, want.NATS.AckWait = "nats://flag=1", 9*time.Second
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestElementsOfListsStartFromTheirDefaults(t *testing.T) {
	source := Source{Role: "x", Elements: []any{rule{Allow: "all", Deny: "none"}}}
	source.File = write(t, "rules:\n  - allow: some\n  - {}\n")
	got, err := Load(defaults(), source)
	if err != nil {
		t.Fatal(err)
	}
	if want := []rule{{"some", "none"}, {"all", "none"}}; !reflect.DeepEqual(got.Rules, want) {
		t.Errorf("got %+v, want %+v", got.Rules, want)
	}
	source.File, source.Environ = "", []string{"CERTMILL_X_RULES=[{deny: most}]"}
	if got, err = Load(defaults(), source); err != nil || !reflect.DeepEqual(got.Rules, []rule{{"all", "most"}}) {
		t.Errorf("from the environment: %+v, %v", got.Rules, err)
	}
	source.File, source.Environ = write(t, "rules:\n  - allow: a\n    alow: b\n"), nil
	if _, err = Load(defaults(), source); err == nil || !strings.Contains(err.Error(), `c.yaml:3: unknown key "rules[0].alow"; did you mean "allow"?`) {
		t.Errorf("an unknown key: %v", err)
	}
}

func TestEveryMistakeIsNamedAtOnceWithItsLine(t *testing.T) {
	path := write(t, "lisen: x\nwait: 5 apples\nnats:\n  ack_wiat: 1s\n  replicas: three\n")
	_, err := Load(defaults(), Source{
		Role: "gateway", File: path,
		Environ: []string{"CERTMILL_GATEWAY_COUNT=many", "CERTMILL_GATEWAY_NATS_ULR=x"},
		Set:     []string{"nats=1", "nope=1", "wait"},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		path + `:1: unknown key "lisen"; did you mean "listen"?`, path + ":2: wait: ", path + `:4: unknown key "nats.ack_wiat"; did you mean "nats.ack_wait"?`,
		path + ":5: nats.replicas: ", "CERTMILL_GATEWAY_COUNT: ", `CERTMILL_GATEWAY_NATS_ULR: there is no such key; did you mean "CERTMILL_GATEWAY_NATS_URL"?`,
		"--set nats=1", `--set nope=1: unknown key "nope"`, "--set wait: write key=value",
	} {
		if want == "--set nats=1" {
			want = "--set nats: this is a section"
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
}

func TestValidateSpeaksOnceAllKeysAreRead(t *testing.T) {
	_, err := Load(defaults(), Source{Role: "x", File: write(t, "count: 0\nwait: -1s\n")})
	if err == nil || !strings.Contains(err.Error(), "count: ") || !strings.Contains(err.Error(), "wait: ") {
		t.Fatalf("got %v", err)
	}
}

func TestFilesThatAreNotOneMapping(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"an empty file":            {"", true},
		"only a comment":           {"# nothing\n", true},
		"an empty section":         {"nats:\n", true},
		"a list":                   {"- a\n", false},
		"a second document":        {"count: 2\n---\ncount: 3\n", false},
		"a scalar for a section":   {"nats: 3\n", false},
		"a key twice":              {"count: 2\ncount: 3\n", false},
		"broken YAML":              {"nats: [\n", false},
		"an unknown key in a list": {"rules:\n  - alow: x\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Load(defaults(), Source{Role: "x", File: write(t, c.text)})
			if (err == nil) != c.ok {
				t.Fatalf("error %v", err)
			}
			if !reflect.DeepEqual(got, defaults()) {
				t.Errorf("the defaults changed: %+v", got)
			}
		})
	}
}

func TestSecretsAreTrimmedAndNotOpenToAll(t *testing.T) {
	path := write(t, " s3cret\n")
	if got, err := ReadSecret(path); err != nil || got != "s3cret" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecret(path); err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("an open file: %v", err)
	}
	if _, err := ReadSecret(write(t, "\n")); err == nil {
		t.Error("an empty secret is accepted")
	}
	if _, err := ReadSecret(write(t, strings.Repeat("x", maxSecret+1))); err == nil {
		t.Error("a secret beyond the bound is accepted")
	}
}
