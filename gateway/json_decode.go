package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/certmill/certmill/internal/problem"
)

// maxJSONList bounds a list before its items are made; the service has lower bounds.
const maxJSONList = 1000

// decodeJSON reads one JSON object into m, by protobuf's JSON mapping with the field
// names of the .proto. It is stricter than protojson and says more: an unknown field,
// one that is there twice, a value of the wrong type and data after the object are
// Invalid problems that name the field. Two liberties: bytes may be PEM as it stands,
// and a duration may be "24h". Depth needs no bound, since only known fields nest.
func decodeJSON(data []byte, m proto.Message) error {
	if !utf8.Valid(data) {
		return problem.Rejected("body", "utf8", "the body is not UTF-8")
	}
	d := jsonDecoder{json.NewDecoder(bytes.NewReader(data))}
	d.UseNumber()
	token, err := d.next()
	if err != nil {
		return err
	}
	if token != json.Delim('{') {
		return problem.Rejected("body", "json_type", "the body must be a JSON object")
	}
	if err := d.object(m.ProtoReflect(), nil); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return problem.Rejected("body", "trailing_data", "there is data after the JSON object")
	}
	return nil
}

type jsonDecoder struct{ *json.Decoder }

// jsonPath is where in the document a value stands; it is written out for errors only.
type jsonPath struct {
	parent *jsonPath
	name   string
	index  int // of a list's item; -1 for a field
}

func (p *jsonPath) String() string {
	switch {
	case p == nil:
		return ""
	case p.index >= 0:
		return p.parent.String() + "[" + strconv.Itoa(p.index) + "]"
	case p.parent == nil:
		return p.name
	}
	return p.parent.String() + "." + p.name
}

func (p *jsonPath) reject(rule, format string, args ...any) error {
	return problem.Rejected(p.String(), rule, format, args...)
}

func (d jsonDecoder) next() (json.Token, error) {
	token, err := d.Token()
	if err != nil {
		return nil, &problem.Error{Kind: problem.Invalid, Field: "body", Rule: "json_syntax", Detail: fmt.Sprintf("the body is not valid JSON near byte %d", d.InputOffset()), Cause: err}
	}
	return token, nil
}

// object reads the fields of a message whose opening brace has been read.
func (d jsonDecoder) object(m protoreflect.Message, parent *jsonPath) error {
	fields := m.Descriptor().Fields()
	var seen uint64 // no message of ours has a field number above 63
	for d.More() {
		token, err := d.next()
		if err != nil {
			return err
		}
		name, _ := token.(string) // in this place the decoder gives nothing else
		path := &jsonPath{parent: parent, name: name, index: -1}
		field := fields.ByName(protoreflect.Name(name))
		if field == nil {
			return path.reject("unknown_field", "there is no such field")
		}
		if bit := uint64(1) << field.Number(); seen&bit != 0 {
			return path.reject("duplicate_field", "the field is there twice")
		} else {
			seen |= bit
		}
		if err := d.field(m, field, path); err != nil {
			return err
		}
	}
	_, err := d.next() // the closing brace
	return err
}

func (d jsonDecoder) field(m protoreflect.Message, field protoreflect.FieldDescriptor, path *jsonPath) error {
	token, err := d.next()
	if err != nil || token == nil { // null stands for the default
		return err
	}
	if !field.IsList() {
		v, err := d.value(field, token, path)
		if err == nil {
			m.Set(field, v)
		}
		return err
	}
	if token != json.Delim('[') {
		return path.reject("json_type", "the field is a list")
	}
	list := m.Mutable(field).List()
	for i := 0; d.More(); i++ {
		if i == maxJSONList {
			return path.reject("list_max", "the list has more than %d items", maxJSONList)
		}
		item := &jsonPath{parent: path, index: i}
		if token, err = d.next(); err != nil {
			return err
		}
		v, err := d.value(field, token, item)
		if err != nil {
			return err
		}
		list.Append(v)
	}
	_, err = d.next() // the closing bracket
	return err
}

func (d jsonDecoder) value(field protoreflect.FieldDescriptor, token json.Token, path *jsonPath) (protoreflect.Value, error) {
	var none protoreflect.Value
	switch field.Kind() {
	case protoreflect.MessageKind:
		return d.message(field.Message(), token, path)
	case protoreflect.StringKind:
		if s, ok := token.(string); ok {
			return protoreflect.ValueOfString(s), nil
		}
		return none, path.reject("json_type", "the field is a string")
	case protoreflect.BytesKind:
		s, ok := token.(string)
		if !ok {
			return none, path.reject("json_type", "the field is a string of base64 or PEM")
		}
		b, err := decodeBytes(s)
		if err != nil {
			return none, path.reject("base64", "the field is neither base64 nor PEM")
		}
		return protoreflect.ValueOfBytes(b), nil
	case protoreflect.Int32Kind:
		n, ok := int32Of(token)
		if !ok {
			return none, path.reject("json_type", "the field is a whole number of 32 bits")
		}
		return protoreflect.ValueOfInt32(n), nil
	case protoreflect.EnumKind:
		return enumOf(field.Enum(), token, path)
	}
	return none, fmt.Errorf("a request field of kind %s is not supported in JSON", field.Kind())
}

func (d jsonDecoder) message(md protoreflect.MessageDescriptor, token json.Token, path *jsonPath) (protoreflect.Value, error) {
	var none protoreflect.Value
	if md.FullName() == "google.protobuf.Duration" {
		s, ok := token.(string)
		if !ok {
			return none, path.reject("json_type", "the field is a string such as \"3600s\"")
		}
		duration, err := parseDuration(s)
		if err != nil {
			return none, path.reject("duration", "the field is a duration such as 3600s, 24h or 7d")
		}
		return protoreflect.ValueOfMessage(durationMessage(duration).ProtoReflect()), nil
	}
	if md.FullName() == "google.protobuf.Timestamp" {
		s, ok := token.(string)
		if !ok {
			return none, path.reject("json_type", "the field is a string such as \"2030-01-02T15:04:05Z\"")
		}
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return none, path.reject("timestamp", "the field is a time such as 2030-01-02T15:04:05Z")
		}
		return protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()), nil
	}
	if token != json.Delim('{') {
		return none, path.reject("json_type", "the field is an object")
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		return none, fmt.Errorf("reading JSON: %w", err)
	}
	m := mt.New()
	if err := d.object(m, path); err != nil {
		return none, err
	}
	return protoreflect.ValueOfMessage(m), nil
}

// decodeBytes reads base64 in either alphabet, padded or not, or leaves PEM as it is.
func decodeBytes(s string) ([]byte, error) {
	if strings.HasPrefix(s, string(pemStart)) {
		return []byte(s), nil
	}
	encoding := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		encoding = base64.URLEncoding
	}
	if len(s)%4 != 0 {
		encoding = encoding.WithPadding(base64.NoPadding)
	}
	return encoding.Strict().DecodeString(s)
}

func int32Of(token json.Token) (int32, bool) {
	number, ok := token.(json.Number)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(number.String(), 10, 32)
	return int32(n), err == nil
}

func enumOf(e protoreflect.EnumDescriptor, token json.Token, path *jsonPath) (protoreflect.Value, error) {
	if name, ok := token.(string); ok {
		if v := e.Values().ByName(protoreflect.Name(name)); v != nil {
			return protoreflect.ValueOfEnum(v.Number()), nil
		}
	}
	if n, ok := int32Of(token); ok { // the service judges the number
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)), nil
	}
	return protoreflect.Value{}, path.reject("enum", "the field is one of the names of %s, for example %s", e.Name(), e.Values().Get(0).Name())
}
