package tlv_test

import (
	"encoding/asn1"
	"testing"

	"github.com/certmill/certmill/internal/tlv"
)

// encoding/asn1 refuses lengths that are not in the shortest form.
func TestLengthsAreInTheShortestForm(t *testing.T) {
	for _, n := range []int{0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 1 << 20, 1 << 24} {
		element := append(tlv.AppendHead(nil, byte(asn1.TagOctetString), n), make([]byte, n)...)
		var content []byte
		if rest, err := asn1.Unmarshal(element, &content); err != nil || len(rest) > 0 || len(content) != n || tlv.Size(n) != len(element) {
			t.Errorf("%d octets: %v, %d behind, size %d of %d", n, err, len(rest), tlv.Size(n), len(element))
		}
	}
	if got, want := string(tlv.AppendHead(nil, byte(0x30), int64(1)<<32)), "\x30\x85\x01\x00\x00\x00\x00"; got != want {
		t.Errorf("4 GiB: %x, want %x", got, want)
	}
}
