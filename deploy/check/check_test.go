package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

const chart = "../helm/certmill"

// kubernetesVersion is what the schemas are of; see main.go.
const kubernetesVersion = "1.34.2"

// tool runs one of this module's programs.
func tool(t *testing.T, stdin []byte, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"tool", name}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

func TestHelmLint(t *testing.T) {
	for _, values := range variants {
		if _, err := tool(t, nil, "helm", append([]string{"lint", "--strict", "--kube-version", kubernetesVersion, chart}, values...)...); err != nil {
			t.Error(err)
		}
	}
}

// variants are the choices with which the chart is rendered.
var variants = [][]string{
	nil,
	{"--set", "keda.enabled=true"},
	{"-f", "../regions/values-eu.yaml"},
	{"--set", "networkPolicy.enabled=false,migrate.enabled=false"},
	{"--set-json", `hsm.network=[{"cidr":"10.0.9.0/24","ports":[1792]}]`, "--set-json", `hsm.volumes=[{"name":"module","hostPath":{"path":"/opt/hsm"}}]`,
		"--set-json", `hsm.volumeMounts=[{"name":"module","mountPath":"/opt/hsm","readOnly":true}]`, "--set", "hsm.sessions=16,priorityClassName=system-cluster-critical"},
	{"--set-json", `networkPolicy.clients=[{"namespaceSelector":{}}]`, "--set-json", `imagePullSecrets=[{"name":"pull"}]`, "--set-json", `podAnnotations={"a":"b"}`},
}

func render(t *testing.T, values []string) string {
	t.Helper()
	out, err := tool(t, nil, "helm", append([]string{"template", "t", chart, "--namespace", "ca", "--kube-version", kubernetesVersion}, values...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const schemas = "schemas/{{.ResourceKind}}{{.KindSuffix}}.json"

func TestWhatTheChartRendersIsKubernetes(t *testing.T) {
	for _, values := range variants {
		t.Run(strings.Join(values, " "), func(t *testing.T) {
			if out, err := tool(t, []byte(render(t, values)), "kubeconform", "-strict", "-summary", "-schema-location", schemas, "-"); err != nil {
				t.Error(err)
			} else {
				t.Log(strings.TrimSpace(out))
			}
		})
	}
}

// A check that nothing fails is none.
func TestAWrongKeyIsFound(t *testing.T) {
	wrong := strings.Replace(render(t, nil), "\n  replicas: 3\n", "\n  replicaz: 3\n", 1)
	if _, err := tool(t, []byte(wrong), "kubeconform", "-strict", "-schema-location", schemas, "-"); err == nil {
		t.Error("kubeconform takes a Deployment with the key replicaz")
	}
}

// Every pod is locked down, probed where it serves, and bounded.
func TestEveryContainerIsHardened(t *testing.T) {
	text := render(t, variants[1])
	pods := strings.Count(text, "      containers:\n") + strings.Count(text, "          containers:\n")/2
	for _, want := range []string{"runAsNonRoot: true", "readOnlyRootFilesystem: true", "allowPrivilegeEscalation: false", "drop: [ALL]", "type: RuntimeDefault"} {
		if n := strings.Count(text, want); n != 6 {
			t.Errorf("%q stands %d times for 6 pods (%d counted)", want, n, pods)
		}
	}
	for want, n := range map[string]int{"readinessProbe:": 4, "livenessProbe:": 4, "kind: PodDisruptionBudget": 4, "topologyKey: topology.kubernetes.io/zone": 4, "kind: NetworkPolicy": 6, "kind: ScaledObject": 1} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q stands %d times, not %d", want, got, n)
		}
	}
	if strings.Contains(text, "password") && regexp.MustCompile(`(?i)password: *[^ {]`).MatchString(text) {
		t.Error("there is a password in what the chart renders")
	}
}

func TestComposeIsValid(t *testing.T) {
	path, err := filepath.Abs("../compose/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  filepath.Dir(path),
		ConfigFiles: []types.ConfigFile{{Filename: path}},
		Environment: types.Mapping{"CERTMILL_USER": "1000:1000"},
	}, func(o *loader.Options) { o.SetProjectName("certmill", true) })
	if err != nil {
		t.Fatal(err)
	}
	if err := project.CheckContainerNameUnicity(); err != nil {
		t.Error(err)
	}
	for name, service := range project.Services {
		for _, v := range service.Volumes {
			if v.Type != types.VolumeTypeBind || made(v.Source) {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s mounts what does not exist: %v", name, err)
			}
		}
		if service.User == "" && name != "prometheus" && name != "grafana" {
			t.Errorf("%s has no user", name)
		}
		for _, p := range service.Ports {
			if p.HostIP != "127.0.0.1" {
				t.Errorf("%s opens port %s beyond loopback", name, p.Published)
			}
		}
	}
}

// made says what need not be here for the stack to start: what the operator makes, and
// the rules and dashboards, without which Prometheus and Grafana are merely empty.
func made(source string) bool {
	for _, folder := range []string{"/compose/secrets", "/compose/public", "/compose/data", "/deploy/prometheus", "/deploy/grafana"} {
		if strings.Contains(source, folder) {
			return true
		}
	}
	return false
}

