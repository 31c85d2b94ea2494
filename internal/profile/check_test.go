package profile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/certmill/certmill/internal/csr"
	"github.com/certmill/certmill/internal/problem"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

var testKey = func() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}()

var testSPKI = func() []byte {
	b, err := x509.MarshalPKIXPublicKey(testKey.Public())
	if err != nil {
		panic(err)
	}
	return b
}()

// request is one that base allows.
func request(change func(*Request)) *Request {
	r := &Request{
		Profile: "p", Caller: Caller{ID: "jwt:x", Kind: KindJWT, Identity: "x", Roles: []string{"viewer"}},
		DNSNames: []string{"a.test"}, SPKI: testSPKI, PublicKey: testKey.Public(), Lifetime: time.Hour,
	}
	if change != nil {
		change(r)
	}
	return r
}

func TestCheckRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, changes string
		change        func(*Request)
		kind          problem.Kind
		field, rule   string
	}{
		{"no caller", "", func(r *Request) { r.Caller.ID = "" }, problem.Denied, "caller", "caller_required"},
		{"a caller of another kind", "callers: [{kinds: [mtls]}]", nil, problem.Denied, "profile", "caller_not_allowed"},
		{"a caller without the role", "callers: [{roles: [admin, operator]}]", nil, problem.Denied, "profile", "caller_not_allowed"},
		{"a caller with another id", "callers: [{ids: ['jwt:y*']}]", nil, problem.Denied, "profile", "caller_not_allowed"},
		{"a caller that fits half of each entry", "callers: [{kinds: [jwt], roles: [admin]}, {kinds: [mtls], roles: [viewer]}]", nil, problem.Denied, "profile", "caller_not_allowed"},

		{"another key type", "", func(r *Request) { r.PublicKey = p384.Public() }, problem.Invalid, "csr.public_key", "key_type_not_allowed"},
		{"no key", "", func(r *Request) { r.PublicKey = nil }, problem.Invalid, "csr.public_key", "key_type_not_allowed"},

		{"no names", "", func(r *Request) { r.DNSNames = nil }, problem.Invalid, "csr.names", "names_required"},
		{"a name outside the patterns", "", func(r *Request) { r.DNSNames = []string{"a.test", "a.example"} }, problem.Denied, "csr.names", "dns_not_allowed"},
		{"a wildcard", "", func(r *Request) { r.DNSNames = []string{"*.a.test"} }, problem.Denied, "csr.names", "wildcard_not_allowed"},
		{"a kind without patterns", "", func(r *Request) { r.URIs = []string{"urn:a:b"} }, problem.Denied, "csr.names", "uri_not_allowed"},
		{"an address outside the prefixes", "names: {ip: {allow: [10.0.0.0/8]}}", func(r *Request) {
			r.DNSNames, r.IPAddresses = nil, []netip.Addr{netip.MustParseAddr("11.0.0.1")}
		}, problem.Denied, "csr.names", "ip_not_allowed"},
		{"an email outside the patterns", "names: {email: {allow: ['*@a.test']}}", func(r *Request) { r.DNSNames, r.Emails = nil, []string{"x@b.test"} }, problem.Denied, "csr.names", "email_not_allowed"},
		{"a name in capitals, which csr.Parse never gives", "", func(r *Request) { r.DNSNames = []string{"A.test"} }, problem.Invalid, "csr.names", "dns_syntax"},
		{"an embedded NUL", "", func(r *Request) { r.DNSNames = []string{"evil\x00.test"} }, problem.Invalid, "csr.names", "embedded_nul"},
		{"a mapped address", "names: {ip: {allow: ['::/0']}}", func(r *Request) {
			r.DNSNames, r.IPAddresses = nil, []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}
		}, problem.Invalid, "csr.names", "ip_mapped"},
		{"101 names", "", func(r *Request) { r.DNSNames = slices.Repeat([]string{"a.test"}, 101) }, problem.Invalid, "csr.names", "names_max"},
		{"more names than the profile takes", "names: {max: 2, dns: {allow: ['**']}}", func(r *Request) { r.DNSNames = []string{"a", "b", "c"} }, problem.Invalid, "csr.names", "names_max"},
		{"more of a kind than the profile takes", "names: {dns: {max: 1, allow: ['**']}}", func(r *Request) { r.DNSNames = []string{"a", "b"} }, problem.Invalid, "csr.names", "dns_max"},
		{"less of a kind than the profile needs", "names: {dns: {allow: ['**']}, uri: {min: 1, allow: ['urn:**']}}", nil, problem.Invalid, "csr.names", "uri_required"},
		{"a name other than the identity", "names: {dns: {source: identity, template: '{caller.identity}.test', allow: ['**']}}", nil, problem.Denied, "csr.names", "dns_not_identity"},
		{"no identity", "names: {dns: {source: identity, allow: ['**']}}", func(r *Request) { r.Caller.Identity = "" }, problem.Denied, "caller", "identity_required"},
		{"an identity that is no address", "names: {ip: {source: identity, allow: [10.0.0.0/8]}}", func(r *Request) { r.DNSNames = nil }, problem.Denied, "caller", "identity_kind"},
		{"an identity that climbs out of its place", "names: {uri: {source: identity, template: 'spiffe://a.test/{caller.identity}', allow: ['spiffe://a.test/**']}}", func(r *Request) { r.DNSNames, r.Caller.Identity = nil, "x/sa/y" }, problem.Denied, "caller", "identity_kind"},
		{"an identity that is not allowed", "names: {dns: {source: identity, others: ignore, allow: ['*.b.test']}}", func(r *Request) { r.Caller.Identity = "a.test" }, problem.Denied, "csr.names", "dns_not_allowed"},

		{"a missing common name", "subject: {common_name: required, allow: ['**']}", nil, problem.Invalid, "csr.subject", "cn_required"},
		{"a common name outside the patterns", "subject: {common_name: optional, allow: ['a*']}", func(r *Request) { r.CommonName = "b" }, problem.Denied, "csr.subject", "cn_not_allowed"},
		{"a common name with a control character", "subject: {common_name: optional, allow: ['**']}", func(r *Request) { r.CommonName = "a\nb" }, problem.Invalid, "csr.subject", "cn_control"},
		{"a common name that is no name", "subject: {common_name: from_names}", func(r *Request) { r.CommonName = "b.test" }, problem.Invalid, "csr.subject", "cn_not_a_name"},

		{"a lifetime beyond the maximum", "", func(r *Request) { r.Lifetime = 7*24*time.Hour + time.Second }, problem.Invalid, "lifetime", "lifetime_max"},
		{"a lifetime below the minimum", "", func(r *Request) { r.Lifetime = 59 * time.Second }, problem.Invalid, "lifetime", "lifetime_min"},
		{"a negative lifetime", "", func(r *Request) { r.Lifetime = -time.Hour }, problem.Invalid, "lifetime", "lifetime_min"},

		{"no owner", "required_metadata: [owner]", nil, problem.Invalid, "metadata.owner", "metadata_required"},
		{"no service", "required_metadata: [service]", nil, problem.Invalid, "metadata.service", "metadata_required"},
		{"no environment", "required_metadata: [environment]", nil, problem.Invalid, "metadata.environment", "metadata_required"},
		{"an owner of 129 bytes", "", func(r *Request) { r.Owner = strings.Repeat("a", 129) }, problem.Invalid, "metadata.owner", "metadata_length"},
		{"a line break in the service", "", func(r *Request) { r.Service = "a\nb" }, problem.Invalid, "metadata.service", "metadata_text"},
		{"an environment that is not UTF-8", "", func(r *Request) { r.Environment = "\xff" }, problem.Invalid, "metadata.environment", "metadata_text"},

		{"a rule", "rules: [{name: own-names, expr: 'request.dns_names.all(n, n.startsWith(caller.identity))', message: 'only your own'}]", nil, problem.Denied, "request", "own-names"},
		{"a rule that fails to evaluate", "rules: [{name: first, expr: 'request.uris[0] == caller.id', message: 'a URI is needed'}]", nil, problem.Denied, "request", "first"},
		{"a rule that costs too much", "rules: [{name: dear, expr: 'request.dns_names.all(a, request.dns_names.all(b, request.dns_names.all(c, a + b + c != caller.id)))', message: m}]",
			func(r *Request) { r.DNSNames = slices.Repeat([]string{"a.test"}, 100) }, problem.Denied, "request", "dear"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := base
			if c.changes != "" {
				text = with(t, c.changes)
			}
			err := parse(t, text).Check(request(c.change))
			if !errors.Is(err, &problem.Error{Kind: c.kind, Field: c.field, Rule: c.rule}) {
				t.Errorf("got %v, want %s %s (%s)", err, c.kind, c.field, c.rule)
			}
		})
	}
}

