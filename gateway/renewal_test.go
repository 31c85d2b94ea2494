package gateway

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/serial"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

func TestRenewalIsSpread(t *testing.T) {
	s := &service{cfg: validConfig(), early: &earlyRenewals{}}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := renewable{notBefore: start, notAfter: start.Add(100 * time.Hour)}
	low := s.advise(&r)
	for i := range r.serial {
		r.serial[i] = 0xff
	}
	high := s.advise(&r)
	if low.at != start.Add(55*time.Hour) || low.from != low.at {
		t.Errorf("the earliest advice is %+v", low)
	}
	if got := high.at.Sub(start); got > 65*time.Hour || got < 64*time.Hour || high.to != start.Add(65*time.Hour) {
		t.Errorf("the latest advice is %+v", high)
	}
}

func TestAnEarlyRenewalPullsForwardWhatItIsAbout(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	created := start.Add(10 * time.Hour)
	one := &issuer{Issuer: ledger.Issuer{Name: "one"}, cert: &x509.Certificate{NotBefore: start.Add(-time.Hour)}}
	w := newWorld(t) // for its profiles: server backdates by two minutes
	for name, c := range map[string]struct {
		early     ledger.EarlyRenewal
		notBefore time.Time
		pulled    bool
	}{
		"its issuer":                     {ledger.EarlyRenewal{Issuer: "one"}, start, true},
		"another issuer":                 {ledger.EarlyRenewal{Issuer: "two"}, start, false},
		"its caller":                     {ledger.EarlyRenewal{Holder: "jwt:idp#shop"}, start, true},
		"callers of a group":             {ledger.EarlyRenewal{Holder: "jwt:idp#*"}, start, true},
		"another caller":                 {ledger.EarlyRenewal{Holder: "jwt:idp#sho"}, start, false},
		"its name":                       {ledger.EarlyRenewal{Holder: "uri:spiffe://a.test/x"}, start, true},
		"names of a group":               {ledger.EarlyRenewal{Holder: "uri:spiffe://a.test/*"}, start, true},
		"its issuer, of another holder":  {ledger.EarlyRenewal{Issuer: "one", Holder: "dns:x"}, start, false},
		"issued a minute before":         {ledger.EarlyRenewal{Issuer: "one"}, created.Add(-3 * time.Minute), true},
		"issued after, as backdated":     {ledger.EarlyRenewal{Issuer: "one"}, created.Add(-time.Minute), false},
		"issued after, and not by a bit": {ledger.EarlyRenewal{Issuer: "one"}, created.Add(time.Hour), false},
	} {
		t.Run(name, func(t *testing.T) {
			c.early.Created, c.early.RenewBy, c.early.Reason = created, created.Add(2*time.Hour), "rotation"
			s := &service{cfg: validConfig(), early: &earlyRenewals{}, profiles: w.gateway.service.profiles}
			s.early.list.Store(&[]ledger.EarlyRenewal{c.early})
			seen := map[time.Time]bool{}
			for i := range 100 {
				r := renewable{
					serial: serial.Number{serial.Size - 4: byte(i * 256 / 100)}, issuer: one, profile: "server", caller: "jwt:idp#shop",
					names: []string{"uri:spiffe://a.test/x"}, notBefore: c.notBefore, notAfter: c.notBefore.Add(100 * time.Hour),
				}
				a := s.advise(&r)
				seen[a.at] = true
				if pulled := !a.at.Before(created) && !a.at.After(c.early.RenewBy) && a.reason == "rotation"; pulled != c.pulled {
					t.Fatalf("advice %+v", a)
				}
			}
			if len(seen) != 100 {
				t.Errorf("100 certificates have %d times", len(seen))
			}
		})
	}
	t.Run("never pushes back", func(t *testing.T) {
		s := &service{cfg: validConfig(), early: &earlyRenewals{}, profiles: w.gateway.service.profiles}
		r := renewable{issuer: one, profile: "server", notBefore: start, notAfter: start.Add(2 * time.Hour)}
		before := s.advise(&r)
		s.early.list.Store(&[]ledger.EarlyRenewal{{Issuer: "one", Created: created, RenewBy: created.Add(time.Hour)}})
		if after := s.advise(&r); after != before {
			t.Errorf("%+v became %+v", before, after)
		}
	})
}