func TestDockerfiles(t *testing.T) {
	files, err := filepath.Glob("../docker/*.Dockerfile")
	if err != nil || len(files) == 0 {
		t.Fatalf("no Dockerfiles: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { lintDockerfile(t, file) })
	}
}

func lintDockerfile(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range parsed.Warnings {
		t.Errorf("%s (%s)", w.Short, w.URL)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, description, _, message string, location []parser.Range) {
		t.Errorf("%s: %s: %s %v", rule, description, message, location)
	}})
	stages, _, err := instructions.Parse(parsed.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range stages {
		if base := stage.BaseName; !strings.Contains(base, ":") || strings.HasSuffix(base, ":latest") {
			t.Errorf("the base %s has no version", base)
		}
	}
	last := stages[len(stages)-1]
	user := ""
	for _, c := range last.Commands {
		if u, ok := c.(*instructions.UserCommand); ok {
			user = u.User
		}
	}
	if uid, err := strconv.Atoi(strings.SplitN(user, ":", 2)[0]); err != nil || uid == 0 {
		t.Errorf("it runs as %q and not as a number other than 0, which Kubernetes can check", user)
	}
}

// program finds a program as internal/testenv does, which another module would take the
// whole service for: where it is missing the test is skipped, and fails with CI=true.
func program(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is missing: apt-get install %s", name, debianPackage)
	default:
		t.Skipf("%s is missing: apt-get install %s", name, debianPackage)
	}
	return path
}

// The units name a program that need not be installed here: a copy of each names one
// that is.
func TestSystemdUnits(t *testing.T) {
	analyze := program(t, "systemd-analyze", "systemd")
	anything := program(t, "true", "coreutils")
	files, err := filepath.Glob("../systemd/*.service")
	if err != nil || len(files) == 0 {
		t.Fatalf("no units: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			unit := filepath.Join(t.TempDir(), filepath.Base(file))
			if err := os.WriteFile(unit, bytes.ReplaceAll(data, []byte("/usr/local/bin/certmill"), []byte(anything)), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
			// Exposure in tenths: 0 is a unit that may do nothing, 100 one that may do all.
			if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", unit).CombinedOutput(); err != nil {
				t.Errorf("systemd-analyze security: %v\n%s", err, tail(string(out)))
			}
		})
	}
}

// What stands behind a balancer goes on for a while after it has said that it is not
// ready, and is not killed meanwhile.
func TestBalancersGetTimeToNoticeAShutdown(t *testing.T) {
	const timeout = 20 // seconds, the default of the gateway's shutdown_timeout, the longest
	for _, want := range []int{5, 30} {
		values := []string{"--set", fmt.Sprintf("gateway.shutdownDelaySeconds=%d,responder.shutdownDelaySeconds=%d", want, want)}
		if want == 5 {
			values = nil // the default
		}
		pods := 0
		for _, doc := range strings.Split(render(t, values), "\n---\n") {
			delay := regexp.MustCompile(`_SHUTDOWN_DELAY, value: "(\d+)s"`).FindStringSubmatch(doc)
			if delay == nil {
				if regexp.MustCompile(`kind: Deployment`).MatchString(doc) && regexp.MustCompile(`name: t-certmill-(gateway|responder)\n`).MatchString(doc) {
					t.Errorf("a deployment behind a balancer has no shutdown_delay:\n%s", tail(doc))
				}
				continue
			}
			pods++
			grace := regexp.MustCompile(`terminationGracePeriodSeconds: (\d+)`).FindStringSubmatch(doc)
			if grace == nil || delay[1] != strconv.Itoa(want) {
				t.Fatalf("a delay of %q, not %ds, in\n%s", delay, want, tail(doc))
			}
			if n, err := strconv.Atoi(grace[1]); err != nil || n < want+timeout+10 {
				t.Errorf("pods are killed after %s s: too soon for a delay of %d s", grace[1], want)
			}
		}
		if pods != 2 {
			t.Errorf("%d deployments have a delay, want gateway and responder", pods)
		}
	}
	env, err := os.ReadFile("../systemd/certmill.env")
	if err != nil {
		t.Fatal(err)
	}
	for unit, key := range map[string]string{"gateway": "CERTMILL_GATEWAY_LIMITS_SHUTDOWN_DELAY", "responder": "CERTMILL_RESPONDER_SHUTDOWN_DELAY"} {
		if !regexp.MustCompile(`(?m)^` + key + `=[1-9]\d*s$`).Match(env) {
			t.Errorf("certmill.env sets no %s", key)
		}
		text, err := os.ReadFile("../systemd/certmill-" + unit + ".service")
		if err != nil {
			t.Fatal(err)
		}
		stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindSubmatch(text)
		if stop == nil {
			t.Fatalf("%s has no TimeoutStopSec in seconds", unit)
		}
		if n, err := strconv.Atoi(string(stop[1])); err != nil || n < 60+timeout+5 {
			t.Errorf("systemd kills the %s after %d s: too soon for the longest delay", unit, n)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-1500):] }

// What compose and the chart mount and what the units start must be there.
func TestTheConfigurationFilesExist(t *testing.T) {
	for _, name := range []string{"gateway.yaml", "signer.yaml", "presigner.yaml", "responder.yaml", "ledger.yaml", "softhsm2.conf", "nats.conf", "nats-region.conf", "nats-region-joined.conf", "redis.conf"} {
		if _, err := os.Stat(filepath.Join("../config", name)); errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// Prometheus itself must take what it is given.
func TestPrometheusConfiguration(t *testing.T) {
	promtool := program(t, "promtool", "prometheus")
	if out, err := exec.Command(promtool, "check", "config", "--syntax-only", "../compose/monitoring/prometheus.yml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
