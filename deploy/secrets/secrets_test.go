package secrets

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/certmill/certmill/internal/queue"
	queuev1 "github.com/certmill/certmill/proto/certmill/queue/v1"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// tree returns every file of a folder with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir+"/")] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func made(t *testing.T, dir string, spec *Spec, now time.Time) Report {
	t.Helper()
	r, err := Make(dir, spec, now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestASecondRunChangesNothing(t *testing.T) {
	dir := t.TempDir()
	if r := made(t, dir, nil, start); len(r.Written) == 0 || r.Phase != Stable || r.Generation != 1 {
		t.Fatalf("first run: %+v", r)
	}
	before := tree(t, dir)
	if r := made(t, dir, nil, start.Add(time.Hour)); len(r.Written) != 0 {
		t.Errorf("the second run wrote %v", r.Written)
	}
	for name, data := range tree(t, dir) {
		if data != before[name] {
			t.Errorf("%s is another", name)
		}
	}
}

func TestEveryFileIsForItsOwnerAlone(t *testing.T) {
	dir := t.TempDir()
	made(t, dir, nil, start)
	for name := range tree(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", name, info.Mode().Perm())
		}
	}
	loose := filepath.Join(dir, "gateway", "queue.key")
	if err := os.Chmod(loose, 0o644); err != nil {
		t.Fatal(err)
	}
	made(t, dir, nil, start)
	if info, err := os.Stat(loose); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a file that was opened to all stays so: %v, %v", info.Mode(), err)
	}
}

// No part has what another proves itself with, and no key of a CA leaves the vault.
func TestEachPartHasItsOwnAlone(t *testing.T) {
	dir := t.TempDir()
	made(t, dir, nil, start)
	files := tree(t, dir)
	for name, data := range files {
		part, file := filepath.Split(name)
		if !strings.HasSuffix(file, ".nk") && file != keyFile && file != passwordFile || strings.HasPrefix(name, "vault/") {
			continue
		}
		for other, text := range files {
			otherPart, _ := filepath.Split(other)
			// CockroachDB's names are a second copy in the same folder.
			if otherPart != part && !strings.HasPrefix(other, "vault/") && strings.Contains(text, data) {
				t.Errorf("%s holds %s", other, name)
			}
		}
	}
	for name, data := range files {
		if strings.HasPrefix(name, "vault/") {
			continue
		}
		for _, kept := range []string{"vault/1/ca.key", "vault/token.so-pin"} {
			if strings.Contains(data, strings.TrimSpace(files[kept])) && !strings.HasPrefix(name, "owner/") {
				t.Errorf("%s holds %s", name, kept)
			}
		}
	}
	if strings.Contains(files["presigner/queue.key"], strings.Fields(files["signer/queue.key"])[0]) {
		t.Error("the presigner has the key that makes requests")
	}
}

func TestCertificatesAreRenewedAfterTwoThirds(t *testing.T) {
	dir := t.TempDir()
	made(t, dir, nil, start)
	before := tree(t, dir)
	if r := made(t, dir, nil, start.Add(59*day)); len(r.Written) != 0 {
		t.Errorf("before two thirds: %v", r.Written)
	}
	r := made(t, dir, nil, start.Add(61*day))
	if !slices.Contains(r.Written, "gateway/tls.pem") || !slices.Contains(r.Written, "nats/tls.pem") {
		t.Errorf("after two thirds: %v", r.Written)
	}
	after := tree(t, dir)
	for _, stays := range []string{"gateway/nats.nk", "gateway/queue.key", "gateway/ca.pem", "redis/users.acl"} {
		if before[stays] != after[stays] {
			t.Errorf("%s was changed by a renewal", stays)
		}
	}
}

func TestAHostThatComesGetsACertificate(t *testing.T) {
	dir := t.TempDir()
	made(t, dir, nil, start)
	spec := DefaultSpec()
	spec.Hosts.NATS = append(spec.Hosts.NATS, "nats-4.example.com", "192.0.2.4")
	r := made(t, dir, &spec, start)
	if !slices.Equal(r.Written, []string{"nats/tls.pem", "nats/tls.key"}) {
		t.Errorf("wrote %v", r.Written)
	}
	cert := leaf(t, dir, "nats")
	if err := errors.Join(cert.VerifyHostname("nats-4.example.com"), cert.VerifyHostname("192.0.2.4"), cert.VerifyHostname("localhost")); err != nil {
		t.Error(err)
	}
	if r := made(t, dir, nil, start); len(r.Written) != 0 {
		t.Errorf("without a file the hosts are forgotten: %v", r.Written)
	}
}

func leaf(t *testing.T, dir, part string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, part, certFile))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCertificate(data)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// side is what one part has at one step: what it shows, and what it believes.
type side struct {
	cert  *x509.Certificate
	roots *x509.CertPool
	keys  *queue.Keys
}