// TestCheckSettles: what Check allows it brings into its final form, and a second
// Check, as the signer does it, changes nothing.
func TestCheckSettles(t *testing.T) {
	for _, c := range []struct {
		name, changes string
		change        func(*Request)
		want          string
	}{
		{"as asked", "", nil, "cn= [a.test] [] [] [] 1h0m0s"},
		{"the default lifetime", "", func(r *Request) { r.Lifetime = 0 }, "cn= [a.test] [] [] [] 24h0m0s"},
		{"whole seconds", "", func(r *Request) { r.Lifetime += time.Millisecond }, "cn= [a.test] [] [] [] 1h0m0s"},
		{"the longest lifetime", "", func(r *Request) { r.Lifetime = 7 * 24 * time.Hour }, "cn= [a.test] [] [] [] 168h0m0s"},
		{"a common name that is ignored", "", func(r *Request) { r.CommonName = "x" }, "cn= [a.test] [] [] [] 1h0m0s"},
		{"the first name as common name", "subject: {common_name: from_names}", nil, "cn=a.test [a.test] [] [] [] 1h0m0s"},
		{"a common name in capitals", "subject: {common_name: from_names}", func(r *Request) { r.CommonName = "A.TEST" }, "cn=a.test [a.test] [] [] [] 1h0m0s"},
		{"a first name too long for a common name", "subject: {common_name: from_names}", func(r *Request) {
			r.DNSNames = []string{strings.Repeat("a", 60) + ".test", "b.test"}
		}, "cn=b.test [" + strings.Repeat("a", 60) + ".test b.test] [] [] [] 1h0m0s"},
		{"an address as common name", "subject: {common_name: from_names}\nnames: {ip: {allow: ['2001:db8::/32']}}", func(r *Request) {
			r.DNSNames, r.IPAddresses = nil, []netip.Addr{netip.MustParseAddr("2001:db8::1")}
		}, "cn=2001:db8::1 [] [2001:db8::1] [] [] 1h0m0s"},
		{"a common name by pattern", "subject: {common_name: required, allow: ['{caller.identity} *']}", func(r *Request) { r.CommonName = "x y" }, "cn=x y [a.test] [] [] [] 1h0m0s"},
		{"a common name alone", "subject: {common_name: required, allow: ['*']}\nnames: {}", func(r *Request) { r.CommonName, r.DNSNames = "x", nil }, "cn=x [] [] [] [] 1h0m0s"},
		{"a wildcard", "names: {dns: {wildcard: true, allow: ['*.a.test']}}", func(r *Request) { r.DNSNames = []string{"*.a.test"} }, "cn= [*.a.test] [] [] [] 1h0m0s"},
		{"the identity in place of others", "names: {dns: {source: identity, template: '{caller.identity}.a.test', others: ignore, allow: ['*.a.test']}}", nil, "cn= [x.a.test] [] [] [] 1h0m0s"},
		{"the identity without being asked", "names: {dns: {source: identity, template: '{caller.identity}.a.test', allow: ['*.a.test']}}", func(r *Request) { r.DNSNames = nil }, "cn= [x.a.test] [] [] [] 1h0m0s"},
		{"an address from the identity", "names: {ip: {source: identity, allow: [10.0.0.0/8]}}", func(r *Request) {
			r.DNSNames, r.Caller.Identity = nil, "10.0.0.1"
		}, "cn= [] [10.0.0.1] [] [] 1h0m0s"},
		{"a caller by role", "callers: [{kinds: [mtls]}, {kinds: [jwt], roles: [viewer], ids: ['jwt:*']}]", nil, "cn= [a.test] [] [] [] 1h0m0s"},
		{"a rule that holds", "rules: [{name: r, expr: 'request.lifetime <= duration(\"1h\") && caller.roles.exists(r, r == \"viewer\") && request.key_type == \"ecdsa-p256\" && size(request.ip_addresses) == 0', message: m}]", nil, "cn= [a.test] [] [] [] 1h0m0s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := base
			if c.changes != "" {
				text = with(t, c.changes)
			}
			p, r := parse(t, text), request(c.change)
			if err := p.Check(r); err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("cn=%s %v %v %v %v %s", r.CommonName, r.DNSNames, r.IPAddresses, r.URIs, r.Emails, r.Lifetime)
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			again := *r
			if err := p.Check(&again); err != nil || !reflect.DeepEqual(&again, r) {
				t.Errorf("a second check gives %+v, %v", again, err)
			}
		})
	}
}

