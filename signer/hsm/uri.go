package hsm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/miekg/pkcs11"
)

// URI is a PKCS#11 URI (RFC 7512) as far as it concerns tokens and private keys.
// Empty fields match anything.
type URI struct {
	// Token, Serial, Manufacturer and Model name a token.
	Token, Serial, Manufacturer, Model string
	// Object is the label of a key, ID its CKA_ID.
	Object string
	ID     []byte
	// ModulePath and PINSource are the query attributes of those names.
	ModulePath, PINSource string
}

// ParseURI reads a PKCS#11 URI. It fails for a path attribute that it does not
// know, since ignoring one would match too much, for an attribute given twice, and
// for pin-value. Query attributes that it does not know are ignored.
func ParseURI(s string) (URI, error) {
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		return URI{}, errors.New("a PKCS#11 URI begins with pkcs11:")
	}
	var u URI
	path, query, _ := strings.Cut(rest, "?")
	if err := u.read(path, ";", u.setPath); err != nil {
		return URI{}, err
	}
	if err := u.read(query, "&", u.setQuery); err != nil {
		return URI{}, err
	}
	return u, nil
}

func (u *URI) read(list, separator string, set func(name, value string) error) error {
	if list == "" {
		return nil
	}
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(list, separator) {
		name, raw, ok := strings.Cut(part, "=")
		if !ok {
			return fmt.Errorf("PKCS#11 URI: %q has no value", name)
		}
		if seen[name] {
			return fmt.Errorf("PKCS#11 URI: %s is given twice", name)
		}
		seen[name] = true
		value, err := url.PathUnescape(raw)
		if err != nil {
			return fmt.Errorf("PKCS#11 URI: %s: %w", name, err)
		}
		if err := set(name, value); err != nil {
			return err
		}
	}
	return nil
}

func (u *URI) setPath(name, value string) error {
	switch name {
	case "token":
		u.Token = value
	case "serial":
		u.Serial = value
	case "manufacturer":
		u.Manufacturer = value
	case "model":
		u.Model = value
	case "object":
		u.Object = value
	case "id":
		u.ID = []byte(value)
	case "type":
		if value != "private" {
			return fmt.Errorf("PKCS#11 URI: type is %q; only private keys are used", value)
		}
	default:
		return fmt.Errorf("PKCS#11 URI: the attribute %q is not supported", name)
	}
	return nil
}

func (u *URI) setQuery(name, value string) error {
	switch name {
	case "module-path":
		u.ModulePath = value
	case "pin-source":
		u.PINSource = value
	case "pin-value":
		return errors.New("PKCS#11 URI: pin-value is refused; put the PIN into a file")
	}
	return nil
}

// String returns the URI of the key without anything of a PIN or a module.
func (u URI) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+escape(value))
		}
	}
	add("token", u.Token)
	add("serial", u.Serial)
	add("manufacturer", u.Manufacturer)
	add("model", u.Model)
	add("object", u.Object)
	if len(u.ID) > 0 {
		// RFC 7512 section 2.3: id should be percent-encoded whole.
		var id strings.Builder
		for _, b := range u.ID {
			id.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{b})))
		}
		parts = append(parts, "id="+id.String())
	}
	if u.namesKey() {
		parts = append(parts, "type=private")
	}
	return "pkcs11:" + strings.Join(parts, ";")
}

// escape percent-encodes all but RFC 3986's unreserved characters, which is always right.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

func (u URI) namesToken() bool {
	return u.Token != "" || u.Serial != "" || u.Manufacturer != "" || u.Model != ""
}

func (u URI) namesKey() bool { return u.Object != "" || len(u.ID) > 0 }

// matches reports whether the token is the one that the URI names.
func (u URI) matches(i pkcs11.TokenInfo) bool {
	same := func(want, have string) bool { return want == "" || want == have }
	return same(u.Token, i.Label) && same(u.Serial, i.SerialNumber) &&
		same(u.Manufacturer, i.ManufacturerID) && same(u.Model, i.Model)
}
