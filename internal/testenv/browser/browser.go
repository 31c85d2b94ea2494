// Package browser drives a headless Chromium in tests, by the DevTools protocol over
// a pipe: no port, no library.
package browser

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/testenv"
)

// Browser is a Chromium with one page.
type Browser struct {
	t       testing.TB
	to      *os.File
	session string

	mu      sync.Mutex
	next    int
	waiting map[int]chan answer
	faults  []string
}

// answer is what the browser says to a command.
type answer struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// Start starts a Chromium that ends with the test. Where there is none the test is
// skipped, or fails with CI=true.
func Start(t testing.TB) *Browser {
	t.Helper()
	program := testenv.Program(t, "chromium", "chromium")
	theirs, to, err := os.Pipe()
	check(t, err)
	from, ours, err := os.Pipe()
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	// The certificates are those of a test; the sandbox wants a user who is not root.
	cmd := exec.CommandContext(ctx, program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors",
		"--remote-debugging-pipe", "--no-first-run", "--disable-background-networking", "--user-data-dir="+t.TempDir(), "--window-size=1280,900", "about:blank")
	cmd.ExtraFiles = []*os.File{theirs, ours} // 3 and 4
	cmd.WaitDelay = 10 * time.Second
	check(t, cmd.Start())
	_, _ = theirs.Close(), ours.Close()
	b := &Browser{t: t, to: to, waiting: map[int]chan answer{}}
	var reading sync.WaitGroup
	reading.Go(func() { b.read(from) })
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		_, _ = to.Close(), from.Close()
		reading.Wait()
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "Accessibility", "Network"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read hands out answers and keeps what the page complains about.
func (b *Browser) read(from *os.File) {
	in := bufio.NewReader(from)
	for {
		line, err := in.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID     int
			Method string
			Params struct {
				Entry            struct{ Level, Text, URL string }
				ExceptionDetails struct {
					Text      string
					Exception struct{ Description string }
				}
			}
			answer
		}
		if json.Unmarshal(bytes.TrimSuffix(line, []byte{0}), &m) != nil {
			continue
		}
		b.mu.Lock()
		switch m.Method {
		case "":
			if c := b.waiting[m.ID]; c != nil {
				c <- m.answer
				delete(b.waiting, m.ID)
			}
		case "Log.entryAdded":
			if e := m.Params.Entry; e.Level == "error" {
				b.faults = append(b.faults, e.Text+" "+e.URL)
			}
		case "Runtime.exceptionThrown":
			b.faults = append(b.faults, m.Params.ExceptionDetails.Text+" "+m.Params.ExceptionDetails.Exception.Description)
		}
		b.mu.Unlock()
	}
}

// call sends a command and waits for its answer.
func (b *Browser) call(method string, params map[string]any, result any) {
	b.t.Helper()
	check(b.t, b.try(method, params, result))
}

// try is call where the browser may refuse: its refusal is the error.
func (b *Browser) try(method string, params map[string]any, result any) error {
	b.t.Helper()
	b.mu.Lock()
	b.next++
	id := b.next
	c := make(chan answer, 1)
	b.waiting[id] = c
	b.mu.Unlock()
	message := map[string]any{"id": id, "method": method, "params": params}
	if params == nil {
		message["params"] = map[string]any{}
	}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	data, err := json.Marshal(message)
	check(b.t, err)
	_, err = b.to.Write(append(data, 0))
	check(b.t, err)
	select {
	case a := <-c:
		if a.Error != nil {
			return fmt.Errorf("%s: %s", method, a.Error.Message)
		}
		if result != nil {
			check(b.t, json.Unmarshal(a.Result, result))
		}
	case <-time.After(60 * time.Second):
		b.t.Fatalf("%s: no answer", method)
	}
	return nil
}

// Faults returns what the page has complained about since the last call: errors of
// scripts, of the content security policy, of requests.
func (b *Browser) Faults() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.faults
	b.faults = nil
	return f
}

// Open goes to a URL and waits until it is there.
func (b *Browser) Open(url string) {
	b.t.Helper()
	var r struct{ ErrorText string }
	b.call("Page.navigate", map[string]any{"url": url}, &r)
	if r.ErrorText != "" {
		b.t.Fatalf("%s: %s", url, r.ErrorText)
	}
	b.Until(`document.readyState == "complete"`)
}

// Eval runs an expression and returns its value as text.
func (b *Browser) Eval(expression string) string {
	b.t.Helper()
	value, err := b.evaluate(expression)
	check(b.t, err)
	return value
}

func (b *Browser) evaluate(expression string) (string, error) {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	if err := b.try("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r); err != nil {
		return "", err
	}
	if r.ExceptionDetails != nil {
		return "", fmt.Errorf("%s: %s", expression, r.ExceptionDetails.Exception.Description)
	}
	if r.Result.Value == nil {
		return "", nil
	}
	return fmt.Sprint(r.Result.Value), nil
}

// Until waits until an expression is true, across pages.
func (b *Browser) Until(expression string) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		// A page that is being left refuses: the next one is asked.
		if value, err := b.evaluate(`(() => { try { return Boolean(` + expression + `) } catch { return false } })()`); err == nil && value == "true" {
			return
		}
	}
	b.t.Fatalf("not within 30 s: %s; the page is %s:\n%s", expression, b.Eval("location.href"), b.Eval("document.body.innerText"))
}

// Press presses a key: "Tab", "Enter", " ".
func (b *Browser) Press(key string) {
	b.t.Helper()
	codes := map[string]int{"Tab": 9, "Enter": 13, " ": 32}
	p := map[string]any{"type": "keyDown", "key": key, "windowsVirtualKeyCode": codes[key]}
	if key == "Enter" {
		p["text"] = "\r"
	} else if key == " " {
		p["text"] = " "
	}
	b.call("Input.dispatchKeyEvent", p, nil)
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "windowsVirtualKeyCode": codes[key]}, nil)
}

// Type types text into what has the focus.
func (b *Browser) Type(text string) {
	b.t.Helper()
	b.call("Input.insertText", map[string]any{"text": text}, nil)
}

// Screenshot writes the whole page as PNG.
func (b *Browser) Screenshot(file string) {
	b.t.Helper()
	var r struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &r)
	data, err := base64.StdEncoding.DecodeString(r.Data)
	check(b.t, err)
	check(b.t, os.WriteFile(file, data, 0o644))
}

// Node is one thing that a screen reader would say.
type Node struct{ Role, Name string }

// Accessible returns what a screen reader has of the page.
func (b *Browser) Accessible() []Node {
	b.t.Helper()
	var r struct {
		Nodes []struct {
			Ignored    bool
			Role, Name struct{ Value string }
		}
	}
	b.call("Accessibility.getFullAXTree", nil, &r)
	var out []Node
	for _, n := range r.Nodes {
		if !n.Ignored {
			out = append(out, Node{Role: n.Role.Value, Name: strings.TrimSpace(n.Name.Value)})
		}
	}
	return out
}
