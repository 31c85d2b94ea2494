package gateway

import (
	"context"
	"crypto/x509"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/presence"
	"github.com/certmill/certmill/internal/problem"
	"github.com/certmill/certmill/ledger"
	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// consoleFuncs are what templates write values with.
func consoleFuncs(now func() time.Time) template.FuncMap {
	return template.FuncMap{
		"rate":     func(a *certmillv1.Activity) string { return strconv.FormatFloat(presence.Rate(a), 'f', 1, 64) },
		"quantile": func(q float64, a *certmillv1.Activity) string { return latencyText(presence.Quantile(a, q)) },
		"millis":   func(q float64, a *certmillv1.Activity) int64 { return presence.Quantile(a, q).Milliseconds() },
		"time":     func(t *timestamppb.Timestamp) string { return t.AsTime().UTC().Format("2006-01-02 15:04:05") + " UTC" },
		"iso":      func(t *timestamppb.Timestamp) string { return t.AsTime().UTC().Format(time.RFC3339) },
		"clock":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" },
		"until":    func(t *timestamppb.Timestamp) string { return untilText(t.AsTime().Sub(now())) },
		"left":     func(t *timestamppb.Timestamp) int { return int(t.AsTime().Sub(now()) / (24 * time.Hour)) },
		"seconds": func(s float64) string {
			return latencyText(time.Duration(s * float64(time.Second)).Round(100 * time.Microsecond))
		},
		"up": func(r *certmillv1.RoleStatus) string {
			return spanText(r.GetReported().AsTime().Sub(r.GetStarted().AsTime()))
		},
		"words": func(s string) string { return strings.ReplaceAll(s, "_", " ") },
		"join":  func(s []string) string { return strings.Join(s, ", ") },
	}
}

func latencyText(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return d.String()
}

func untilText(d time.Duration) string {
	if d < 0 {
		return spanText(-d) + " ago"
	}
	return "in " + spanText(d)
}

// spanText writes a duration by its largest unit that is there twice.
func spanText(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if d >= 2*u.unit {
			return fmt.Sprintf("%d %s", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}

func (c *console) overview(ctx context.Context, v *visit) error {
	status, err := c.service.getStatus(ctx, v.caller)
	if err != nil {
		return err
	}
	return v.show(http.StatusOK, "overview.html", "Overview", status)
}

// live is the part of the overview that changes.
func (c *console) live(ctx context.Context, v *visit) error {
	status, err := c.service.getStatus(ctx, v.caller)
	if err != nil {
		return err
	}
	return v.show(http.StatusOK, "live", "", status)
}

// results is a page of certificates.
type results struct {
	Field, Value, Before string // what was asked for
	Asked                bool
	Certificates         []*certmillv1.Certificate
	Next                 string // link to the next page
}

// search finds certificates by one of name, serial, owner and caller, and by expiry.
func (c *console) search(ctx context.Context, v *visit) error {
	q, err := parseQuery(v.r.URL.RawQuery, "field", "value", "before", "page")
	if err != nil {
		return err
	}
	page := &results{Field: q.text("field"), Value: strings.TrimSpace(q.text("value")), Before: q.text("before")}
	page.Asked = page.Value != "" || page.Before != ""
	if page.Field == "serial" && page.Value != "" {
		http.Redirect(v.w, v.r, "/certificates/"+url.PathEscape(page.Value), http.StatusSeeOther)
		return nil
	}
	if !page.Asked {
		return v.show(http.StatusOK, "search.html", "Certificates", page)
	}
	in := &certmillv1.ListCertificatesRequest{PageSize: 50, PageToken: q.text("page")}
	switch page.Field {
	case "", "name":
		in.Name = page.Value
	case "owner":
		in.Owner = page.Value
	case "caller":
		in.Caller = page.Value
	default:
		return problem.Rejected("field", "search_field", "certificates are found by name, serial, owner or caller")
	}
	if page.Before != "" {
		day, err := time.Parse(time.DateOnly, page.Before)
		if err != nil {
			return problem.Rejected("before", "date", "a date is written like 2026-12-31")
		}
		in.ExpiresBefore = timestamppb.New(day.Add(24 * time.Hour))
	}
	found, err := c.service.listCertificates(ctx, v.caller, in)
	if err != nil {
		return err
	}
	page.Certificates = found.Certificates
	if found.NextPageToken != "" {
		page.Next = "/certificates?" + url.Values{"field": {page.Field}, "value": {page.Value}, "before": {page.Before}, "page": {found.NextPageToken}}.Encode()
	}
	return v.show(http.StatusOK, "search.html", "Certificates", page)
}

// detail is all that is known of one certificate.
type detail struct {
	*certmillv1.Certificate
	Subject, Key, Signature string
	State                   string // "valid", "revoked", "expired"
	Reason                  string
	Epoch                   uint32
	Chain                   []link
	Audit                   []ledger.AuditEntry
	MayAudit, MayRevoke     bool
}

// link is one certificate of the chain.
type link struct {
	Subject, Issuer string
	NotAfter        time.Time
}

// auditShown bounds the audit entries on a page.
const auditShown = 50

func (c *console) detail(ctx context.Context, v *visit) (*detail, error) {
	m, err := c.service.getCertificate(ctx, v.caller, &certmillv1.GetCertificateRequest{Serial: v.r.PathValue("serial")})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(m.Der)
	if err != nil {
		return nil, fmt.Errorf("reading certificate %s of the ledger: %w", m.Serial, err)
	}
	n, err := parseSerial(m.Serial)
	if err != nil {
		return nil, err
	}
	d := &detail{Certificate: m, Subject: cert.Subject.String(), Key: cert.PublicKeyAlgorithm.String(), Signature: cert.SignatureAlgorithm.String(), State: "valid", Epoch: n.Epoch()}
	switch {
	case m.Revocation != nil:
		d.State, d.Reason = "revoked", revocationText(m.Revocation.Reason)
	case c.service.now().After(m.NotAfter.AsTime()):
		d.State = "expired"
	}
	for _, der := range m.Chain {
		if above, err := x509.ParseCertificate(der); err == nil {
			d.Chain = append(d.Chain, link{above.Subject.String(), above.Issuer.String(), above.NotAfter})
		}
	}
	d.MayAudit = v.caller.has(Auditor)
	d.MayRevoke = d.State == "valid" && v.caller.has(OperatorRole)
	if d.MayAudit {
		if d.Audit, err = c.service.ledger.AuditOf(ctx, m.Serial, auditShown); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (c *console) certificate(ctx context.Context, v *visit) error {
	d, err := c.detail(ctx, v)
	if err != nil {
		return err
	}
	return v.show(http.StatusOK, "certificate.html", "Certificate "+d.Serial, d)
}

// consoleReasons are the reasons that are offered, the usual ones first.
var consoleReasons = []certmillv1.RevocationReason{
	certmillv1.RevocationReason_REVOCATION_REASON_SUPERSEDED, certmillv1.RevocationReason_REVOCATION_REASON_CESSATION_OF_OPERATION,
	certmillv1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE, certmillv1.RevocationReason_REVOCATION_REASON_AFFILIATION_CHANGED,
	certmillv1.RevocationReason_REVOCATION_REASON_PRIVILEGE_WITHDRAWN, certmillv1.RevocationReason_REVOCATION_REASON_UNSPECIFIED,
}

// revocationText writes a reason as people read it.
func revocationText(r certmillv1.RevocationReason) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(r.String(), "REVOCATION_REASON_"), "_", " "))
}

// revocation is the form in which a revocation is confirmed.
type revocation struct {
	*detail
	Form    string
	Reasons []reasonChoice
	// Comment and Chosen are what was sent, when the form comes again with a Fault.
	Comment, Chosen string
	Fault           *problem.Error
}

type reasonChoice struct{ Value, Text string }

func (c *console) askRevoke(ctx context.Context, v *visit) error {
	return c.showRevoke(ctx, v, http.StatusOK, &revocation{})
}

func (c *console) showRevoke(ctx context.Context, v *visit, status int, f *revocation) error {
	if err := v.caller.needs(OperatorRole); err != nil {
		return err
	}
	var err error
	if f.detail, err = c.detail(ctx, v); err != nil {
		return err
	}
	if f.State == "revoked" {
		http.Redirect(v.w, v.r, "/certificates/"+f.Serial, http.StatusSeeOther)
		return nil
	}
	if f.Form, err = v.form("revoke " + f.Serial); err != nil {
		return err
	}
	for _, r := range consoleReasons {
		f.Reasons = append(f.Reasons, reasonChoice{strconv.Itoa(int(r)), revocationText(r)})
	}
	return v.show(status, "revoke.html", "Revoke certificate "+f.Serial, f)
}

// revoke takes the form. What it asks is what the API would ask, and the same code
// answers it.
func (c *console) revoke(ctx context.Context, v *visit) error {
	if err := v.caller.needs(OperatorRole); err != nil {
		return err
	}
	n, err := parseSerial(v.r.PathValue("serial"))
	if err != nil {
		return err
	}
	f := &revocation{Comment: v.r.PostFormValue("comment"), Chosen: v.r.PostFormValue("reason")}
	if err = v.formOf("revoke " + n.String()); err == nil {
		err = f.check(n.String(), v.r.PostFormValue("confirm"))
	}
	var reason int
	if err == nil {
		if reason, err = strconv.Atoi(f.Chosen); err != nil {
			err = problem.Rejected("reason", "required", "choose a reason")
		}
	}
	if err == nil {
		_, err = c.service.revoke(ctx, v.caller, &certmillv1.RevokeRequest{Serial: n.String(), Reason: certmillv1.RevocationReason(reason), Comment: f.Comment})
	}
	if problem.KindOf(err) == problem.Invalid {
		f.Fault = problem.From(err)
		return c.showRevoke(ctx, v, http.StatusUnprocessableEntity, f)
	}
	if err != nil {
		return err
	}
	http.Redirect(v.w, v.r, "/certificates/"+n.String(), http.StatusSeeOther)
	return nil
}

// check asks for the last four digits of the serial: what cannot be undone is typed,
// not clicked.
func (f *revocation) check(serial, confirm string) error {
	if !strings.EqualFold(strings.TrimSpace(confirm), serial[len(serial)-4:]) {
		return problem.Rejected("confirm", "confirm", "what was typed is not the end of the serial")
	}
	return nil
}

// expiringPage is what expires, by owner.
type expiringPage struct {
	Owners []ledger.Expiring
	Total  ledger.Expiring
	Whole  bool
	// By1, By7 and By30 are the dates for the search.
	By1, By7, By30 string
}

func (c *console) expiring(ctx context.Context, v *visit) error {
	if err := v.caller.needs(Viewer, OperatorRole); err != nil {
		return err
	}
	owners, whole, err := c.service.ledger.Expiring(ctx)
	if err != nil {
		return err
	}
	p := &expiringPage{Owners: owners, Whole: whole}
	for _, o := range owners {
		p.Total.Within1 += o.Within1
		p.Total.Within7 += o.Within7
		p.Total.Within30 += o.Within30
	}
	now := c.service.now().UTC()
	p.By1, p.By7, p.By30 = now.AddDate(0, 0, 1).Format(time.DateOnly), now.AddDate(0, 0, 7).Format(time.DateOnly), now.AddDate(0, 0, 30).Format(time.DateOnly)
	return v.show(http.StatusOK, "expiring.html", "Expiring", p)
}