func sideOf(t *testing.T, dir, part string) side {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(dir, part, caFile))
	if err != nil {
		t.Fatal(err)
	}
	s := side{cert: leaf(t, dir, part), roots: x509.NewCertPool()}
	s.roots.AppendCertsFromPEM(pem)
	if text, err := os.ReadFile(filepath.Join(dir, part, queueFile)); err == nil {
		if s.keys, err = queue.ParseKeys(string(text)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s side) trusts(other side) error {
	_, err := other.cert.Verify(x509.VerifyOptions{Roots: s.roots, CurrentTime: start.Add(time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// During each step some parts have what was before it and some what is after it: all
// of them must understand each other, and after the last none believes the first.
func TestARotationHasOverlapAtEveryStep(t *testing.T) {
	dir := t.TempDir()
	made(t, dir, nil, start)
	first := sideOf(t, dir, "gateway")
	old := map[string]side{"gateway": first, "signer": sideOf(t, dir, "signer"), "nats": sideOf(t, dir, "nats")}
	firstSeed, _ := os.ReadFile(filepath.Join(dir, "gateway", seedFile))
	firstUsers := tree(t, dir)["nats/users.conf"]
	for _, step := range Steps {
		if _, err := Rotate(dir, nil, step, start); err != nil {
			t.Fatal(err)
		}
		for name := range old {
			now := sideOf(t, dir, name)
			for other, before := range old {
				if err := errors.Join(now.trusts(before), before.trusts(now)); err != nil {
					t.Errorf("%s: %s after it and %s before it: %v", step, name, other, err)
				}
				if now.keys != nil && before.keys != nil {
					understand(t, now.keys, before.keys)
					understand(t, before.keys, now.keys)
				}
			}
		}
		// The seed that a part had before this step is still a user.
		if public := publicOf(t, dir); !strings.Contains(tree(t, dir)["nats/users.conf"], public) {
			t.Errorf("%s: the gateway's user is not in users.conf", step)
		}
		for name := range old {
			old[name] = sideOf(t, dir, name)
		}
	}
	last := sideOf(t, dir, "gateway")
	if last.trusts(first) == nil {
		t.Error("after retire the first CA is still trusted")
	}
	seed, _ := os.ReadFile(filepath.Join(dir, "gateway", seedFile))
	if string(seed) == string(firstSeed) || tree(t, dir)["nats/users.conf"] == firstUsers {
		t.Error("the users of NATS are still the first ones")
	}
	for name := range tree(t, dir) {
		if strings.HasPrefix(name, "vault/1/") {
			t.Errorf("the vault keeps %s", name)
		}
	}
}

func publicOf(t *testing.T, dir string) string {
	t.Helper()
	v := vault{filepath.Join(dir, "vault")}
	s, err := v.readState()
	if err != nil {
		t.Fatal(err)
	}
	public, err := generation{s.Generation, filepath.Join(v.path, strconv.Itoa(s.Generation))}.nkeyPublic("gateway")
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func understand(t *testing.T, from, to *queue.Keys) {
	t.Helper()
	for _, subject := range []string{queue.RevokedSubject("issuing"), queue.SignSubject("issuing", queue.First)} {
		sealed, err := from.SealBatch(subject, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Open(subject, sealed, &queuev1.SignBatch{}); err != nil {
			t.Errorf("%s: %v", subject, err)
		}
	}
}

func TestStepsOutOfTurnChangeNothing(t *testing.T) {
	dir := t.TempDir()
	made(t, dir, nil, start)
	before := tree(t, dir)
	for _, step := range []Step{Activate, Retire, "other"} {
		if _, err := Rotate(dir, nil, step, start); err == nil {
			t.Errorf("%s is taken out of turn", step)
		} else if _, ok := errors.AsType[*StepError](err); !ok {
			t.Errorf("%s: %v", step, err)
		}
	}
	for name, data := range tree(t, dir) {
		if data != before[name] {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestWhatIsWrongWithASpecIsNamed(t *testing.T) {
	for key, change := range map[string]func(*Spec){
		"hosts.nats":  func(s *Spec) { s.Hosts.NATS = []string{"nats:4222"} },
		"hosts.redis": func(s *Spec) { s.Hosts.Redis = []string{"a b"} },
		"issuers":     func(s *Spec) { s.Issuers = []string{"*"} },
		"namespace":   func(s *Spec) { s.Namespace = "a b" },
		"lifetime":    func(s *Spec) { s.Lifetime = time.Minute },
		"ca_lifetime": func(s *Spec) { s.CALifetime = time.Hour },
	} {
		s := DefaultSpec()
		change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := DefaultSpec().Validate(); err != nil {
		t.Error(err)
	}
}
