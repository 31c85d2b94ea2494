package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestTheHelpOfNoFlagIsGarbled: pflag takes what stands in backquotes for the name of the
// flag's value.
func TestTheHelpOfNoFlagIsGarbled(t *testing.T) {
	n := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			n++
			if strings.Contains(f.Usage, "`") {
				t.Errorf("%s: --%s %s", c.CommandPath(), f.Name, f.Usage)
			}
		})
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(newRoot())
	if n < 100 {
		t.Errorf("only %d flags were found", n)
	}
}
