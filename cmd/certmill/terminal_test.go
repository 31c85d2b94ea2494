package main

import (
	"strings"
	"testing"
)

func TestAFrameFitsItsScreen(t *testing.T) {
	text := "certmill is ok\n" + strings.Repeat("ü", 50) + "\nthree\nfour\n"
	for _, c := range []struct {
		name          string
		width, height int
		want          []string
	}{
		{"a large screen shows all", 80, 24, []string{"certmill is ok", strings.Repeat("ü", 50), "three", "four"}},
		{"a screen as high as the text", 80, 4, []string{"certmill is ok", strings.Repeat("ü", 50), "three", "four"}},
		{"a low screen says how much it lacks", 80, 3, []string{"certmill is ok", strings.Repeat("ü", 50), "… 2 more lines"}},
		{"a narrow screen cuts", 8, 24, []string{"certmil…", "üüüüüüü…", "three", "four"}},
		{"a screen of one line", 80, 1, []string{"… 4 more lines"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := frame(text, c.width, c.height)
			if want := home + strings.Join(c.want, toLineEnd+"\r\n") + toLineEnd + toScreenEnd; got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}
