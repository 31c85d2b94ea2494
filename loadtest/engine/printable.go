package engine

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What is kept of what a server said, in characters.
const (
	maxDetail = 300
	maxWord   = 60 // kinds and phases
)

// Printable makes what a server said safe to show: white space becomes one space, what
// cannot be printed its escape (no ESC reaches a terminal), and the result has at most
// most characters.
func Printable(s string, most int) string {
	if plain(s, most) {
		return s
	}
	var b strings.Builder
	for n := 0; len(s) > 0; {
		r, size := utf8.DecodeRuneInString(s)
		piece := s[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, s[0])
		case unicode.IsSpace(r):
			if strings.HasSuffix(b.String(), " ") {
				piece = ""
			} else {
				piece = " "
			}
		case !unicode.IsPrint(r):
			quoted := strconv.QuoteRune(r)
			piece = quoted[1 : len(quoted)-1]
		}
		n += utf8.RuneCountInString(piece)
		if s = s[size:]; n > most || n == most && s != "" {
			b.WriteString("…")
			break
		}
		b.WriteString(piece)
	}
	return b.String()
}

// plain reports whether s can stay as it is, as nearly all do.
func plain(s string, most int) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == ' ' && i > 0 && s[i-1] == ' ' {
			return false
		}
	}
	return len(s) <= most
}
