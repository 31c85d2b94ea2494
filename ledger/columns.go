package ledger

import (
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/certmill/certmill/internal/serial"
)

// columns are the entries of a batch turned on their side: one array for each
// parameter of the commit statement.
type columns struct {
	key, serial, csr, spki, der         pgtype.FlatArray[[]byte]
	reuseUntil, notBefore, notAfter     pgtype.FlatArray[time.Time]
	issuer                              pgtype.FlatArray[int32]
	revocation                          pgtype.FlatArray[int16]
	profile, profileVersion, name       pgtype.FlatArray[string]
	moreNames                           pgtype.FlatArray[*string]
	caller, owner, service, environment pgtype.FlatArray[string]
	otherName                           pgtype.FlatArray[string]
	otherSerial                         pgtype.FlatArray[[]byte]
	otherNotAfter                       pgtype.FlatArray[time.Time]
}

func newColumns(n int) *columns {
	b := func() pgtype.FlatArray[[]byte] { return make([][]byte, 0, n) }
	t := func() pgtype.FlatArray[time.Time] { return make([]time.Time, 0, n) }
	s := func() pgtype.FlatArray[string] { return make([]string, 0, n) }
	return &columns{
		key: b(), serial: b(), csr: b(), spki: b(), der: b(),
		reuseUntil: t(), notBefore: t(), notAfter: t(),
		issuer: make([]int32, 0, n), revocation: make([]int16, 0, n),
		profile: s(), profileVersion: s(), name: s(), moreNames: make([]*string, 0, n),
		caller: s(), owner: s(), service: s(), environment: s(),
		otherName: pgtype.FlatArray[string]{}, otherSerial: pgtype.FlatArray[[]byte]{}, otherNotAfter: pgtype.FlatArray[time.Time]{},
	}
}

// add takes an entry; short is whether its row may leave out what is said elsewhere in it.
func (c *columns) add(e *Entry, short bool) {
	c.key = append(c.key, e.RequestKey[:])
	c.serial = append(c.serial, e.Serial[:])
	c.csr = append(c.csr, e.CSR[:])
	// A key never outlives its certificate: an expired one is of no use to a retry.
	reuse := e.ReuseUntil
	if e.NotAfter.Before(reuse) {
		reuse = e.NotAfter
	}
	c.reuseUntil = append(c.reuseUntil, reuse)
	c.notBefore = append(c.notBefore, e.NotBefore)
	c.notAfter = append(c.notAfter, e.NotAfter)
	c.issuer = append(c.issuer, e.Issuer)
	c.revocation = append(c.revocation, int16(e.Revocation))
	spki, caller := e.SPKI[:], e.Caller
	if short {
		if hash, ok := spkiHash(e.DER); ok && hash == e.SPKI {
			spki = []byte{}
		}
		if len(e.Names) > 0 {
			caller = shortCaller(caller, e.Names[0])
		}
	}
	c.spki = append(c.spki, spki)
	c.profile = append(c.profile, e.Profile)
	c.profileVersion = append(c.profileVersion, e.ProfileVersion)
	c.caller = append(c.caller, caller)
	c.owner = append(c.owner, e.Owner)
	c.service = append(c.service, e.Service)
	c.environment = append(c.environment, e.Environment)
	c.der = append(c.der, e.DER)
	c.addNames(e, short)
}

// addNames puts the first name into the certificate's row and each other one, once,
// into a row of its own. A row that may be short has "" for no other names: one NULL
// would cost it eight octets.
func (c *columns) addNames(e *Entry, short bool) {
	var first string
	var none *string
	if short {
		none = new(string)
	}
	if len(e.Names) > 0 {
		first = e.Names[0]
	}
	c.name = append(c.name, first)
	if len(e.Names) <= 1 {
		c.moreNames = append(c.moreNames, none)
		return
	}
	more := strings.Join(e.Names[1:], "\n")
	c.moreNames = append(c.moreNames, &more)
	seen := map[string]bool{e.Names[0]: true}
	for _, n := range e.Names[1:] {
		if !seen[n] {
			seen[n] = true
			c.otherName = append(c.otherName, n)
			c.otherSerial = append(c.otherSerial, e.Serial[:])
			c.otherNotAfter = append(c.otherNotAfter, e.NotAfter)
		}
	}
}

// args returns the parameters of the commit statement, $1 to $22.
func (c *columns) args(now time.Time) []any {
	return []any{
		c.key, c.serial, c.csr, c.reuseUntil,
		c.notBefore, c.notAfter, c.issuer, c.revocation, c.spki,
		c.profile, c.profileVersion, c.name, c.moreNames,
		c.caller, c.owner, c.service, c.environment, c.der,
		now,
		c.otherName, c.otherSerial, c.otherNotAfter,
	}
}

// certificateColumns is what scanCertificate reads.
const certificateColumns = `serial, not_before, not_after, issuer, revocation, spki,
	profile, profile_version, name, more_names, caller, owner, service, environment, der`

// scanCertificate reads a row of certificateColumns.
func scanCertificate(rows pgx.Rows) (Certificate, error) {
	var c Certificate
	var number, spki []byte
	var revocation int16
	var name string
	var more *string
	var ok bool
	err := rows.Scan(&number, &c.NotBefore, &c.NotAfter, &c.Issuer, &revocation, &spki,
		&c.Profile, &c.ProfileVersion, &name, &more, &c.Caller, &c.Owner, &c.Service, &c.Environment, &c.DER)
	if err != nil {
		return c, err
	}
	if c.Serial, err = serial.FromBytes(number); err != nil {
		return c, err
	}
	if len(spki) > 0 {
		copy(c.SPKI[:], spki)
	} else if c.SPKI, ok = spkiHash(c.DER); !ok {
		return c, fmt.Errorf("the row of %s has neither the hash of a key nor a certificate", c.Serial)
	}
	c.Caller = fullCaller(c.Caller, name)
	c.Revocation = uint8(revocation)
	c.NotBefore, c.NotAfter = c.NotBefore.UTC(), c.NotAfter.UTC()
	if name != "" {
		c.Names = []string{name}
	}
	if more != nil && *more != "" {
		c.Names = append(c.Names, strings.Split(*more, "\n")...)
	}
	return c, nil
}

// octets returns serials as a parameter of type bytea[].
func octets(serials []serial.Number) [][]byte {
	out := make([][]byte, len(serials))
	for i := range serials {
		out[i] = serials[i][:]
	}
	return out
}
