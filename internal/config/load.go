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
	// Elements are the defaults of structs that stand in lists, one value for a type.
	Elements []any
}

// Validator is a configuration that can check itself. Validate joins all its errors
// and names the keys.
type Validator interface{ Validate() error }

// Load lays the source over the defaults and validates the result. All that is wrong
// is reported at once. Keys that the source does not name keep their defaults.
func Load[T Validator](defaults T, s Source) (T, error) {
	cfg := defaults
	fields := Fields(reflect.ValueOf(&cfg).Elem())
	elements := map[reflect.Type]reflect.Value{}
	for _, d := range s.Elements {
		elements[reflect.TypeOf(d)] = reflect.ValueOf(d)
	}
	var errs []error
	if s.File != "" {
		errs = append(errs, applyFile(fields, elements, s.File)...)
	}
	errs = append(errs, applyEnvironment(fields, elements, s.Role, s.Environ)...)
	errs = append(errs, applySet(fields, elements, s.Set)...)
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

func applyFile(fields []Field, elements map[reflect.Type]reflect.Value, path string) []error {
	data, err := readBounded(path, maxFile)
	if err != nil {
		return []error{err}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return []error{fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, true))}
	}
	l := &layer{source: path, elements: elements}
	for i, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case i > 0:
			l.wrong(doc.Body, "a second YAML document is not read: keep one")
		default:
			l.mapping(byKey(fields), "", "", doc.Body)
		}
	}
	return l.errs
}

// layer lays YAML over configuration fields and gathers what is wrong with it.
// ErrUnknownKey is in the error of Load for each key that the configuration does not have.
var ErrUnknownKey = errors.New("unknown key")

type layer struct {
	source   string // names the file in errors
	elements map[reflect.Type]reflect.Value
	errs     []error
}

func (l *layer) wrong(node ast.Node, format string, args ...any) {
	l.errs = append(l.errs, fmt.Errorf("%s:%d: %w", l.source, line(node), fmt.Errorf(format, args...)))
}

// mapping lays node over the fields whose keys begin with prefix. at is how messages
// name that prefix.
func (l *layer) mapping(keys map[string]Field, prefix, at string, node ast.Node) {
	mapping, ok := node.(*ast.MappingNode)
	if !ok {
		// An empty section changes nothing.
		if _, null := node.(*ast.NullNode); !null {
			l.wrong(node, "%skeys with values are expected here", at)
		}
		return
	}
	for _, entry := range mapping.Values {
		name := entry.Key.GetToken().Value
		field, known := keys[prefix+name]
		switch {
		case !known:
			l.wrong(entry.Key, "%w %q%s", ErrUnknownKey, at+name, suggest(keys, prefix+name))
		case field.Section:
			l.mapping(keys, prefix+name+".", at+name+".", entry.Value)
		default:
			l.value(field.Value, at+name, entry.Value)
		}
	}
}

// value decodes node into v. The elements of a list of structs start from their
// defaults and are as strict as the rest.
func (l *layer) value(v reflect.Value, at string, node ast.Node) {
	list, isList := node.(*ast.SequenceNode)
	if v.Kind() != reflect.Slice || !isSection(v.Type().Elem()) || !isList {
		fresh := reflect.New(v.Type())
		if err := yaml.NodeToValue(node, fresh.Interface(), yaml.Strict()); err != nil {
			l.wrong(node, "%s: %s", at, firstLine(err))
			return
		}
		v.Set(fresh.Elem())
		return
	}
	elements := reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values))
	for i, item := range list.Values {
		element := elements.Index(i)
		if d, ok := l.elements[element.Type()]; ok {
			element.Set(d)
		}
		l.mapping(byKey(Fields(element)), "", fmt.Sprintf("%s[%d].", at, i), item)
	}
	v.Set(elements)
}

// firstLine leaves out goccy's excerpt of the file: the line's number says enough.
func firstLine(err error) string {
	text := yaml.FormatError(err, false, false)
	// "[2:6] cannot unmarshal …": the position is ours to give.
	if _, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(text, "[") {
		text = rest
	}
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// setText sets a field from one word of the environment or a flag: text as it is, a
// list with commas or as YAML, everything else as YAML.
func setText(f Field, elements map[reflect.Type]reflect.Value, text string) error {
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
	l := &layer{source: f.Key, elements: elements}
	l.value(f.Value, f.Key, file.Docs[0].Body)
	return errors.Join(l.errs...)
}

// serviceLinks are the variables that Kubernetes makes in every pod for a Service
// named, say, certmill-gateway: CERTMILL_GATEWAY_SERVICE_HOST and its kin.
var serviceLinks = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func applyEnvironment(fields []Field, elements map[reflect.Type]reflect.Value, role string, environ []string) []error {
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
			if err := setText(f, elements, value); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
			}
		case !serviceLinks.MatchString(name):
			errs = append(errs, fmt.Errorf("environment variable %s: there is no such key%s", name, suggest(names, name)))
		}
	}
	return errs
}

func applySet(fields []Field, elements map[reflect.Type]reflect.Value, set []string) []error {
	keys := byKey(fields)
	var errs []error
	for _, pair := range set {
		key, value, ok := strings.Cut(pair, "=")
		f, known := keys[key]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("--set %s: write key=value", pair))
		case !known:
			errs = append(errs, fmt.Errorf("--set %s: %w %q%s", pair, ErrUnknownKey, key, suggest(keys, key)))
		default:
			if err := setText(f, elements, value); err != nil {
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
