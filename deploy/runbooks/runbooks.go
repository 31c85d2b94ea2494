// Package runbooks reads the runbooks for those who hold them to what there is: which
// commands, queries and messages an operator is sent to. The runbooks themselves are
// the Markdown files of this folder.
package runbooks

import (
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

//go:embed *.md
var files embed.FS

// Page is one runbook.
type Page struct {
	Name string // its file
	Text string
}

// Read returns every runbook, by name.
func Read() ([]Page, error) {
	names, err := fs.Glob(files, "*.md")
	if err != nil {
		return nil, err
	}
	var pages []Page
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		pages = append(pages, Page{name, string(text)})
	}
	return pages, nil
}

var (
	fence  = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	inline = regexp.MustCompile("`([^`]+)`")
	quoted = regexp.MustCompile(`"([^"\n]+)"`)
)

// Blocks returns the fenced blocks of a language.
func (p Page) Blocks(language string) []string {
	var out []string
	for _, m := range fence.FindAllStringSubmatch(p.Text, -1) {
		if m[1] == language {
			out = append(out, strings.TrimSpace(m[2]))
		}
	}
	return out
}

// Quotations returns what stands in backticks in the running text.
func (p Page) Quotations() []string { return found(inline, fence.ReplaceAllString(p.Text, "")) }

// Messages returns what stands in double quotes in the running text: the lines of logs
// that an operator is to look for.
func (p Page) Messages() []string {
	return found(quoted, inline.ReplaceAllString(fence.ReplaceAllString(p.Text, ""), ""))
}

func found(pattern *regexp.Regexp, text string) []string {
	var out []string
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		out = append(out, strings.Join(strings.Fields(m[1]), " "))
	}
	return out
}

// Commands returns the lines that call certmill, in blocks and in the running text, each
// split into words without the program's name. A line that no shell would split as
// simply is an error.
func (p Page) Commands() ([][]string, error) {
	lines := p.Quotations()
	for _, block := range p.Blocks("sh") {
		lines = append(lines, strings.Split(block, "\n")...)
	}
	var out [][]string
	for _, line := range lines {
		rest, ours := strings.CutPrefix(strings.TrimSpace(line)+" ", "certmill ")
		if !ours {
			continue
		}
		if strings.ContainsAny(rest, "'\"\\$|;&<>()") {
			return nil, fmt.Errorf("%s: %q is more than words: write it so that it can be checked", p.Name, line)
		}
		out = append(out, strings.Fields(rest))
	}
	return out, nil
}
