package gateway

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/queue"
	"github.com/certmill/certmill/internal/testenv/browser"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// withConsole has a world's gateway serve the console.
func withConsole(c *Config, d *Deps) {
	c.Console.Listen = "127.0.0.1:0"
	keys, err := queue.ParseKeys(strings.Repeat("a1", 32))
	if err != nil {
		panic(err)
	}
	d.Seals = keys
	d.Roles = rolesOfTest{{Role: "signer", Name: "signer-1", Instance: "1", State: "ready", Issuers: []string{"issuing"},
		Bounds: []*certmillv1.Bound{{Name: "max_in_flight", Used: 3, Max: 512}},
		Tokens: []*certmillv1.TokenStatus{{Name: "token-1", Condition: "ready", Sessions: 4, Busy: 1, Signatures: 12}}}}
}

// link returns a link that signs a user in.
func (w *world) link(t testing.TB, user string) string {
	t.Helper()
	return must(certmillv1.NewOperationsClient(w.dial(t)).OpenConsole(as(t.Context(), w.idp.token(t, user)), &certmillv1.OpenConsoleRequest{}))(t).Url
}

// person is a browser without a screen.
type person struct {
	t    testing.TB
	base string
	*http.Client
}

func (w *world) person(t testing.TB, user string) *person {
	t.Helper()
	client := w.client()
	client.Jar = must(cookiejar.New(nil))(t)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	p := &person{t: t, base: w.gateway.service.consoleURL, Client: client}
	if user != "" {
		if status, body := p.get(w.link(t, user)); status != 200 {
			t.Fatalf("signing in: %d %s", status, body)
		}
	}
	return p
}

func (p *person) send(r *http.Request) (int, string) {
	p.t.Helper()
	resp := must(p.Do(r))(p.t)
	defer resp.Body.Close()
	body := must(io.ReadAll(resp.Body))(p.t)
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		p.t.Errorf("%s has the policy %q", r.URL.Path, csp)
	}
	return resp.StatusCode, string(body)
}

func (p *person) get(to string) (int, string) {
	p.t.Helper()
	if !strings.HasPrefix(to, "https:") {
		to = p.base + to
	}
	return p.send(must(http.NewRequestWithContext(p.t.Context(), http.MethodGet, to, nil))(p.t))
}

func (p *person) post(to, site string, form url.Values) (int, string) {
	p.t.Helper()
	r := must(http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.base+to, strings.NewReader(form.Encode())))(p.t)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", site)
	return p.send(r)
}

// issueOne returns the serial of a new certificate.
func (w *world) issueOne(t testing.TB, name string) string {
	t.Helper()
	reply := w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: w.idp.token(t, "alice"), body: armour(newCSR(t, nil, name))}).ok(t, 200)
	return reply.header.Get("Certmill-Serial")
}

var formField = regexp.MustCompile(`name="form" value="([^"]+)"`)

func TestTheConsoleLetsInOperatorsOnlyAndALinkOnce(t *testing.T) {
	w := newWorld(t, withConsole)
	stranger := w.person(t, "")
	for _, path := range []string{"/", "/live", "/certificates", "/expiring", "/certificates/00/revoke"} {
		if status, body := stranger.get(path); status != 401 || !strings.Contains(body, "certmill console") {
			t.Errorf("a stranger gets %d for %s", status, path)
		}
	}
	if _, err := certmillv1.NewOperationsClient(w.dial(t)).OpenConsole(as(t.Context(), w.idp.token(t, "alice")), &certmillv1.OpenConsoleRequest{}); err == nil {
		t.Error("a caller without a role gets a link")
	}
	link := w.link(t, "viewer")
	if status, _ := stranger.get(link); status != 200 {
		t.Fatalf("the link's first use: %d", status)
	}
	if status, _ := w.person(t, "").get(link); status != 401 {
		t.Errorf("the link's second use: %d", status)
	}
	if status, body := stranger.get("/"); status != 200 || !strings.Contains(body, "token-1") {
		t.Errorf("the overview of a viewer: %d", status)
	}
	late := w.link(t, "viewer")
	w.clock.advance(linkFor + time.Second)
	if status, _ := w.person(t, "").get(late); status != 401 {
		t.Errorf("a link after its time: %d", status)
	}
	w.clock.advance(w.gateway.cfg.Console.Session)
	if status, _ := stranger.get("/"); status != 401 {
		t.Errorf("a session after its time: %d", status)
	}
}

