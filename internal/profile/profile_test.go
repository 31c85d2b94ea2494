package profile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/certmill/certmill/deploy/profiles"
)

// base is a small profile that tests change.
const base = `
name: p
issuer: ca
key_types: [ecdsa-p256]
names: {dns: {allow: ["**.test"]}}
lifetime: {default: 1d, max: 7d}
key_usage: [digitalSignature]
revocation: {mode: none}
`

func parse(t testing.TB, text string) *Profile {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// with replaces top-level keys of base, given as YAML.
func with(t testing.TB, changes string) string {
	t.Helper()
	var m, c map[string]any
	if err := yaml.Unmarshal([]byte(base), &m); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(changes), &c); err != nil {
		t.Fatal(err)
	}
	for k, v := range c {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	out, err := yaml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestDefaults(t *testing.T) {
	p := parse(t, base)
	if p.Names.Max != 100 || p.Names.Min != 1 || p.Names.DNS.Source != SourceCSR || p.Subject.CommonName != CommonNameEmpty ||
		p.Lifetime.Backdate.D() != 2*time.Minute || p.Lifetime.Min.D() != time.Minute || p.Lifetime.Max.D() != 7*24*time.Hour || len(p.Lint.Sources) == 0 {
		t.Errorf("defaults are %+v", p.Spec)
	}
}

func TestAnEmptyListOfLintSourcesIsNotTheDefault(t *testing.T) {
	if p := parse(t, base+"lint: {sources: []}\n"); p.Lint.Sources == nil || len(p.Lint.Sources) != 0 {
		t.Errorf("sources are %q", p.Lint.Sources)
	}
}

func TestVersionFollowsTheMeaning(t *testing.T) {
	p := parse(t, base)
	if len(p.Version) != 12 {
		t.Errorf("version %q", p.Version)
	}
	same := parse(t, "# a comment\n"+strings.Replace(base, "1d", "24h", 1)+"subject: {common_name: empty}\n")
	if same.Version != p.Version {
		t.Error("a comment, another spelling or a default written out changes the version")
	}
	if other := parse(t, strings.Replace(base, "**.test", "*.test", 1)); other.Version == p.Version {
		t.Error("another pattern leaves the version as it was")
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ changes, want string }{
		"a bad name":                          {"name: A", "name:"},
		"no issuer":                           {"issuer: ''", "issuer:"},
		"no key types":                        {"key_types: []", "key_types:"},
		"an unknown key type":                 {"key_types: [p521]", "key_types:"},
		"a caller rule without conditions":    {"callers: [{}]", "callers[0]:"},
		"an unknown kind of caller":           {"callers: [{kinds: [tls]}]", "callers[0].kinds:"},
		"an unknown role":                     {"callers: [{roles: [root]}]", "callers[0].roles:"},
		"a bad id pattern":                    {"callers: [{ids: ['{x}']}]", "callers[0].ids[0]:"},
		"an unknown common name rule":         {"subject: {common_name: maybe}", "subject.common_name:"},
		"a required common name unbounded":    {"subject: {common_name: required}", "subject.allow:"},
		"patterns for an empty common name":   {"subject: {allow: ['*']}", "subject.allow:"},
		"no kind of name":                     {"names: {}", "names:"},
		"too many names":                      {"names: {max: 101, dns: {allow: ['**']}}", "names.max:"},
		"a negative number of names":          {"names: {min: -1, dns: {allow: ['**']}}", "names.min:"},
		"a bad DNS pattern":                   {"names: {dns: {allow: ['a*']}}", "names.dns.allow[0]:"},
		"a bad CIDR":                          {"names: {ip: {allow: [10.0.0.1/8]}}", "names.ip.allow[0]:"},
		"a URI pattern without host":          {"names: {uri: {allow: ['https://**']}}", "names.uri.allow[0]:"},
		"an unknown source":                   {"names: {dns: {source: ldap, allow: ['**']}}", "names.dns.source:"},
		"an identity that nothing allows":     {"names: {dns: {allow: ['**']}, uri: {source: identity}}", "names.uri.allow:"},
		"a template without identity":         {"names: {dns: {source: identity, template: a.test, allow: ['**']}}", "names.dns.template:"},
		"a template with a star":              {"names: {dns: {source: identity, template: '{caller.identity}.*', allow: ['**']}}", "names.dns.template:"},
		"a template for names of the CSR":     {"names: {dns: {template: '{caller.identity}', allow: ['**']}}", "names.dns:"},
		"a wildcard URI":                      {"names: {uri: {wildcard: true, allow: ['urn:**']}}", "names:"},
		"bounds that contradict":              {"names: {dns: {min: 2, max: 1, allow: ['**']}}", "names.dns:"},
		"no lifetime":                         {"lifetime: {}", "lifetime:"},
		"a default beyond the maximum":        {"lifetime: {default: 8d, max: 7d}", "lifetime:"},
		"a lifetime of 21 years":              {"lifetime: {default: 1d, max: 7665d}\nrevocation: {mode: crl, crl_url: 'http://a.test/'}", "lifetime.max:"},
		"half a second":                       {"lifetime: {default: 1d, max: 7d, min: 1500ms}", "lifetime:"},
		"a backdate of a week":                {"lifetime: {default: 1d, max: 7d, backdate: 7d}", "lifetime.backdate:"},
		"jitter beyond half":                  {"lifetime: {default: 1d, max: 7d, jitter: 0.6}", "lifetime.jitter:"},
		"jitter that is no number":            {"lifetime: {default: 1d, max: 7d, jitter: .nan}", "lifetime.jitter:"},
		"no key usage":                        {"key_usage: []", "key_usage:"},
		"keyCertSign":                         {"key_usage: [keyCertSign]", "key_usage[0]:"},
		"OCSPSigning":                         {"extended_key_usage: [1.3.6.1.5.5.7.3.9]", "extended_key_usage[0]:"},
		"anyExtendedKeyUsage":                 {"extended_key_usage: [2.5.29.37.0]", "extended_key_usage[0]:"},
		"an unknown purpose":                  {"extended_key_usage: [tls]", "extended_key_usage[0]:"},
		"a purpose twice":                     {"extended_key_usage: [serverAuth, serverAuth]", "extended_key_usage:"},
		"a bad policy":                        {"policies: [x]", "policies[0]:"},
		"no revocation":                       {"revocation: {}", "revocation.mode:"},
		"OCSP without its URL":                {"revocation: {mode: ocsp}", "revocation.ocsp_url:"},
		"an OCSP URL without OCSP":            {"revocation: {mode: none, ocsp_url: 'http://a.test/'}", "revocation.ocsp_url:"},
		"crl_shards without a CRL":            {"revocation: {mode: none, crl_shards: 4}", "revocation.crl_shards:"},
		"a CRL of no generation":              {"revocation: {mode: crl, crl_url: 'http://a.test/a.crl'}", "revocation.crl_url:"},
		"a CRL over HTTPS":                    {"revocation: {mode: crl, crl_url: 'https://a.test/'}", "revocation.crl_url:"},
		"no revocation for 90 days":           {"lifetime: {default: 1d, max: 90d}", "revocation.mode:"},
		"a basicConstraints by the back door": {"extra_extensions: [{oid: 2.5.29.19, value: MAA=}]", "extra_extensions[0].oid:"},
		"an extension that is not DER":        {"extra_extensions: [{oid: 1.2.3, value: AAE=}]", "extra_extensions[0].value:"},
		"an extension that is not base64":     {"extra_extensions: [{oid: 1.2.3, value: '!'}]", "extra_extensions[0].value:"},
		"unknown metadata":                    {"required_metadata: [team]", "required_metadata[0]:"},
		"a rule without a message":            {"rules: [{name: r, expr: 'true'}]", "rules[0]:"},
		"a rule that is no condition":         {"rules: [{name: r, expr: '1', message: m}]", "rules[0].expr:"},
		"a rule over an unknown variable":     {"rules: [{name: r, expr: 'request.age == 1', message: m}]", "rules[0].expr:"},
		"a rule of the wrong type":            {"rules: [{name: r, expr: 'caller.id == 1', message: m}]", "rules[0].expr:"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(with(t, c.changes)))
			if err == nil || !strings.Contains("\n"+err.Error(), "\n"+c.want) {
				t.Errorf("got %v, want an error that starts with %q", err, c.want)
			}
		})
	}
}