// TestIdentitiesOfOperatorsAreOutOfReach: whoever may use the other default profiles
// must not get a certificate that makes them an operator.
func TestIdentitiesOfOperatorsAreOutOfReach(t *testing.T) {
	s, err := LoadDir(writeDefaults(t))
	if err != nil {
		t.Fatal(err)
	}
	const operator = "spiffe://certmill.test/operator/eve"
	for _, p := range s.All() {
		for _, c := range []Caller{
			{ID: "jwt:eve", Kind: KindJWT, Identity: "eve"},
			{ID: "jwt:eve", Kind: KindJWT, Identity: operator},
			{ID: "token:1", Kind: KindToken, Identity: "x/../operator/eve"},
			{ID: "mtls:spiffe://certmill.test/ns/a/sa/b", Kind: KindMTLS, Identity: "spiffe://certmill.test/ns/a/sa/b", Roles: []string{"operator", "viewer", "auditor"}},
		} {
			r := request(func(r *Request) { r.Caller, r.DNSNames, r.URIs, r.Lifetime = c, nil, []string{operator}, 0 })
			if err := p.Check(r); err == nil {
				t.Errorf("profile %s gives %+v the identity %s", p.Name, c, r.URIs)
			}
		}
	}
	p, err := s.Get("operator")
	if err != nil {
		t.Fatal(err)
	}
	admin := request(func(r *Request) {
		r.Caller, r.DNSNames, r.URIs, r.Lifetime = Caller{ID: "local:root", Kind: KindLocal}, nil, []string{operator}, 0
	})
	if err := p.Check(admin); err != nil {
		t.Errorf("the local administrator is refused: %v", err)
	}
}