func TestARevocationInTheConsoleIsConfirmedAndIsNobodyElses(t *testing.T) {
	w := newWorld(t, withConsole)
	serial := w.issueOne(t, "a.example.test")
	path := "/certificates/" + serial + "/revoke"
	viewer, operator := w.person(t, "viewer"), w.person(t, "operator")
	if status, _ := viewer.get(path); status != 403 {
		t.Errorf("a viewer gets the form: %d", status)
	}
	_, body := operator.get(path)
	ticket := formField.FindStringSubmatch(body)
	if ticket == nil {
		t.Fatalf("no form: %s", body)
	}
	good := url.Values{"form": {ticket[1]}, "reason": {"4"}, "comment": {"moved"}, "confirm": {serial[len(serial)-4:]}}
	with := func(key, value string) url.Values {
		f := url.Values{}
		for k, v := range good {
			f[k] = v
		}
		f.Set(key, value)
		return f
	}
	for name, c := range map[string]struct {
		who    *person
		site   string
		form   url.Values
		status int
	}{
		"from another site":        {operator, "cross-site", good, 403},
		"from a sibling site":      {operator, "same-site", good, 403},
		"by a viewer":              {viewer, "same-origin", good, 403},
		"without the form's proof": {operator, "same-origin", with("form", ""), 422},
		"not confirmed":            {operator, "same-origin", with("confirm", "zzzz"), 422},
		"without a reason":         {operator, "same-origin", with("reason", ""), 422},
		"for certificateHold":      {operator, "same-origin", with("reason", "6"), 422},
		"with a strange comment":   {operator, "same-origin", with("comment", "a\x00b"), 422},
	} {
		if status, _ := c.who.post(path, c.site, c.form); status != c.status {
			t.Errorf("%s: %d, want %d", name, status, c.status)
		}
	}
	other := w.issueOne(t, "b.example.test")
	if status, _ := operator.post("/certificates/"+other+"/revoke", "same-origin", with("confirm", other[len(other)-4:])); status != 422 {
		t.Errorf("the form of another certificate: %d", status)
	}
	if status, body := operator.get("/certificates/" + serial); status != 200 || !strings.Contains(body, "Valid") {
		t.Fatalf("the certificate is not valid any more: %d", status)
	}
	if status, body := operator.post(path, "same-origin", good); status != 303 {
		t.Fatalf("the revocation: %d %s", status, body)
	}
	if _, body := operator.get("/certificates/" + serial); !strings.Contains(body, "Revoked: superseded") || strings.Contains(body, "moved") {
		t.Errorf("after it: %s", body)
	}
	if _, body := w.person(t, "admin").get("/certificates/" + serial); !strings.Contains(body, "certificate.revoke") {
		t.Errorf("an admin sees no audit entry: %s", body)
	}
}

