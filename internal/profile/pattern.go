package profile

import (
	"fmt"
	"strings"
)

// identityVariable is the one variable of patterns and templates.
const identityVariable = "{caller.identity}"

// A glob is a compiled pattern over characters: literal text, the variable, "*" for
// any characters but "/", "?" and "#", and "**" for any characters. What the variable
// stands for is literal, so an identity that holds a "*" gains nothing by it.
//
// "*" stops at "?" and "#" as well as at "/", for else https://*.example.test/ would
// fit https://elsewhere.test?.example.test/.
type glob []part

type part struct {
	kind    partKind
	first   bool // the pattern starts with it
	literal string
}

// plainWord: letters, digits, "-", "_" and ".", but no dot segment.
func plainWord(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c|0x20 < 'a' || c|0x20 > 'z' {
			if (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
				return false
			}
		}
	}
	return s != "" && s != "." && s != ".."
}

type partKind uint8

const delimiters = "/?#"

const (
	literal  partKind = iota
	identity          // the caller's identity
	star              // any characters but those of delimiters
	anything          // any characters
)

func compileGlob(pattern string) (glob, error) {
	if pattern == "" {
		return nil, fmt.Errorf("a pattern is empty")
	}
	var g glob
	for rest := pattern; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			g, rest = append(g, part{kind: anything}), rest[2:]
		case rest[0] == '*':
			g, rest = append(g, part{kind: star}), rest[1:]
		case strings.HasPrefix(rest, identityVariable):
			g, rest = append(g, part{kind: identity, first: len(g) == 0}), rest[len(identityVariable):]
		case rest[0] == '{' || rest[0] == '}':
			return nil, fmt.Errorf("pattern %q: the only variable is %s", pattern, identityVariable)
		default:
			n := strings.IndexAny(rest, "*{}")
			if n < 0 {
				n = len(rest)
			}
			g, rest = append(g, part{literal: rest[:n]}), rest[n:]
		}
	}
	return g, g.bounded(pattern)
}

// bounded keeps the cost of a match small: it is the length of the name to the power
// of the number of stars, at worst.
func (g glob) bounded(pattern string) error {
	stars := 0
	for i, p := range g {
		if p.kind < star {
			continue
		}
		if stars++; i > 0 && g[i-1].kind >= star {
			return fmt.Errorf("pattern %q: stars follow each other", pattern)
		}
	}
	if stars > 3 {
		return fmt.Errorf("pattern %q: more than 3 stars", pattern)
	}
	return nil
}

// match reports whether the whole of s fits. An empty identity never fits, and one that
// is not a plain word fits only where the pattern starts with it: a namespace called
// "a/sa/b" must not pass for another's workload.
func (g glob) match(s, id string) bool { return g.fits(s, id, plainWord(id)) }

func (g glob) fits(s, id string, plain bool) bool {
	for i, p := range g {
		switch p.kind {
		case literal, identity:
			text := p.literal
			if p.kind == identity {
				text = id
			}
			rest, ok := strings.CutPrefix(s, text)
			if !ok || text == "" || p.kind == identity && !p.first && !plain {
				return false
			}
			s = rest
		default:
			return g[i+1:].fitsTail(s, id, plain, p.kind == star)
		}
	}
	return s == ""
}

// fitsTail matches what follows a star, which takes as little as it can.
func (g glob) fitsTail(s, id string, plain, oneSegment bool) bool {
	if len(g) == 0 {
		return !oneSegment || !strings.ContainsAny(s, delimiters)
	}
	for i := 0; ; i++ {
		if g.fits(s[i:], id, plain) {
			return true
		}
		if i == len(s) || oneSegment && strings.IndexByte(delimiters, s[i]) >= 0 {
			return false
		}
	}
}

// expand returns the text with the variable filled in, under match's rule for
// identities; stars have no text.
func (g glob) expand(id string) (text string, ok bool) {
	if len(g) == 1 && g[0].kind == identity {
		return id, true
	}
	var b strings.Builder
	for _, p := range g {
		if p.kind == identity {
			if !p.first && !plainWord(id) {
				return "", false
			}
			b.WriteString(id)
		} else {
			b.WriteString(p.literal)
		}
	}
	return b.String(), true
}

// compileURI is compileGlob for URIs: a "**" before the path would let a name choose
// its own host.
func compileURI(pattern string) (glob, error) {
	if before, _, ok := strings.Cut(pattern, "**"); ok && !strings.HasPrefix(before, "urn:") && !strings.HasPrefix(before, identityVariable) {
		_, authority, ok := strings.Cut(before, "://")
		if host, _, path := strings.Cut(authority, "/"); !ok || !path || host == "" {
			return nil, fmt.Errorf("URI pattern %q: \"**\" stands in the path only, after a host and \"/\"", pattern)
		}
	}
	return compileGlob(pattern)
}

// A dnsPattern is a DNS name after "", "*." (one label more) or "**." (one or more).
type dnsPattern struct {
	depth partKind // literal, star, anything
	base  glob     // empty for "*" and "**": any name
}

func compileDNS(pattern string) (dnsPattern, error) {
	var d dnsPattern
	base := pattern
	switch {
	case pattern == "**":
		return dnsPattern{depth: anything}, nil
	case strings.HasPrefix(pattern, "**."):
		d.depth, base = anything, pattern[3:]
	case strings.HasPrefix(pattern, "*."):
		d.depth, base = star, pattern[2:]
	}
	if strings.Contains(base, "*") {
		return d, fmt.Errorf("DNS pattern %q: stars stand for whole first labels only", pattern)
	}
	var err error
	d.base, err = compileGlob(base)
	return d, err
}

func (d dnsPattern) match(name, id string) bool {
	if d.depth == literal {
		return d.base.match(name, id)
	}
	if len(d.base) == 0 {
		return true
	}
	for {
		label, rest, ok := strings.Cut(name, ".")
		if !ok || label == "" {
			return false
		}
		if d.base.match(rest, id) {
			return true
		}
		if d.depth == star {
			return false
		}
		name = rest
	}
}
