package gateway

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"

	"github.com/certmill/certmill/internal/problem"
)

// The console is pages for people, made here and complete without a script: a script
// only keeps figures fresh. It is a listener of its own, since /metrics has neither TLS
// nor callers, and the API's listener is open to everybody.

// ConsoleConfig is about the console.
type ConsoleConfig struct {
	// Listen is the address of the console, host:port, by HTTPS with the gateway's
	// certificate. It is for operators: keep it off public networks. Empty switches it off.
	Listen string `yaml:"listen"`
	// URL is how browsers reach it, https://host:port. Empty means listen, with
	// "localhost" for a loopback address.
	URL string `yaml:"url"`
	// Session is how long a sign-in by `certmill console` lasts, 1m to 24h.
	Session time.Duration `yaml:"session"`
}

func (c ConsoleConfig) validate(e *keyErrors) {
	if c.Listen == "" {
		return
	}
	e.address("console.listen", c.Listen)
	e.require(c.URL == "" || httpsOrigin(c.URL), "console.url", "must be https://host or https://host:port")
	e.between("console.session", c.Session, time.Minute, 24*time.Hour)
}

// url returns how browsers reach the console, without a slash at its end.
func (c ConsoleConfig) url(listening string) string {
	if c.URL != "" {
		return c.URL
	}
	host, port, err := net.SplitHostPort(listening)
	if err != nil {
		return "https://" + listening
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		host = "localhost"
	}
	return "https://" + net.JoinHostPort(host, port)
}

//go:embed console
var consoleFiles embed.FS

// console serves the pages. Make it with newConsole.
type console struct {
	service  *service
	auth     *authenticator
	observer *observer
	tickets  *ticketOffice
	log      *slog.Logger
	pages    *template.Template
	handler  http.Handler
}

// maxConsole bounds the console's connections and requests at one time: a handful of
// people, each with a page that refreshes itself.
const maxConsole = 128

func newConsole(s *service, auth *authenticator, o *observer, tickets *ticketOffice, log *slog.Logger) (*console, error) {
	c := &console{service: s, auth: auth, observer: o, tickets: tickets, log: log}
	files, err := fs.Sub(consoleFiles, "console")
	if err != nil {
		return nil, err
	}
	if c.pages, err = template.New("").Funcs(consoleFuncs(s.now)).ParseFS(files, "*.html"); err != nil {
		return nil, fmt.Errorf("the console's pages: %w", err)
	}
	mux := http.NewServeMux()
	static := http.FileServerFS(files)
	for _, name := range []string{"console.css", "console.js"} {
		mux.Handle("GET /"+name, static)
	}
	mux.HandleFunc("GET /signin", c.signIn)
	mux.HandleFunc("POST /signout", c.signOut)
	mux.Handle("GET /{$}", c.page(c.overview))
	mux.Handle("GET /live", c.page(c.live))
	mux.Handle("GET /certificates", c.page(c.search))
	mux.Handle("GET /certificates/{serial}", c.page(c.certificate))
	mux.Handle("GET /certificates/{serial}/revoke", c.page(c.askRevoke))
	mux.Handle("POST /certificates/{serial}/revoke", c.page(c.revoke))
	mux.Handle("GET /expiring", c.page(c.expiring))
	mux.Handle("/", c.page(func(context.Context, *visit) error {
		return problem.New(problem.NotFound, "there is no such page")
	}))
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(&visit{console: c, w: w, r: r}).fail(problem.Forbidden("origin", "same_origin", "this form was sent by another site"))
	}))
	c.handler = secured(guard.Handler(http.MaxBytesHandler(mux, 64<<10)))
	return c, nil
}

// secured sets the headers that every answer has: nothing is loaded from elsewhere, no
// script stands in a page, nobody frames it, nothing is kept.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// serveConsole serves the console until ctx ends.
func (g *Gateway) serveConsole(ctx context.Context) error {
	server := &http.Server{
		Handler: g.console.handler, TLSConfig: g.tls.config(),
		ReadHeaderTimeout: g.cfg.Limits.HeaderTimeout, ReadTimeout: g.cfg.Limits.ReadTimeout,
		WriteTimeout: 30 * time.Second, IdleTimeout: g.cfg.Limits.IdleTimeout, MaxHeaderBytes: g.cfg.Limits.MaxHeaderBytes,
		ErrorLog: slog.NewLogLogger(g.deps.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(netutil.LimitListener(g.consoleListener, maxConsole), "", "") }()
	select {
	case err := <-served:
		return fmt.Errorf("serving the console: %w", err)
	case <-ctx.Done():
	}
	// A page can be asked for again; nothing waits for people who look.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// visit is one request for a page.
type visit struct {
	console *console
	w       http.ResponseWriter
	r       *http.Request
	x       *exchange
	caller  *Caller
	session bool // signed in by a link, not by a client certificate
}

// page serves a page: caller, deadline, handler, log line.
func (c *console) page(serve func(context.Context, *visit) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, x := c.observer.begin(r.Context(), routeConsole, "")
		ctx, cancel := context.WithTimeout(ctx, c.service.cfg.Limits.CallTimeout)
		defer cancel()
		v := &visit{console: c, w: w, r: r.WithContext(ctx), x: x}
		err := v.serve(ctx, serve)
		if err != nil {
			v.fail(err)
		}
		x.end(ctx, err)
	})
}

func (v *visit) serve(ctx context.Context, serve func(context.Context, *visit) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	if v.caller, v.session, err = v.console.whoIs(ctx, v.r); err != nil {
		return err
	}
	v.x.caller = v.caller
	return serve(ctx, v)
}

// page is what every template gets.
type page struct {
	Title  string
	Path   string // of the link in the navigation that is this page's
	Caller string
	// Session says that there is something to sign out of.
	Session bool
	Body    any
}

// show writes a page. It is made whole before the first byte leaves.
func (v *visit) show(status int, name, title string, body any) error {
	p := page{Title: title, Path: v.r.URL.Path, Session: v.session, Body: body}
	if v.caller != nil {
		p.Caller = v.caller.ID
	}
	var b bytes.Buffer
	if err := v.console.pages.ExecuteTemplate(&b, name, p); err != nil {
		return fmt.Errorf("making the page %s: %w", name, err)
	}
	write(v.w, status, "text/html; charset=utf-8", b.Bytes())
	return nil
}

// fail shows what went wrong, as the API would tell it.
func (v *visit) fail(err error) {
	e := problem.From(err)
	requestID := ""
	if v.x != nil {
		requestID = v.x.requestID
	}
	body := struct {
		*problem.Error
		RequestID string
		SignIn    bool
	}{e, requestID, e.Kind == problem.Unauthenticated}
	if err := v.show(statusOf(err), "problem.html", e.Kind.Title(), body); err != nil {
		v.console.log.Error("the console cannot show a problem", "error", err)
		http.Error(v.w, "the page cannot be shown; the log says why", http.StatusInternalServerError)
	}
}
