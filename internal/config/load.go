// Package config loads the configuration of a role: its defaults, then a YAML file,
// then the environment, then flags. What is not a key is an error that names it.
package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Source says where a configuration comes from. Later ones win: file, environment, set.
type Source struct {
	// Role is the word in the names of environment variables: with "gateway" the key
	// ledger.url is CERTMILL_GATEWAY_LEDGER_URL.
	Role string
	// File is a YAML file; "" means none.
	File string
	// Environ holds "NAME=value", as os.Environ gives them.
	Environ []string
	// Set holds "key=value" from flags, for example "ledger.url=postgres://…".
	Set []string
}

// Validator is a configuration that can check itself. Validate joins all its errors
// and names the keys.
type Validator interface{ Validate() error }

// Load lays the source over the defaults and validates the result. All that is wrong
// is reported at once. Keys that the source does not name keep their defaults.
func Load[T Validator](defaults T, s Source) (T, error) {
	cfg := defaults
	fields := Fields(reflect.ValueOf(&cfg).Elem())
	var errs []error
	if s.File != "" {
		errs = append(errs, applyFile(fields, s.File)...)
	}
	errs = append(errs, applyEnvironment(fields, s.Role, s.Environ)...)
	errs = append(errs, applySet(fields, s.Set)...)
	if len(errs) == 0 {
		// Only a configuration that was read as it was meant is worth checking.
		if err := cfg.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return defaults, fmt.Errorf("the configuration of the %s is wrong:\n%w", s.Role, err)
	}
	return cfg, nil
}

func applyFile(fields []Field, path string) []error {
	data, err := readBounded(path, maxFile)
	if err != nil {
		return []error{err}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return []error{fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, true))}
	}
	var errs []error
	for i, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if i > 0 {
			return append(errs, fmt.Errorf("%s:%d: a second YAML document is not read: keep one", path, line(doc.Body)))
		}
		errs = append(errs, applyNode(byKey(fields), path, "", doc.Body)...)
	}
	return errs
}

// applyNode lays a mapping over the fields below prefix.
func applyNode(keys map[string]Field, path, prefix string, node ast.Node) []error {
	mapping, ok := node.(*ast.MappingNode)
	if !ok {
		if _, null := node.(*ast.NullNode); null {
			return nil // an empty section changes nothing
		}
		return []error{fmt.Errorf("%s:%d: %skeys with values are expected here", path, line(node), prefix)}
	}
	var errs []error
	for _, entry := range mapping.Values {
		key := prefix + entry.Key.GetToken().Value
		field, known := keys[key]
		switch {
		case !known:
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %q%s", path, line(entry.Key), key, suggest(keys, key)))
		case field.Section:
			errs = append(errs, applyNode(keys, path, key+".", entry.Value)...)
		default:
			if err := decode(field, entry.Value); err != nil {
				errs = append(errs, fmt.Errorf("%s:%d: %s: %w", path, line(entry.Key), key, err))
			}
		}
	}
	return errs
}

func decode(f Field, node ast.Node) error {
	fresh := reflect.New(f.Value.Type())
	if err := yaml.NodeToValue(node, fresh.Interface(), yaml.Strict()); err != nil {
		return errors.New(yaml.FormatError(err, false, false))
	}
	f.Value.Set(fresh.Elem())
	return nil
}

// setText sets a field from one word of the environment or a flag: text as it is, a
// list with commas or as YAML, everything else as YAML.
func setText(f Field, text string) error {
	if f.Section {
		return errors.New("this is a section: set its keys one by one")
	}
	switch kind := f.Value.Type(); {
	case kind.Kind() == reflect.String:
		f.Value.SetString(text)
		return nil
	case kind.Kind() == reflect.Slice && kind.Elem().Kind() == reflect.String && !strings.HasPrefix(text, "["):
		list := reflect.MakeSlice(kind, 0, 1)
		for _, word := range strings.Split(text, ",") {
			if word = strings.TrimSpace(word); word != "" {
				list = reflect.Append(list, reflect.ValueOf(word).Convert(kind.Elem()))
			}
		}
		f.Value.Set(list)
		return nil
	}
	file, err := parser.ParseBytes([]byte(text), 0)
	if err != nil || len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return fmt.Errorf("%q is not a value", text)
	}
	return decode(f, file.Docs[0].Body)
}

// serviceLinks are the variables that Kubernetes makes in every pod for a Service
// named, say, certmill-gateway: CERTMILL_GATEWAY_SERVICE_HOST and its kin.
var serviceLinks = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func applyEnvironment(fields []Field, role string, environ []string) []error {
	prefix := EnvPrefix(role)
	names := map[string]Field{}
	for _, f := range fields {
		if !f.Section {
			names[EnvName(role, f.Key)] = f
		}
	}
	var errs []error
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		f, known := names[name]
		switch {
		case known:
			if err := setText(f, value); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
			}
		case !serviceLinks.MatchString(name):
			errs = append(errs, fmt.Errorf("environment variable %s: there is no such key%s", name, suggest(names, name)))
		}
	}
	return errs
}

func applySet(fields []Field, set []string) []error {
	keys := byKey(fields)
	var errs []error
	for _, pair := range set {
		key, value, ok := strings.Cut(pair, "=")
		f, known := keys[key]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("--set %s: write key=value", pair))
		case !known:
			errs = append(errs, fmt.Errorf("--set %s: unknown key %q%s", pair, key, suggest(keys, key)))
		default:
			if err := setText(f, value); err != nil {
				errs = append(errs, fmt.Errorf("--set %s: %w", key, err))
			}
		}
	}
	return errs
}

// EnvPrefix returns the start of the names of a role's environment variables.
func EnvPrefix(role string) string { return "CERTMILL_" + envWord(role) + "_" }

// EnvName returns the environment variable of a key.
func EnvName(role, key string) string { return EnvPrefix(role) + envWord(key) }

func envWord(s string) string {
	return strings.ToUpper(strings.NewReplacer(".", "_", "-", "_", " ", "_").Replace(s))
}

func line(n ast.Node) int { return n.GetToken().Position.Line }

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}
