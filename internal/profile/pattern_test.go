package profile

import "testing"

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		fits, not   []string
	}{
		{"spiffe://a.test/x", "", []string{"spiffe://a.test/x"}, []string{"spiffe://a.test/x/", "spiffe://a.test/", "xspiffe://a.test/x", ""}},
		{"spiffe://a.test/*", "", []string{"spiffe://a.test/x", "spiffe://a.test/"}, []string{"spiffe://a.test/x/y", "spiffe://b.test/x"}},
		{"spiffe://a.test/**", "", []string{"spiffe://a.test/x", "spiffe://a.test/x/y"}, []string{"spiffe://a.tes/x"}},
		{"spiffe://a.test/ns/*/sa/*", "", []string{"spiffe://a.test/ns/n/sa/s"}, []string{"spiffe://a.test/ns/n/sa/s/t", "spiffe://a.test/ns/n/m/sa/s"}},
		{"a*b*c", "", []string{"abc", "axbxc", "abbc", "abcbc"}, []string{"ab", "abcx"}},
		{"https://*.a.test/x", "", []string{"https://b.a.test/x"}, []string{"https://evil.test?.a.test/x", "https://evil.test/.a.test/x", "https://evil.test#.a.test/x"}},
		{"*@a.test", "", []string{"b@a.test"}, []string{"b@b.a.test", "b@a.test.c"}},
		{"{caller.identity}", "spiffe://a.test/x", []string{"spiffe://a.test/x"}, []string{"spiffe://a.test/y", ""}},
		{"{caller.identity}", "", nil, []string{"", "x"}},
		{"{caller.identity}", "*", []string{"*"}, []string{"x"}},
		{"{caller.identity}/*", "spiffe://a.test/x", []string{"spiffe://a.test/x/y"}, []string{"spiffe://a.test/x"}},
		{"spiffe://a.test/{caller.identity}/*", "x", []string{"spiffe://a.test/x/y"}, []string{"spiffe://a.test/z/y"}},
		{"spiffe://a.test/{caller.identity}/*", "x/sa", nil, []string{"spiffe://a.test/x/sa/y"}},
		{"spiffe://a.test/{caller.identity}/y", "..", nil, []string{"spiffe://a.test/../y"}},
		{"spiffe://a.test/*/{caller.identity}", "x", []string{"spiffe://a.test/n/x"}, []string{"spiffe://a.test/n/y"}},
	} {
		g, err := compileGlob(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
		}
		for _, s := range c.fits {
			if !g.match(s, c.id) {
				t.Errorf("%s with identity %q does not fit %q", c.pattern, c.id, s)
			}
		}
		for _, s := range c.not {
			if g.match(s, c.id) {
				t.Errorf("%s with identity %q fits %q", c.pattern, c.id, s)
			}
		}
	}
	for _, bad := range []string{"", "a***b", "{caller.id}", "a}", "a{", "*a*b*c*", "***"} {
		if _, err := compileGlob(bad); err == nil {
			t.Errorf("%q compiles", bad)
		}
	}
}

func TestURIPattern(t *testing.T) {
	for _, good := range []string{"spiffe://a.test/**", "https://*.a.test/**", "{caller.identity}", "{caller.identity}/**", "urn:a:**", "https://a.test/x"} {
		if _, err := compileURI(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"**", "https://**", "https://**.a.test/", "https://a.test**", "spiffe:///**", "https:**"} {
		if _, err := compileURI(bad); err == nil {
			t.Errorf("%q compiles, and lets a name choose its own host", bad)
		}
	}
}

func TestDNSPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, id string
		fits, not   []string
	}{
		{"a.test", "", []string{"a.test"}, []string{"b.a.test", "xa.test", "test", "*.a.test"}},
		{"*.a.test", "", []string{"b.a.test", "*.a.test"}, []string{"a.test", "c.b.a.test", "b.xa.test", ".a.test"}},
		{"**.a.test", "", []string{"b.a.test", "c.b.a.test", "*.b.a.test"}, []string{"a.test", "ba.test", "a.test.b"}},
		{"**", "", []string{"a", "a.b"}, nil},
		{"{caller.identity}", "a.test", []string{"a.test"}, []string{"b.test"}},
		{"*.{caller.identity}", "a.test", []string{"b.a.test"}, []string{"a.test", "b.test"}},
		{"{caller.identity}.a.test", "b", []string{"b.a.test"}, []string{"c.a.test", ".a.test"}},
		{"{caller.identity}.a.test", "", nil, []string{"b.a.test", ".a.test"}},
	} {
		d, err := compileDNS(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
		}
		for _, s := range c.fits {
			if !d.match(s, c.id) {
				t.Errorf("%s does not fit %q", c.pattern, s)
			}
		}
		for _, s := range c.not {
			if d.match(s, c.id) {
				t.Errorf("%s fits %q", c.pattern, s)
			}
		}
	}
	for _, bad := range []string{"", "a.*.test", "a*.test", "*a.test", "*", "*.", "**."} {
		if _, err := compileDNS(bad); err == nil {
			t.Errorf("%q compiles", bad)
		}
	}
}
