package loadtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/certmill/certmill/loadtest/target"
)

// Flags that only one subject has a use for.
var (
	forCertificates = []string{"key-type", "keys", "csrs", "max-reuse", "name", "common-name", "lifetime", "lifetime-less", "roots", "any-names", "expect-name", "check-row", "check-ocsp", "check-ocsp-within", "save", "save-most"}
	forStatuses     = []string{"serials", "issuer"}
)

// forOthers are the flags that say where a target is, which a floor that is started here
// knows by itself.
var forOthers = []string{"url", "dev", "ca", "server-name", "cert", "key", "roots", "serials", "issuer", "watch-tree"}

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
	others := readers(flag)
	switch {
	case len(others) > 0 && !slices.Contains(others, kind.Name):
		return fmt.Sprintf("for --target %s: it is for %s", kind.Name, strings.Join(others, ", "))
	case kind.Floor && slices.Contains(forOthers, flag):
		return fmt.Sprintf("for --target %s, which is started here", kind.Name)
	case kind.Subject == target.Statuses && slices.Contains(forCertificates, flag):
		return fmt.Sprintf("for --target %s: it is for targets that issue", kind.Name)
	case kind.Subject != target.Statuses && slices.Contains(forStatuses, flag):
		return fmt.Sprintf("for --target %s: it is for OCSP", kind.Name)
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
