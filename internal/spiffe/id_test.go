package spiffe

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, good := range []string{
		"spiffe://example.test/a", "spiffe://cluster.local/ns/default/sa/web", "spiffe://a_b-c.1/X/y_z/..." + "/1",
		"spiffe://e/" + strings.Repeat("a", MaxID-len("spiffe://e/")),
	} {
		id, err := Parse(good)
		if err != nil || id.String() != good {
			t.Errorf("%.60s became %.60s, %v", good, id, err)
		}
	}
	for _, bad := range []string{
		"", "spiffe://", "spiffe:///a", "spiffe://example.test", "spiffe://example.test/", "SPIFFE://example.test/a", "http://example.test/a",
		"spiffe://Example.test/a", "spiffe://example.test:1/a", "spiffe://u@example.test/a", "spiffe://example.test/a/", "spiffe://example.test//a",
		"spiffe://example.test/a//b", "spiffe://example.test/./a", "spiffe://example.test/a/..", "spiffe://example.test/a?b", "spiffe://example.test/a#b",
		"spiffe://example.test/%61", "spiffe://example.test/a b", "spiffe://example.test/é", "spiffe://exämple.test/a", "spiffe://example.test/a\n", " spiffe://e/a",
		"spiffe://" + strings.Repeat("a", 256) + "/a", "spiffe://e/" + strings.Repeat("a", MaxID),
	} {
		if id, err := Parse(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, id)
		}
	}
}

func TestServiceAccounts(t *testing.T) {
	id, err := Workload("cluster.local", "shop", "cart")
	if err != nil || id.String() != "spiffe://cluster.local/ns/shop/sa/cart" {
		t.Fatalf("%v, %v", id, err)
	}
	if ns, sa, ok := id.ServiceAccount(); !ok || ns != "shop" || sa != "cart" {
		t.Errorf("%s/%s, %v", ns, sa, ok)
	}
	for _, s := range []string{"spiffe://e/ns/a", "spiffe://e/ns/a/sa/b/c", "spiffe://e/sa/a/ns/b", "spiffe://e/a/ns/b/sa"} {
		id, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, ok := id.ServiceAccount(); ok {
			t.Errorf("%s passes for a service account", s)
		}
	}
	for _, names := range [][2]string{{"a/sa/b", "c"}, {"a", ""}, {"..", "a"}, {"a", "b/c"}} {
		if id, err := Workload("e", names[0], names[1]); err == nil {
			t.Errorf("%q became %s", names, id)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://example.test/ns/a/sa/b")
	f.Add("spiffe://example.test/../a")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			return
		}
		rest := strings.TrimPrefix(s, scheme)
		if id.String() != s || strings.ContainsAny(rest, "?#%@: \x00") || strings.Contains(rest+"/", "/../") || strings.HasSuffix(s, "/") {
			t.Errorf("%q is taken", s)
		}
	})
}
