package hsm

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestAMissingTokenOfSoftHSMNamesTheVariableThatFindsIt(t *testing.T) {
	const debian = "/usr/lib/softhsm/libsofthsm2.so"
	for _, c := range []struct {
		module, set string
		hint        bool
	}{{debian, "", true}, {debian, "/x/softhsm2.conf", false}, {"/usr/lib/softhsm/libvendor.so", "", false}} {
		t.Setenv("SOFTHSM2_CONF", c.set)
		if got := softHSMHint(c.module); strings.Contains(got, "SOFTHSM2_CONF") != c.hint {
			t.Errorf("%s with %q: %q", c.module, c.set, got)
		}
	}
}

func TestURIsAreRead(t *testing.T) {
	for in, want := range map[string]URI{
		"pkcs11:": {},
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;object=my-certificate;type=private": {
			Token: "The Software PKCS#11 Softtoken", Manufacturer: "Snake Oil, Inc.", Model: "1.0", Object: "my-certificate"},
		"pkcs11:id=%69%95%3E%5C%F4%BD%EC%91;serial=4711": {ID: []byte{0x69, 0x95, 0x3e, 0x5c, 0xf4, 0xbd, 0xec, 0x91}, Serial: "4711"},
		"pkcs11:object=k?module-path=/usr/lib/m.so&pin-source=file:/etc/token&x-vendor=1": {
			Object: "k", ModulePath: "/usr/lib/m.so", PINSource: "file:/etc/token"},
	} {
		got, err := ParseURI(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestBadURIsAreRefused(t *testing.T) {
	for _, in := range []string{
		"", "http://x", "pkcs11:token", "pkcs11:token=a;token=b", "pkcs11:x-other=1", "pkcs11:slot-id=3",
		"pkcs11:object=%zz", "pkcs11:object=k;type=cert", "pkcs11:object=k?pin-value=1234", "pkcs11:object=k;;id=%01",
	} {
		if u, err := ParseURI(in); err == nil {
			t.Errorf("%q was read as %+v", in, u)
		} else if strings.Contains(err.Error(), "1234") {
			t.Errorf("the error tells the PIN: %v", err)
		}
	}
}

func FuzzURI(f *testing.F) {
	f.Add("pkcs11:token=a%20b;id=%00%ff;object=%C3%A9;type=private?pin-source=file:/x")
	f.Fuzz(func(t *testing.T, in string) {
		u, err := ParseURI(in)
		if err != nil {
			return
		}
		u.ModulePath, u.PINSource = "", ""
		again, err := ParseURI(u.String())
		if len(u.ID) == 0 {
			u.ID, again.ID = nil, nil
		}
		if err != nil || !reflect.DeepEqual(again, u) {
			t.Fatalf("%q: %+v became %q and then %+v, %v", in, u, u.String(), again, err)
		}
	})
}

func TestABadConfigIsRefusedWithEveryError(t *testing.T) {
	err := Config{PINFile: "a", PINEnv: "b", IdleCheck: -1}.Validate()
	if err == nil {
		t.Fatal("it passed")
	}
	for _, key := range []string{"module", "pin_file", "sessions", "max_abandoned", "breaker_failures", "call_timeout",
		"open_timeout", "probe_interval", "reinit_interval", "idle_check"} {
		if !strings.Contains(err.Error(), key+":") {
			t.Errorf("no word of %s in: %v", key, err)
		}
	}
}

func TestAURIStandsInForTheOtherKeys(t *testing.T) {
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte("1234\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.URI = "pkcs11:token=t;serial=s?module-path=/m.so&pin-source=file://" + pin
	s, err := cfg.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.pin(); s.Module != "/m.so" || s.token.Token != "t" || got != "1234" || err != nil {
		t.Errorf("module %q, token %q, PIN read %q, %v", s.Module, s.token.Token, got, err)
	}
	cfg.TokenLabel = "t"
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "uri:") {
		t.Errorf("a token named twice: %v", err)
	}
	cfg = DefaultConfig()
	cfg.Module = "/m.so"
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "token_label:") {
		t.Errorf("no token named: %v", err)
	}
}

func TestAnEmptyPINIsNoPIN(t *testing.T) {
	t.Setenv("CERTMILL_TEST_PIN", "")
	s := settings{Config: Config{PINEnv: "CERTMILL_TEST_PIN"}}
	if _, err := s.pin(); err == nil || !strings.Contains(err.Error(), "CERTMILL_TEST_PIN") {
		t.Errorf("an empty PIN: %v", err)
	}
	s = settings{Config: Config{PINFile: filepath.Join(t.TempDir(), "none")}}
	if _, err := s.pin(); err == nil {
		t.Error("a missing file was read")
	}
}
