package loadtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/certmill/certmill/loadtest/target"
)

// forIssuing are the flags that only targets which issue have a use for.
var forIssuing = []string{"key-type", "keys", "csrs", "max-reuse", "name", "common-name", "lifetime", "lifetime-less", "roots", "any-names", "expect-name", "check-row", "check-ocsp", "check-ocsp-within", "save", "save-most"}

// givenByFloor are the flags for what a floor that is started here tells by itself.
var givenByFloor = []string{"url", "dev", "ca", "server-name", "cert", "key", "roots", "serials", "issuer", "watch-tree"}

// conditions are those under which other flags do something.
var conditions = []struct {
	flag string
	why  string
	good func(o *options, k target.Kind) bool
}{
	{"save-most", "without --save", func(o *options, _ target.Kind) bool { return o.save != "" }},
	{"check-ocsp-within", "without --check-ocsp", func(o *options, _ target.Kind) bool { return o.status != "" }},
	{"sha256", "without --check-ocsp or an OCSP target", func(o *options, k target.Kind) bool { return o.status != "" || k.Subject == target.Statuses }},
	{"in-flight", "with --callers, which are the calls in flight", func(o *options, _ target.Kind) bool { return o.callers == 0 }},
	{"expect-name", "with --any-names", func(o *options, _ target.Kind) bool { return !o.anyNames }},
	{"seed", "with --callers, who have no schedule", func(o *options, _ target.Kind) bool { return o.callers == 0 }},
	{"pause", "with a single run: it is for --repeat", func(o *options, _ target.Kind) bool { return o.repeat > 1 }},
	{"lifetime-less", "without --lifetime", func(o *options, _ target.Kind) bool { return o.server.Lifetime > 0 }},
	{"check-row", "with --check 0", func(o *options, _ target.Kind) bool { return o.share > 0 }},
	{"check-ocsp", "with --check 0", func(o *options, _ target.Kind) bool { return o.share > 0 }},
	{"dev", "for another CA, whose --url is needed", func(_ *options, k target.Kind) bool {
		return k.Name != "vault" && k.Name != "step" && k.Name != "cfssl"
	}},
}

// idle fails when a flag was given that does nothing with the others: who has given it
// believes that it does.
func (o *options) idle() error {
	if o.flags == nil {
		return nil
	}
	kind, err := target.Find(o.target)
	if err != nil {
		return fmt.Errorf("--target: %w", err)
	}
	var errs []error
	o.flags.Visit(func(f *pflag.Flag) {
		if why := o.whyIdle(f.Name, kind); why != "" {
			errs = append(errs, fmt.Errorf("--%s does nothing %s", f.Name, why))
		}
	})
	return errors.Join(errs...)
}

// whyIdle says why a flag does nothing; "" if it does something.
func (o *options) whyIdle(flag string, kind target.Kind) string {
	readBy := readers(flag)
	switch {
	case kind.Floor && slices.Contains(givenByFloor, flag):
		return fmt.Sprintf("for --target %s, which is started here", kind.Name)
	case len(readBy) > 0 && !slices.Contains(readBy, kind.Name):
		return fmt.Sprintf("for --target %s: it is for %s", kind.Name, strings.Join(readBy, ", "))
	case kind.Subject == target.Statuses && slices.Contains(forIssuing, flag):
		return fmt.Sprintf("for --target %s: it is for targets that issue", kind.Name)
	}
	for _, w := range conditions {
		if w.flag == flag && !w.good(o, kind) {
			return w.why
		}
	}
	return ""
}

// readers returns the targets that read a flag; none where all do.
func readers(flag string) []string {
	var out []string
	for _, name := range target.Names() {
		if k, err := target.Find(name); err == nil && slices.Contains(k.Flags, flag) {
			out = append(out, name)
		}
	}
	return out
}
