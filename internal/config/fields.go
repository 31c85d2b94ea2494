package config

import (
	"encoding"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Field is one key of a configuration struct.
type Field struct {
	// Key is the path of yaml names, "nats.ack_wait".
	Key string
	// Section is true for a struct whose own fields are keys: it has no value itself.
	Section bool
	Value   reflect.Value
	// Struct and Name are where the field is declared, for its comment.
	Struct reflect.Type
	Name   string
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	yamlUnmarshaler = reflect.TypeFor[yaml.InterfaceUnmarshaler]()
	yamlFromBytes   = reflect.TypeFor[yaml.BytesUnmarshaler]()
)

// Fields lists the keys of a struct in the order of their declaration, a section
// before its keys. Fields without a yaml tag, and those tagged "-", are no keys.
func Fields(v reflect.Value) []Field { return appendFields(nil, "", v) }

func appendFields(list []Field, prefix string, v reflect.Value) []Field {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name, options, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if strings.Contains(options, "inline") {
			list = appendFields(list, prefix, v.Field(i))
			continue
		}
		if !sf.IsExported() || name == "" || name == "-" {
			continue
		}
		f := Field{Key: prefix + name, Value: v.Field(i), Struct: v.Type(), Name: sf.Name, Section: isSection(sf.Type)}
		list = append(list, f)
		if f.Section {
			list = appendFields(list, f.Key+".", f.Value)
		}
	}
	return list
}

// isSection reports whether a type is a struct that does not decode itself.
func isSection(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	p := reflect.PointerTo(t)
	return !p.Implements(textUnmarshaler) && !p.Implements(yamlUnmarshaler) && !p.Implements(yamlFromBytes)
}

func byKey(fields []Field) map[string]Field {
	m := make(map[string]Field, len(fields))
	for _, f := range fields {
		m[f.Key] = f
	}
	return m
}

// suggest returns `; did you mean "…"?` when a known key is near.
func suggest(known map[string]Field, wrong string) string {
	best, distance := "", max(2, len(wrong)/4)+1
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if d := editDistance(key, wrong); d < distance {
			best, distance = key, d
		}
	}
	if best == "" {
		return ""
	}
	return `; did you mean "` + best + `"?`
}

// editDistance is Levenshtein's. Keys are short and this runs once per mistake.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
