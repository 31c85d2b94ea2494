package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/internal/profile"
	"github.com/certmill/certmill/internal/serial"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// Who may see the console: a browser with a client certificate, which is judged at
// every request as the API judges it, or one that was signed in by a link which
// `certmill console` has fetched with the operator's own credential. Sessions are kept
// in the browser, sealed by the queue's key, so that any gateway knows them and none
// has to remember them. What a session may do is looked up at every request.

// Sealer seals and opens small messages; *queue.Keys is the one for production.
type Sealer interface {
	Seal(subject string, m proto.Message) ([]byte, error)
	Open(subject string, data []byte, m proto.Message) error
}

const (
	sessionCookie = "__Host-certmill" // the prefix has browsers insist on Secure, Path=/ and no Domain
	linkFor       = time.Minute
	formFor       = 15 * time.Minute
	// maxLinks bounds the used links that are remembered.
	maxLinks = 4096
)

// The kinds of tickets. None passes for another.
const (
	ticketLink    = "certmill.console.link"
	ticketSession = "certmill.console.session"
	ticketForm    = "certmill.console.form"
)

// ticketOffice gives out tickets and takes them back. It is safe for concurrent use.
type ticketOffice struct {
	keys Sealer
	now  func() time.Time
	used *lru[string, struct{}] // nonces of links
}

func newTicketOffice(keys Sealer, now func() time.Time) *ticketOffice {
	return &ticketOffice{keys: keys, now: now, used: newLRU[string, struct{}](maxLinks)}
}

// give makes a ticket for a caller.
func (o *ticketOffice) give(kind string, c *Caller, purpose string, lasts time.Duration) (string, *certmillv1.ConsoleTicket, error) {
	t := &certmillv1.ConsoleTicket{Caller: c.ID, Expires: timestamppb.New(o.now().Add(lasts)), Nonce: make([]byte, 16), Purpose: purpose}
	_, _ = rand.Read(t.Nonce) // never fails
	if c.Renewal {
		t.Serial = c.Serial[:]
	}
	sealed, err := o.keys.Seal(kind, t)
	return base64.RawURLEncoding.EncodeToString(sealed), t, err
}

// take opens a ticket; the error tells a stranger nothing.
func (o *ticketOffice) take(kind, text string) (*certmillv1.ConsoleTicket, error) {
	t := &certmillv1.ConsoleTicket{}
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = o.keys.Open(kind, data, t)
	}
	if err != nil || o.now().After(t.Expires.AsTime()) {
		return nil, unauthenticated("session", "the sign-in is over; run `certmill console` for a new one")
	}
	return t, nil
}

// once takes a link that was not used at this gateway.
func (o *ticketOffice) once(text string) (*certmillv1.ConsoleTicket, error) {
	t, err := o.take(ticketLink, text)
	if err != nil {
		return nil, err
	}
	nonce := string(t.Nonce)
	if _, used := o.used.get(nonce); used {
		return nil, unauthenticated("link_used", "this link was used before; run `certmill console` for a new one")
	}
	o.used.put(nonce, struct{}{})
	return t, nil
}

// openConsole makes a link for an operator.
func (s *service) openConsole(_ context.Context, c *Caller) (*certmillv1.OpenConsoleResponse, error) {
	if err := c.needs(Viewer, OperatorRole, Auditor); err != nil {
		return nil, err
	}
	if s.consoleURL == "" || s.tickets == nil {
		return nil, problem.New(problem.NotFound, "this gateway has no console; set console.listen in its configuration")
	}
	code, t, err := s.tickets.give(ticketLink, c, "", linkFor)
	if err != nil {
		return nil, err
	}
	return &certmillv1.OpenConsoleResponse{Url: s.consoleURL + "/signin?" + url.Values{"code": {code}}.Encode(), Expires: t.Expires}, nil
}

// whoIs finds out who asks for a page.
func (c *console) whoIs(ctx context.Context, r *http.Request) (caller *Caller, session bool, err error) {
	if cookie, err := r.Cookie(sessionCookie); err == nil {
		if t, err := c.tickets.take(ticketSession, cookie.Value); err == nil {
			caller, err := c.resume(ctx, t)
			return caller, true, err
		}
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		caller, err = c.auth.mtls.caller(ctx, r.TLS)
		return caller, false, err
	}
	return nil, false, unauthenticated("missing", "nobody is signed in here")
}

// resume makes the caller of a session: its roles are those of the configuration now,
// and the certificate that it began with must not have been revoked.
func (c *console) resume(ctx context.Context, t *certmillv1.ConsoleTicket) (*Caller, error) {
	kind, _, _ := strings.Cut(t.Caller, ":")
	caller := &Caller{Caller: profile.Caller{ID: t.Caller, Kind: kind}}
	if len(t.Serial) > 0 {
		n, err := serial.FromBytes(t.Serial)
		if err != nil {
			return nil, unauthenticated("session", "the sign-in is over")
		}
		if err := c.auth.mtls.notRevoked(ctx, n); err != nil {
			return nil, err
		}
	}
	caller.Roles = rolesOf(c.service.cfg.Operators, caller.ID)
	return caller, nil
}

// signIn turns a link into a session. The page that answers leads on by itself: a
// redirect would still count as coming from the site that held the link, and a strict
// cookie would not be sent with it.
func (c *console) signIn(w http.ResponseWriter, r *http.Request) {
	v := &visit{console: c, w: w, r: r}
	link, err := c.tickets.once(r.URL.Query().Get("code"))
	if err == nil {
		v.caller, err = c.resume(r.Context(), link)
	}
	if err != nil {
		v.fail(err)
		return
	}
	var n serial.Number
	v.caller.Renewal = copy(n[:], link.Serial) == serial.Size
	v.caller.Serial = n
	sealed, _, err := c.tickets.give(ticketSession, v.caller, "", c.service.cfg.Console.Session)
	if err != nil {
		v.fail(err)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: sealed, Path: "/", Secure: true, HttpOnly: true,
		SameSite: http.SameSiteStrictMode, MaxAge: int(c.service.cfg.Console.Session / time.Second)})
	c.log.Info("an operator has signed in to the console", "caller", v.caller.ID)
	if err := v.show(http.StatusOK, "signedin.html", "Signed in", nil); err != nil {
		v.fail(err)
	}
}

func (c *console) signOut(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: -1})
	v := &visit{console: c, w: w, r: r}
	if err := v.show(http.StatusOK, "signedout.html", "Signed out", nil); err != nil {
		v.fail(err)
	}
}

// form makes the ticket of a form: proof that this caller has seen this page.
func (v *visit) form(purpose string) (string, error) {
	text, _, err := v.console.tickets.give(ticketForm, v.caller, purpose, formFor)
	return text, err
}

// formOf checks the ticket that came with a form.
func (v *visit) formOf(purpose string) error {
	t, err := v.console.tickets.take(ticketForm, v.r.PostFormValue("form"))
	if err != nil || t.Caller != v.caller.ID || t.Purpose != purpose || v.caller.Renewal && !bytes.Equal(t.Serial, v.caller.Serial[:]) {
		return problem.Rejected("form", "form_expired", "the form is too old or was made for something else; open it again")
	}
	return nil
}
