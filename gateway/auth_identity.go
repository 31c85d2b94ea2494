package gateway

import (
	"errors"
	"fmt"
	"strings"
)

// identityTemplate makes a name from a token's claims: text and claim paths take
// turns, beginning and ending with text.
type identityTemplate struct {
	text   []string
	claims [][]string
}

// parseIdentity reads a template such as "spiffe://example.test/sa/{sub}". Empty
// stands for "{sub}".
func parseIdentity(s string) (identityTemplate, error) {
	if s == "" {
		s = "{sub}"
	}
	var t identityTemplate
	for {
		text, rest, found := strings.Cut(s, "{")
		if strings.Contains(text, "}") {
			return t, errors.New(`has a "}" without its "{"`)
		}
		t.text = append(t.text, text)
		if !found {
			break
		}
		claim, after, closed := strings.Cut(rest, "}")
		if !closed || claim == "" || strings.Contains(claim, "{") {
			return t, errors.New(`needs a claim between "{" and "}"`)
		}
		t.claims = append(t.claims, strings.Split(claim, "/"))
		s = after
	}
	if len(t.claims) == 0 {
		return t, errors.New("names no claim, so that every caller would be the same")
	}
	return t, nil
}

// expand fills the template in. Where a claim is only part of the name it may hold
// nothing but letters, digits, "-", "_" and ".": otherwise a namespace called
// "a/sa/b" could pass for another workload.
func (t identityTemplate) expand(claims map[string]any) (string, error) {
	whole := len(t.claims) == 1 && t.text[0] == "" && t.text[1] == ""
	var b strings.Builder
	b.WriteString(t.text[0])
	for i, path := range t.claims {
		value, ok := claimAt(claims, path)
		if !ok || !printable(value, 256) || (!whole && !plainWord(value)) {
			return "", fmt.Errorf("the token's claim %q is missing or cannot be part of an identity", strings.Join(path, "/"))
		}
		b.WriteString(value)
		b.WriteString(t.text[i+1])
	}
	return b.String(), nil
}

func claimAt(claims map[string]any, path []string) (string, bool) {
	for _, step := range path[:len(path)-1] {
		next, ok := claims[step].(map[string]any)
		if !ok {
			return "", false
		}
		claims = next
	}
	s, ok := claims[path[len(path)-1]].(string)
	return s, ok
}

func plainWord(s string) bool {
	if s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != ""
}