func TestParseReportsEverything(t *testing.T) {
	_, err := Parse([]byte(with(t, "name: A\nissuer: B\nkey_usage: []")))
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("got %v, want three lines", err)
	}
}

func TestParseIsStrict(t *testing.T) {
	_, err := Parse([]byte(base + "lifetimes: {}\n"))
	if err == nil || !strings.Contains(err.Error(), "[9:1]") || !strings.Contains(err.Error(), "lifetimes") {
		t.Errorf("an unknown key gives %v, which does not name it and its line", err)
	}
	for name, text := range map[string]string{
		"an unknown nested key": base + "lint: {source: []}\n",
		"a key twice":           base + "name: q\n",
		"two documents":         base + "---\n" + base,
		"no document":           "",
		"a list":                "[]",
		"a bad duration":        strings.Replace(base, "1d", "1day", 1),
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// writeDefaults writes the profiles that certmill comes with into a directory.
func writeDefaults(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, profiles.FS); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDefaultProfilesLoad(t *testing.T) {
	s, err := LoadDir(writeDefaults(t))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"client", "gateway-tls", "mesh", "operator", "server", "short", "workload"}; !slices.Equal(s.Names(), want) {
		t.Errorf("profiles %q, want %q", s.Names(), want)
	}
	if !slices.Equal(s.Issuers(), []string{"issuing"}) || len(s.All()) != 7 {
		t.Errorf("issuers %q", s.Issuers())
	}
	for _, p := range s.All() {
		if p.Description == "" || len(p.Sample().DNSNames)+len(p.Sample().URIs) == 0 {
			t.Errorf("%s has no description or no sample names", p.Name)
		}
	}
}

func TestLoadDirNamesTheFile(t *testing.T) {
	dir := writeDefaults(t)
	if err := os.WriteFile(filepath.Join(dir, "other.yaml"), []byte(base), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadDir(dir); err == nil || !strings.Contains(err.Error(), "other.yaml") {
		t.Errorf("a profile in a file of another name gives %v", err)
	}
	if _, err := LoadDir(t.TempDir()); err == nil {
		t.Error("an empty directory loads")
	}
}

func TestLiveKeepsTheOldSetWhereTheNewIsBroken(t *testing.T) {
	dir := writeDefaults(t)
	l, err := NewLive(dir)
	if err != nil {
		t.Fatal(err)
	}
	first := l.Set()
	if changed, err := l.Reload(); err != nil || changed {
		t.Errorf("reloading the same files: changed %v, %v", changed, err)
	}
	file := filepath.Join(dir, "server.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("name: server\n"))
	if _, err := l.Reload(); err == nil || !l.Set().Equal(first) {
		t.Errorf("a broken file: %v", err)
	}
	write([]byte(strings.Replace(string(good), "max: 90d", "max: 80d", 1)))
	if changed, err := l.Reload(); err != nil || !changed || l.Set().Equal(first) {
		t.Errorf("a changed file: changed %v, %v", changed, err)
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute, "0s": 0} {
		if d, err := ParseDuration(text); err != nil || d.D() != want {
			t.Errorf("%s is %s, %v", text, d, err)
		}
	}
	for _, bad := range []string{"", "1", "d", "-1d", "1d-1h-", "99999d", "1w"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("%q is %s", bad, d)
		}
	}
}