// TestAWorkloadGetsNoOthersID: the ID makes the caller, and a caller owns certificates.
func TestAWorkloadGetsNoOthersID(t *testing.T) {
	s, err := LoadDir(writeDefaults(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Get("workload")
	if err != nil {
		t.Fatal(err)
	}
	const db = "spiffe://certmill.test/ns/prod/sa/db"
	for _, c := range []struct {
		caller Caller
		ok     bool
	}{
		{Caller{ID: "mtls:" + db, Kind: KindMTLS, Identity: db}, true},
		{Caller{ID: "jwt:x#db", Kind: KindJWT, Identity: db}, true},
		{Caller{ID: "token:1", Kind: KindToken}, true},
		{Caller{ID: "mtls:o", Kind: KindMTLS, Identity: "spiffe://certmill.test/operator/o", Roles: []string{"operator"}}, true},
		{Caller{ID: "mtls:e", Kind: KindMTLS, Identity: "spiffe://certmill.test/client/eve"}, false},
		{Caller{ID: "mtls:e", Kind: KindMTLS, Identity: db + "2", Roles: []string{"viewer", "auditor"}}, false},
		{Caller{ID: "jwt:x#eve", Kind: KindJWT, Identity: "eve"}, false},
	} {
		err := p.Check(request(func(r *Request) { r.Caller, r.DNSNames, r.URIs, r.Lifetime = c.caller, nil, []string{db}, 0 }))
		if refused := errors.Is(err, &problem.Error{Kind: problem.Denied, Rule: "own-id"}); refused == c.ok || err != nil && !refused {
			t.Errorf("%+v: %v", c.caller, err)
		}
	}
}

func TestSamplesPassTheirOwnCheck(t *testing.T) {
	s, err := LoadDir(writeDefaults(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.All() {
		r := p.Sample()
		r.SPKI, r.PublicKey = testSPKI, testKey.Public()
		if len(r.URIs) > 0 {
			r.Caller.Identity = r.URIs[0]
		}
		if err := p.Check(r); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

func TestQueueRoundTrip(t *testing.T) {
	in := request(func(r *Request) {
		r.CommonName, r.URIs, r.Emails = "Zoë", []string{"urn:a:b"}, []string{"a@b.test"}
		r.IPAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		r.Owner, r.Service, r.Environment = "o", "s", "e"
	})
	m := new(queuev1.SignRequest)
	in.ToQueue(m)
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	read := new(queuev1.SignRequest)
	if err := proto.Unmarshal(b, read); err != nil {
		t.Fatal(err)
	}
	out, err := FromQueue(read)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("in  %+v\nout %+v", in, out)
	}
}

func TestFromQueueRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change      func(*queuev1.SignRequest)
		field, rule string
	}{
		"no caller":         {func(m *queuev1.SignRequest) { m.Caller = nil }, "caller", "caller_required"},
		"no key":            {func(m *queuev1.SignRequest) { m.Spki = nil }, "csr.public_key", "key_encoding"},
		"a damaged key":     {func(m *queuev1.SignRequest) { m.Spki = m.Spki[:40] }, "csr.public_key", "key_encoding"},
		"a short address":   {func(m *queuev1.SignRequest) { m.IpAddresses = [][]byte{{1}} }, "csr.names", "ip_length"},
		"101 addresses":     {func(m *queuev1.SignRequest) { m.IpAddresses = make([][]byte, 101) }, "csr.names", "names_max"},
		"a key and trailer": {func(m *queuev1.SignRequest) { m.Spki = append(slices.Clone(m.Spki), 0) }, "csr.public_key", "key_encoding"},
	} {
		t.Run(name, func(t *testing.T) {
			m := new(queuev1.SignRequest)
			request(nil).ToQueue(m)
			c.change(m)
			if _, err := FromQueue(m); !errors.Is(err, &problem.Error{Kind: problem.Invalid, Field: c.field, Rule: c.rule}) {
				t.Errorf("got %v, want %s (%s)", err, c.field, c.rule)
			}
		})
	}
}

// FuzzFromQueue feeds whole messages, as somebody with the broker's password but
// without the envelope's key would like to. What passes must be within the profile.
func FuzzFromQueue(f *testing.F) {
	m := new(queuev1.SignRequest)
	request(func(r *Request) {
		r.CommonName, r.IPAddresses = "a.test", []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	}).ToQueue(m)
	seed, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	p := parse(f, with(f, "names: {max: 3, dns: {allow: ['*.test']}, ip: {allow: [10.0.0.0/8]}}\nsubject: {common_name: from_names}"))
	ten := netip.MustParsePrefix("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(queuev1.SignRequest)
		if proto.Unmarshal(data, m) != nil {
			return
		}
		r, err := FromQueue(m)
		if err == nil {
			err = p.Check(r)
		}
		if err != nil {
			if e := problem.From(err); e.Kind == problem.Internal || e.Field == "" || e.Rule == "" {
				t.Fatalf("an error without kind, field or rule: %v", err)
			}
			return
		}
		bad := csr.KeyTypeOf(r.PublicKey) != csr.ECDSAP256 || r.Caller.ID == "" || r.Lifetime < time.Minute || r.Lifetime > 7*24*time.Hour ||
			len(r.URIs)+len(r.Emails) > 0 || len(r.DNSNames)+len(r.IPAddresses) == 0 || len(r.DNSNames)+len(r.IPAddresses) > 3
		for _, n := range r.DNSNames {
			bad = bad || !strings.HasSuffix(n, ".test") || strings.Count(n, ".") != 1 || strings.ContainsAny(n, "*\x00")
		}
		for _, a := range r.IPAddresses {
			bad = bad || !ten.Contains(a)
		}
		if bad {
			t.Fatalf("outside the profile: %+v", r)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	s, err := LoadDir(writeDefaults(b))
	if err != nil {
		b.Fatal(err)
	}
	workload, err := s.Get("workload")
	if err != nil {
		b.Fatal(err)
	}
	ruled := parse(b, with(b, "rules: [{name: r, expr: 'request.dns_names.all(n, n.endsWith(\".test\")) && caller.kind == \"jwt\"', message: m}]"))
	for name, c := range map[string]struct {
		p *Profile
		r *Request
	}{
		"workload": {workload, request(func(r *Request) {
			r.URIs = []string{"spiffe://certmill.test/ns/a/sa/b"}
			r.Caller.Identity = r.URIs[0]
		})},
		"rule": {ruled, request(nil)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.p.Check(c.r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFromQueue(b *testing.B) {
	m := new(queuev1.SignRequest)
	request(nil).ToQueue(m)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromQueue(m); err != nil {
			b.Fatal(err)
		}
	}
}
