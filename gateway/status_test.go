package gateway

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// rolesOfTest are processes that a test makes up.
type rolesOfTest []*certmillv1.RoleStatus

func (r rolesOfTest) Roles() []*certmillv1.RoleStatus { return r }

func TestAStatusShowsTheLedgerTheIssuersAndWhoSpoke(t *testing.T) {
	signer := presence.NewReporter(presence.Signer, "s1", func(m *certmillv1.RoleStatus) {
		m.Issuers = []string{"issuing"}
		m.Tokens = []*certmillv1.TokenStatus{{Name: "t", Condition: "ready", Sessions: 4}}
	}).Report()
	w := newWorld(t, func(_ *Config, d *Deps) { d.Roles = rolesOfTest{signer} })
	must(w.book.PutIssuer(t.Context(), ledger.Issuer{Name: "root", State: ledger.IssuerRetired, DER: w.pki.root.cert.Raw, KeyURI: "pkcs11:object=root"}))(t)
	if err := w.gateway.service.issuers.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.do(t, httpCall{method: http.MethodPost, path: "/v1/certificates", contentType: pemType, token: w.idp.token(t, "alice"), body: armour(newCSR(t, nil, "a.example.test"))}).ok(t, 200)

	w.do(t, httpCall{method: http.MethodGet, path: "/v1/status", token: w.idp.token(t, "alice")}).expect(t, 403, "caller", "role")
	w.do(t, httpCall{method: http.MethodGet, path: "/v1/status", token: w.idp.token(t, "viewer")}).ok(t, 200)

	m := must(certmillv1.NewOperationsClient(w.dial(t)).GetStatus(as(t.Context(), w.idp.token(t, "viewer")), &certmillv1.GetStatusRequest{}))(t)
	if !m.Ledger.GetReady() || m.Ledger.Seconds <= 0 {
		t.Errorf("the ledger is %v", m.Ledger)
	}
	if len(m.Issuers) != 1 || m.Issuers[0].Name != "issuing" || m.Issuers[0].State != "active" || m.Issuers[0].Signers != 1 {
		t.Errorf("the issuers are %v", m.Issuers)
	}
	if len(m.Roles) != 2 || m.Roles[0].Role != presence.Gateway || m.Roles[0].State != presence.Ready || m.Roles[1].Name != "s1" {
		t.Errorf("the roles are %v", m.Roles)
	}
	eventually(t, "the certificate is in the activity", func() bool {
		return w.gateway.service.status.look(t.Context()).GetIssuance().GetIssued() == 1
	})
}