// accessible holds a page against what a keyboard and a screen reader need.
func accessible(t *testing.T, b *browser.Browser, page string) {
	t.Helper()
	count := map[string]int{}
	for _, n := range b.Accessible() {
		count[n.Role]++
		switch n.Role {
		case "link", "button", "textbox", "combobox", "radio", "meter", "region", "navigation", "search", "heading", "columnheader":
			if n.Name == "" {
				t.Errorf("%s: a %s without a name", page, n.Role)
			}
		}
	}
	for role, want := range map[string]int{"main": 1, "banner": 1, "navigation": 1} {
		if count[role] != want {
			t.Errorf("%s: %d of the role %s, want %d", page, count[role], role, want)
		}
	}
	if got := b.Eval(`document.querySelectorAll("h1").length + " " + document.documentElement.lang + " " + (document.title != "")`); got != "1 en true" {
		t.Errorf("%s: headings, language and title: %s", page, got)
	}
	if got := b.Eval(`[...document.querySelectorAll("h1,h2,h3")].map(h => Number(h.tagName[1])).every((n, i, a) => n <= (a[i-1] ?? 0) + 1)`); got != "true" {
		t.Errorf("%s: a level of headings is left out", page)
	}
	if axe := os.Getenv("CERTMILL_AXE"); axe != "" {
		source := must(os.ReadFile(axe))(t)
		b.Eval(string(source) + "; 0")
		if got := b.Eval(`axe.run().then(r => r.violations.map(v => v.id + ": " + v.help + " " + v.nodes.map(n => n.html).join(" ")).join("\n"))`); got != "" {
			t.Errorf("%s: axe finds\n%s", page, got)
		}
	}
	if faults := b.Faults(); len(faults) > 0 {
		t.Errorf("%s: the browser complains: %q", page, faults)
	}
	if dir := os.Getenv("CERTMILL_SCREENSHOTS"); dir != "" {
		b.Screenshot(filepath.Join(dir, page+".png"))
	}
}

// tabTo presses Tab until what matches the selector has the focus.
func tabTo(t *testing.T, b *browser.Browser, selector string) {
	t.Helper()
	for range 60 {
		b.Press("Tab")
		if b.Eval(`document.activeElement.matches(`+"`"+selector+"`"+`)`) == "true" {
			return
		}
	}
	t.Fatalf("Tab never comes to %s", selector)
}

func TestTheConsoleInABrowserByKeyboard(t *testing.T) {
	w := newWorld(t, withConsole)
	b := browser.Start(t)
	serial := w.issueOne(t, "a.example.test")

	b.Open(w.link(t, "admin"))
	b.Until(`location.pathname == "/" && document.querySelector("#trend-line").getAttribute("points") != ""`)
	accessible(t, b, "overview")
	if got := b.Eval(`document.querySelector("#live").innerText`); !strings.Contains(got, "token-1") || !strings.Contains(got, "issuing") {
		t.Errorf("the overview says:\n%s", got)
	}
	b.Press("Tab")
	if got := b.Eval(`document.activeElement.innerText`); got != "Skip to the content" {
		t.Errorf("the first stop is %q", got)
	}
	b.Eval(`document.activeElement.blur(); window.before = document.querySelector("#live").firstElementChild; 0`)
	b.Until(`window.before != document.querySelector("#live").firstElementChild`)

	tabTo(t, b, `#pause`)
	b.Press(" ")
	b.Until(`document.querySelector("#pause").getAttribute("aria-pressed") == "true"`)

	b.Open(w.gateway.service.consoleURL + "/certificates")
	tabTo(t, b, `#value`)
	b.Type("a.example.test")
	b.Press("Enter")
	b.Until(`document.querySelector("#found-h")?.innerText == "Found"`)
	accessible(t, b, "search")
	tabTo(t, b, `td a, th a[href="/certificates/`+serial+`"]`)
	b.Press("Enter")
	b.Until(`document.querySelector("h1").innerText == "Certificate ` + serial + `"`)
	accessible(t, b, "certificate")
	tabTo(t, b, `a.danger`)
	b.Press("Enter")
	b.Until(`document.querySelector("#confirm")`)
	accessible(t, b, "revoke")
	tabTo(t, b, `input[type=radio]`)
	b.Press(" ")
	tabTo(t, b, `#confirm`)
	b.Type("wron")
	b.Press("Enter")
	b.Until(`document.querySelector("#fault")`)
	b.Faults() // the answer 422 is one
	accessible(t, b, "revoke-again")
	tabTo(t, b, `#confirm`)
	b.Type(serial[len(serial)-4:])
	b.Press("Enter")
	b.Until(`document.querySelector(".level")?.innerText.startsWith("Revoked: superseded")`)
	accessible(t, b, "revoked")
	b.Open(w.gateway.service.consoleURL + "/expiring")
	accessible(t, b, "expiring")
}
