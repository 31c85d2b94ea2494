// Package crldp is the one definition of CRL distribution points: which CRL a
// certificate belongs to, and under which URL. The signer writes the URL into
// certificates by it, and the maker of CRLs writes the same URL, byte for byte, into
// the CRL's issuing distribution point (RFC 5280 section 5.2.5).
//
// An issuer's certificates are cut into shards by the last two octets of the serial,
// which are random: nothing is stored, and the shard is fixed at issue. The number of
// shards is part of the URL, so it can change at any time: certificates issued before
// go on in the CRLs that they name.
package crldp

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/certmill/certmill/internal/serial"
)

// MaxShards bounds the shards of one distribution point.
const MaxShards = 4096

const (
	issuerVariable = "{issuer}"
	shardVariable  = "{shard}"
	// Suffix ends every URL: the responder tells a CRL from an OCSP request by it,
	// since base64 holds no dot.
	Suffix = ".crl"
	// deltaSuffix ends the URL of a delta CRL, in place of Suffix.
	deltaSuffix = "-delta" + Suffix
)

// Point is where the CRLs of an issuer are fetched. URL may hold {issuer} and {shard}.
type Point struct {
	URL string
	// Shards is a power of two; 1 means one complete CRL.
	Shards int
}

// Check reports what is wrong with a point that is still to be given its issuer.
func (p Point) Check() error {
	var errs []error
	if p.Shards < 1 || p.Shards > MaxShards || p.Shards&(p.Shards-1) != 0 {
		errs = append(errs, fmt.Errorf("%d shards: a power of two from 1 to %d is needed", p.Shards, MaxShards))
	}
	if p.Shards > 1 && !strings.Contains(p.URL, shardVariable) {
		errs = append(errs, fmt.Errorf("%q needs %s, since there are %d shards", p.URL, shardVariable, p.Shards))
	}
	path, err := p.For("issuer", 1).Path(0)
	switch {
	case err != nil:
		errs = append(errs, err)
	case !strings.HasSuffix(path, Suffix):
		errs = append(errs, fmt.Errorf("%q must end in %s", p.URL, Suffix))
	case strings.HasSuffix(path, deltaSuffix):
		errs = append(errs, fmt.Errorf("%q must not end in %s, which is for delta CRLs", p.URL, deltaSuffix))
	case !strings.Contains(path, "issuer-1"):
		errs = append(errs, fmt.Errorf("%q needs %s in its path: every generation of an issuer has CRLs of its own", p.URL, issuerVariable))
	}
	return errors.Join(errs...)
}

// For returns the point of one generation of an issuer, by its name and its id in the
// ledger.
func (p Point) For(issuer string, generation int32) Point {
	p.URL = strings.ReplaceAll(p.URL, issuerVariable, issuer+"-"+strconv.Itoa(int(generation)))
	return p
}

// Shard returns the URL of one shard's CRL: {shard} becomes "<shards>-<shard>".
func (p Point) Shard(shard int) string {
	return strings.ReplaceAll(p.URL, shardVariable, strconv.Itoa(p.Shards)+"-"+strconv.Itoa(shard))
}

// Delta returns the point of the delta CRLs (RFC 5280 section 5.2.4) to those of p.
func (p Point) Delta() Point {
	p.URL = strings.TrimSuffix(p.URL, Suffix) + deltaSuffix
	return p
}

// Base returns the point to which p has the delta CRLs, and whether it is such a one.
func (p Point) Base() (Point, bool) {
	base, delta := strings.CutSuffix(p.URL, deltaSuffix)
	if delta {
		p.URL = base + Suffix
	}
	return p, delta
}

// Path returns the path of a shard's URL as clients send it: what the responder
// serves, on whatever host.
func (p Point) Path(shard int) (string, error) {
	u, err := url.Parse(p.Shard(shard))
	if err != nil {
		return "", fmt.Errorf("%q is not a URL: %w", p.URL, err)
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", fmt.Errorf("%q must have neither a query nor a fragment", p.URL)
	}
	return u.EscapedPath(), nil
}

// Of returns the shard of a certificate among shards, a power of two.
func Of(n serial.Number, shards int) int {
	return (int(n[serial.Size-2])<<8 | int(n[serial.Size-1])) * shards >> 16
}

// Slots returns the values of a serial's last two octets, first and last, that make a
// shard: the shards of any number are ranges of them.
func Slots(shard, shards int) (first, last [2]byte) {
	width := 1 << 16 / shards
	from, to := shard*width, (shard+1)*width-1
	return [2]byte{byte(from >> 8), byte(from)}, [2]byte{byte(to >> 8), byte(to)}
}