func TestFindingsSayWhatIsNotAsItShouldBe(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	role := func(name string) *certmillv1.RoleStatus {
		return &certmillv1.RoleStatus{Role: name, Name: "x", State: presence.Ready, Version: "1", Reported: in(0), Issuers: []string{"a"}}
	}
	well := func() *certmillv1.ServiceStatus {
		return &certmillv1.ServiceStatus{
			Roles:   []*certmillv1.RoleStatus{role("signer"), role("presigner"), role("responder")},
			Ledger:  &certmillv1.LedgerStatus{Ready: true},
			Queue:   &certmillv1.QueueStatus{MaxMessages: 100},
			Crls:    &certmillv1.CRLStatus{NearestNextUpdate: in(24 * time.Hour)},
			Issuers: []*certmillv1.IssuerStatus{{Name: "a", State: "active", NotAfter: in(365 * 24 * time.Hour), Signers: 1}},
		}
	}
	if f := find(well(), now); len(f) != 0 {
		t.Fatalf("a service that is well: %v", f)
	}
	for name, c := range map[string]struct {
		change func(*certmillv1.ServiceStatus)
		level  string
		want   string
	}{
		"no ledger":    {func(m *certmillv1.ServiceStatus) { m.Ledger = &certmillv1.LedgerStatus{} }, LevelDown, "the ledger does not answer"},
		"no signer":    {func(m *certmillv1.ServiceStatus) { m.Roles = m.Roles[1:] }, LevelDown, "no signer is ready"},
		"no responder": {func(m *certmillv1.ServiceStatus) { m.Roles = m.Roles[:2] }, LevelDegraded, "no responder is ready"},
		"a silent role": {func(m *certmillv1.ServiceStatus) {
			m.Roles = append(m.Roles, &certmillv1.RoleStatus{Role: "signer", Name: "y", State: presence.Silent, Reported: in(-time.Minute)})
		}, LevelDegraded, "signer y has not been heard since 11:59:00"},
		"a role not ready": {func(m *certmillv1.ServiceStatus) {
			m.Roles = append(m.Roles, &certmillv1.RoleStatus{Role: "signer", Name: "y", State: presence.NotReady, Reason: "no token", Version: "1"})
		}, LevelDegraded, "signer y is not ready: no token"},
		"two builds": {func(m *certmillv1.ServiceStatus) { r := role("signer"); r.Version = "2"; m.Roles = append(m.Roles, r) }, LevelDegraded, "2 builds of the signer run side by side"},
		"a token is down": {func(m *certmillv1.ServiceStatus) {
			m.Roles[0].Tokens = []*certmillv1.TokenStatus{{Name: "t", Condition: "down", Reason: "CKR_DEVICE_REMOVED"}}
		}, LevelDegraded, "token t of signer x is down: CKR_DEVICE_REMOVED"},
		"calls hang": {func(m *certmillv1.ServiceStatus) {
			m.Roles[0].Tokens = []*certmillv1.TokenStatus{{Name: "t", Condition: "ready", Hanging: 2}}
		}, LevelDegraded, "2 calls hang in token t"},
		"a full pool": {func(m *certmillv1.ServiceStatus) {
			m.Roles[0].Bounds = []*certmillv1.Bound{{Name: "max_in_flight", Used: 81, Max: 100}}
		}, LevelDegraded, "max_in_flight is 81 of 100"},
		"an old queue": {func(m *certmillv1.ServiceStatus) { m.Queue.OldestSeconds = 6 }, LevelDegraded, "the oldest message has waited for 6s"},
		"a full queue": {func(m *certmillv1.ServiceStatus) { m.Queue.Messages = 80 }, LevelDegraded, "the queue holds 80 of 100 messages"},
		"old answers": {func(m *certmillv1.ServiceStatus) {
			m.Roles[1].Ocsp = &certmillv1.OCSPStatus{Overdue: 3, NearestNextUpdate: in(2 * time.Hour)}
		}, LevelDegraded, "3 OCSP answers"},
		"expiring answers": {func(m *certmillv1.ServiceStatus) {
			m.Roles[1].Ocsp = &certmillv1.OCSPStatus{Overdue: 3, NearestNextUpdate: in(time.Minute)}
		}, LevelDown, "3 OCSP answers"},
		"an OCSP signer": {func(m *certmillv1.ServiceStatus) {
			m.Roles[1].Ocsp = &certmillv1.OCSPStatus{SignerExpiry: in(24 * time.Hour)}
		}, LevelDegraded, "without an OCSP signer in 24h0m0s"},
		"no sweep": {func(m *certmillv1.ServiceStatus) {
			m.Roles[1].Ocsp = &certmillv1.OCSPStatus{Swept: in(-25 * time.Hour)}
		}, LevelDegraded, "has not compared its answers with the ledger for 25h0m0s"},
		"a CRL expires":  {func(m *certmillv1.ServiceStatus) { m.Crls.NearestNextUpdate = in(time.Minute) }, LevelDown, "a CRL expires in 1m0s"},
		"no CRL":         {func(m *certmillv1.ServiceStatus) { m.Crls.Never = 1 }, LevelDegraded, "1 distribution points have no CRL yet"},
		"an issuer ends": {func(m *certmillv1.ServiceStatus) { m.Issuers[0].NotAfter = in(10 * 24 * time.Hour) }, LevelDegraded, "issuer a (generation 0) expires in 10 days"},
		"nobody signs":   {func(m *certmillv1.ServiceStatus) { m.Issuers[0].Signers = 0 }, LevelDown, "no ready signer serves issuer a"},
		"one of two cannot sign": {func(m *certmillv1.ServiceStatus) {
			uses := []*certmillv1.IssuerUse{{Profile: "p", Share: .5}}
			m.Issuers[0].Uses = uses
			m.Issuers = append(m.Issuers, &certmillv1.IssuerStatus{Name: "b", State: "active", NotAfter: in(365 * 24 * time.Hour), Uses: uses})
		}, LevelDegraded, "no ready signer serves issuer b; its profiles' other issuers do its work"},
		"one of two has a profile alone": {func(m *certmillv1.ServiceStatus) {
			uses := []*certmillv1.IssuerUse{{Profile: "p", Share: .5}}
			m.Issuers[0].Uses = uses
			m.Issuers = append(m.Issuers, &certmillv1.IssuerStatus{Name: "b", State: "active", NotAfter: in(365 * 24 * time.Hour), Uses: append(uses, &certmillv1.IssuerUse{Profile: "q", Share: 1})})
		}, LevelDown, "no ready signer serves issuer b"},
		"no issuer": {func(m *certmillv1.ServiceStatus) { m.Issuers = nil }, LevelDown, "there is no active issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			m := well()
			c.change(m)
			f := find(m, now)
			if len(f) == 0 || f[0].Level != c.level || !strings.Contains(f[0].Detail, c.want) {
				t.Errorf("got %v, want %s: …%s…", f, c.level, c.want)
			}
		})
	}
}
