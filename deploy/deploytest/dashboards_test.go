package deploytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/certmill/certmill/deploy/local"
	"github.com/certmill/certmill/deploy/runbooks"
	"github.com/certmill/certmill/internal/testenv"
)

var intervals = regexp.MustCompile(`(scrape|evaluation)_interval: [0-9]+s`)

// dashboards starts Prometheus with compose's configuration on the stack, which is at
// work, and has deploy/grafana/look draw every panel: no query may be without data, every
// target must be up, no page may go off, and Prometheus must take the runbooks' queries.
func dashboards(t *testing.T, s *Stack) {
	long(t)
	program := testenv.Program(t, "prometheus", "prometheus")
	look := filepath.Join(t.TempDir(), "look")
	if out, err := exec.Command("go", "build", "-o", look, "../grafana/look").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	prometheus := "http://" + startPrometheus(t, s, program)

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	load, asking := newLoad(t, s), newAsking(t, s)
	for worker := range 2 {
		running.Go(func() { load.run(ctx, worker+200) }) // keys that no other test has used
	}
	running.Go(func() { asking.run(ctx) })
	page := filepath.Join(t.TempDir(), "panels.html")
	if keep := os.Getenv("CERTMILL_PANELS"); keep != "" {
		page = keep
	}
	var last string
	for deadline := time.Now().Add(90 * time.Second); ; {
		out, err := exec.CommandContext(ctx, look, "--prometheus", prometheus, "--dashboards", "../grafana", "--out", page, "--span", "1m").CombinedOutput()
		if last = string(out); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("panels are without data:\n%s", last)
		}
		time.Sleep(time.Second)
	}
	t.Log(last)
	until(t, "every target is up", func() error { return everyTargetUp(prometheus, 8) })
	runbookQueries(t, prometheus)
	if firing, err := pages(prometheus); err != nil || len(firing) > 0 {
		t.Errorf("alerts that wake somebody fire on a service that is well: %v, %v", firing, err)
	}
}

// runbookQueries asks every query of the runbooks. Whether it has data depends on what is
// wrong; that it is a query does not.
func runbookQueries(t *testing.T, prometheus string) {
	t.Helper()
	pages, err := runbooks.Read()
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, page := range pages {
		for _, query := range page.Blocks("promql") {
			asked++
			var a struct{ Status, Error string }
			if err := ask(prometheus+"/api/v1/query?query="+url.QueryEscape(query), &a); err != nil || a.Status != "success" {
				t.Errorf("%s: %s: %v %s", page.Name, query, err, a.Error)
			}
		}
	}
	if asked < 15 {
		t.Errorf("only %d queries were found", asked)
	}
}

// startPrometheus starts it with compose's file on this stack's ports, and faster.
func startPrometheus(t *testing.T, s *Stack, program string) (address string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.deploy, "compose", "monitoring", "prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	config := regexp.MustCompile("/etc/prometheus/rules").ReplaceAllLiteralString(string(text), filepath.Join(s.deploy, "prometheus"))
	config = intervals.ReplaceAllString(translate(config, "prometheus", s.port), "${1}_interval: 1s")
	folder := t.TempDir()
	file := filepath.Join(folder, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	port, err := s.dir.Port("prometheus", 0)
	if err != nil {
		t.Fatal(err)
	}
	address = "127.0.0.1:" + strconv.Itoa(port)
	log, err := s.dir.Log("prometheus")
	if err != nil {
		t.Fatal(err)
	}
	s.dir.Release("prometheus")
	p, err := local.Start(local.Command{Name: "prometheus", Path: program, Log: log, Dir: folder,
		Args: []string{"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(folder, "data"), "--web.listen-address=" + address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM, stopGrace); err != nil {
			t.Error(err)
		}
	})
	until(t, "Prometheus is ready", func() error {
		if err := p.Err(); err != nil {
			return err
		}
		response, err := http.Get("http://" + address + "/-/ready")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
	return address
}

func ask(url string, into any) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(into)
}

func everyTargetUp(prometheus string, want int) error {
	var a struct {
		Data struct {
			ActiveTargets []struct{ ScrapeURL, Health, LastError string }
		}
	}
	if err := ask(prometheus+"/api/v1/targets", &a); err != nil {
		return err
	}
	if len(a.Data.ActiveTargets) != want {
		return fmt.Errorf("%d targets, not %d", len(a.Data.ActiveTargets), want)
	}
	for _, target := range a.Data.ActiveTargets {
		if target.Health != "up" {
			return fmt.Errorf("%+v", target)
		}
	}
	return nil
}

// pages returns the alerts that fire and wake somebody.
func pages(prometheus string) (firing []string, err error) {
	var a struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	err = ask(prometheus+"/api/v1/alerts", &a)
	for _, alert := range a.Data.Alerts {
		if alert.State == "firing" && alert.Labels["severity"] == "page" {
			firing = append(firing, alert.Labels["alertname"])
		}
	}
	return firing, err
}