func TestOperatorsPullRenewalsForward(t *testing.T) {
	w := newWorld(t)
	operator, shop := w.idp.token(t, "operator"), w.idp.token(t, "shop")
	first := w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", token: shop})
	holder := w.client(first)
	path := fmt.Sprintf("/v1/certificates/%032x/renewal", first.Leaf.SerialNumber)
	ask := func(c httpCall) *certmillv1.RenewalInfo {
		t.Helper()
		var out certmillv1.RenewalInfo
		c.method, c.path = http.MethodGet, path
		r := w.do(t, c).ok(t, 200)
		if r.decode(t, &out); r.header.Get("Retry-After") != fmt.Sprint(out.AskAgain.Seconds) {
			t.Errorf("Retry-After is %s, ask_again %s", r.header.Get("Retry-After"), out.AskAgain)
		}
		return &out
	}
	before := ask(httpCall{client: holder})
	if got := ask(httpCall{token: shop}); !got.RenewAt.AsTime().Equal(before.RenewAt.AsTime()) {
		t.Errorf("to its caller %s, to its holder %s", got.RenewAt.AsTime(), before.RenewAt.AsTime())
	}
	ask(httpCall{token: w.idp.token(t, "viewer")})
	w.do(t, httpCall{method: http.MethodGet, path: path, token: w.idp.token(t, "cart")}).expect(t, 403, "serial", "own_or_viewer")
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/certificates/00/renewal", token: shop}).expect(t, 400, "serial", "serial_format")

	order := func(token string, in *certmillv1.RenewEarlyRequest) httpReply {
		return w.do(t, httpCall{method: http.MethodPost, path: "/v1/early-renewals", contentType: typeJSON, token: token, body: must(protojson.MarshalOptions{UseProtoNames: true}.Marshal(in))(t)})
	}
	soon := timestamppb.New(time.Now().Add(time.Minute))
	order(shop, &certmillv1.RenewEarlyRequest{Issuer: "issuing", RenewBy: soon}).expect(t, 403, "caller", "role")
	for rule, in := range map[string]*certmillv1.RenewEarlyRequest{
		"required":       {RenewBy: soon},
		"issuer_unknown": {Issuer: "none", RenewBy: soon},
		"holder_pattern": {Holder: "uri:*/x", RenewBy: soon},
		"renew_by_range": {Issuer: "issuing", RenewBy: timestamppb.New(time.Now().Add(-time.Hour))},
		"reason_text":    {Issuer: "issuing", RenewBy: soon, Reason: "a\nb"},
	} {
		if r := order(operator, in); r.status != 400 || r.problem(t).Rule != rule {
			t.Errorf("%s: %d %s", rule, r.status, r.body)
		}
	}
	w.clock.advance(3 * time.Minute) // past the backdate: the first certificate is older than the order
	var made certmillv1.EarlyRenewal
	order(operator, &certmillv1.RenewEarlyRequest{Holder: "uri:spiffe://example.test/sa/*", RenewBy: timestamppb.New(w.clock.now().Add(time.Minute)), Reason: "key rotation"}).ok(t, 201).decode(t, &made)
	eventually(t, "the holder is told", func() bool { return ask(httpCall{client: holder}).Reason == "key rotation" })
	if got := ask(httpCall{client: holder}).RenewAt.AsTime(); got.After(made.RenewBy.AsTime()) {
		t.Errorf("advised %s, after %s", got, made.RenewBy.AsTime())
	}
	w.clock.advance(time.Second) // certificates count in whole seconds
	second := w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", client: holder})
	path = fmt.Sprintf("/v1/certificates/%032x/renewal", second.Leaf.SerialNumber)
	if got := ask(httpCall{client: w.client(second)}); got.Reason != "" {
		t.Errorf("what was renewed is told to renew again: %+v", got)
	}

	var list certmillv1.ListEarlyRenewalsResponse
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/early-renewals", token: w.idp.token(t, "viewer")}).ok(t, 200).decode(t, &list)
	if len(list.EarlyRenewals) != 1 || list.EarlyRenewals[0].Id != made.Id {
		t.Errorf("listed %+v", list.EarlyRenewals)
	}
	end := httpCall{method: http.MethodDelete, path: "/v1/early-renewals/" + made.Id, token: operator}
	w.do(t, end).ok(t, 200)
	w.do(t, end).expect(t, 404, "", "")
	path = fmt.Sprintf("/v1/certificates/%032x/renewal", first.Leaf.SerialNumber)
	eventually(t, "the advice is as before", func() bool {
		got := ask(httpCall{client: holder})
		return got.Reason == "" && got.RenewAt.AsTime().Equal(before.RenewAt.AsTime())
	})
}

func TestRenewalInfoOverGRPCIsAboutTheCertificateShown(t *testing.T) {
	w := newWorld(t)
	cert := w.obtain(t, httpCall{path: "/v1/certificates?profile=workload", token: w.idp.token(t, "shop")})
	ca := certmillv1.NewCertificateAuthorityClient(w.dial(t, cert))
	info := must(ca.GetRenewalInfo(t.Context(), &certmillv1.GetRenewalInfoRequest{}))(t)
	if info.Serial != fmt.Sprintf("%032x", cert.Leaf.SerialNumber) || info.AskAgain.AsDuration() != 186*time.Second {
		t.Errorf("got %v", info)
	}
	if _, err := certmillv1.NewCertificateAuthorityClient(w.dial(t)).GetRenewalInfo(as(t.Context(), w.idp.token(t, "shop")), &certmillv1.GetRenewalInfoRequest{}); err == nil {
		t.Error("without a serial and a certificate there is an answer")
	}
}
